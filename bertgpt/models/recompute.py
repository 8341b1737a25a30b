"""Recomputation of values in the backward pass, instead of saving them in the forward pass."""

from collections.abc import Callable
from typing import TypeVar

import jax

from bertgpt.devices import sharding

Values = TypeVar("Values")


def renew(values: Values) -> Values:
  """Returns the same values, which the compiler for GPUs treats as different ones.

  On GPUs there is usually no loop over layers, and XLA then merges equal computations of the two
  passes, or of two uses: it writes their results to memory and reads them back, although computing
  them again costs nothing. Other platforms have the loop, which keeps the passes apart; there, a
  barrier would only prevent fusions.

  Args:
    values: arrays; all of them are computed before anything is computed from the result.
  """
  return jax.lax.optimization_barrier(values) if sharding.platform() == "gpu" else values


def keep_input(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns a function whose backward pass saves only its arguments.

  Args:
    function: a function of arrays that is cheap to compute, element by element.
  """
  kept = jax.custom_vjp(function)
  kept.defvjp(lambda *x: (function(*x), x), lambda x, g: jax.vjp(function, *renew(x))[1](g))
  return kept
