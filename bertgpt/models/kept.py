"""Values of a layer that are saved for the backward pass with `model.remat=products`."""

from typing import TypeVar

from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"  # Name of these values in JAX's policies.

T = TypeVar("T")


def keep(x: T) -> T:
  """Returns its argument, an array or a tree of arrays, marked as a value to save."""
  return checkpoint_name(x, KEPT)
