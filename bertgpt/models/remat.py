"""What the backward pass saves, and what it computes again (rematerialization).

With `model.remat=products`, layers save the values that are named SAVED. So each of these is marked
where it is computed, as `checkpoint_name(x, SAVED)`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.config import rematerialization
from bertgpt.devices import sharding

SAVED = "saved"

# Values of a layer that are saved for the backward pass; all others are recomputed. For `auto`, see
# config/rematerialization.py.
POLICIES = {
    "none": None,
    "products": jax.checkpoint_policies.save_only_these_names(SAVED),
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}

Values = TypeVar("Values")


def rematerialize(block: type[nn.Module], config: FrozenConfigDict, is_loop: bool) -> Any:
  """Returns the class of a layer whose backward pass saves the values that `config.remat` selects.

  Args:
    block: class of the layer.
    config: `config.model`.
    is_loop: whether the layer is the body of a loop. Outside a loop, XLA would merge the repeated
      computation with the first one and save its results.
  """
  remat, _ = rematerialization.choose(config.remat, sharding.platform())
  if remat == "none":
    return block
  return nn.remat(block, policy=POLICIES[remat], prevent_cse=not is_loop)


def save_only_inputs(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns a function whose backward pass saves only its arguments, as with `jax.checkpoint`.

  Args:
    function: a function of arrays that is cheap to compute, element by element.
  """
  saving = jax.custom_vjp(function)
  saving.defvjp(lambda *x: (function(*x), x),
                lambda x, g: jax.vjp(function, *gpu_barrier(x))[1](g))
  return saving


def gpu_barrier(values: Values) -> Values:
  """Returns the same values, behind a `jax.lax.optimization_barrier` in programs for GPUs.

  On GPUs there is usually no loop over layers, and XLA then merges equal computations of the two
  passes, or of two uses: it writes their results to memory and reads them back, although computing
  them again costs nothing. Other platforms have the loop, which keeps the passes apart; there, a
  barrier would only prevent fusions.

  Args:
    values: arrays; all of them are computed before anything is computed from the result.
  """
  return jax.lax.optimization_barrier(values) if sharding.platform() == "gpu" else values
