"""Matmuls in float8 (`config.model.matmul = 'fp8'`).

Inputs and weights are rounded to e4m3, gradients to e5m2 (Micikevicius et al. 2022, "FP8 formats
for deep learning", arXiv:2209.05433). Every operand of a matmul is scaled by its own current
largest magnitude, so there is no state to save, and checkpoints are the same as with bfloat16.
Scales are powers of two, so scaling is exact, and only the rounding to float8 loses digits. A
device without float8 converts the operands back and computes the same matmuls.

An array has one scale per device and micro-batch. The rounding therefore depends on the number of
micro-batches, unlike everything else in a step but the dropout of `threefry` and `rbg`.

Axes: B any number of features, I inputs, O outputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bertgpt.models.remat import gpu_barrier

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2
MULTIPLE = 16  # cuBLASLt needs multiples of 16 (cuBLAS documentation 12, "cublasLtMatmul").


def quantize(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Rounds an array to float8.

  Args:
    x: array of any shape, bfloat16 or float32. If it holds an infinity or nan, so does the result.
    dtype: `FORWARD` or `BACKWARD`.
  Returns:
    The rounded array, and a scalar of the dtype of `x` by which it has to be multiplied: the
    smallest power of two that leaves all magnitudes below the largest one of float8.
  """
  largest = jnp.max(jnp.abs(x)).astype(jnp.float32) / float(jnp.finfo(dtype).max)
  _, exponent = jnp.frexp(largest)
  is_usable = jnp.isfinite(largest) & (largest > 0)
  scale = jnp.ldexp(jnp.float32(1), jnp.where(is_usable, exponent, 0)).astype(x.dtype)
  return (x / scale).astype(dtype), scale


def _multiply(x, y, contract, dtype):
  """Returns the matmul of two pairs of a rounded array and its scale."""
  (x, x_scale), (y, y_scale) = x, y
  product = lax.dot_general(x, y, (contract, ((), ())), preferred_element_type=dtype)
  return product * (x_scale * y_scale)


@jax.custom_vjp
def multiply(x_BI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
  """Returns x @ kernel, [B, O], with operands rounded to float8 in both passes.

  Args:
    x_BI: features, bfloat16 or float32.
    kernel_IO: weights, of the same dtype.
  """
  return _multiply_forward(x_BI, kernel_IO)[0]


def _multiply_forward(x_BI, kernel_IO):
  x, kernel = quantize(x_BI, FORWARD), quantize(kernel_IO, FORWARD)
  # Without a barrier, XLA fuses GELU into the matmul and asks for the argument of GELU as another
  # output, which cuBLASLt does not have for float8: compilation fails.
  return gpu_barrier(_multiply(x, kernel, ((1,), (0,)), x_BI.dtype)), (x, kernel)


def _multiply_backward(kept, g_BO):
  x, kernel = kept
  g = quantize(g_BO, BACKWARD)
  return (_multiply(g, kernel, ((1,), (1,)), g_BO.dtype),
          _multiply(x, g, ((0,), (0,)), g_BO.dtype))


multiply.defvjp(_multiply_forward, _multiply_backward)


def dot_general(x: jax.Array, kernel_IO: jax.Array, dimension_numbers: Any,
                **options: Any) -> jax.Array:
  """Multiplies in float8 in place of `lax.dot_general`, for `flax.linen.Dense`.

  Weights with a dimension that is not a multiple of `MULTIPLE` are multiplied in the dtype of `x`.

  Args:
    x: features [..., I].
    kernel_IO: weights, of the same dtype.
    dimension_numbers: those of `Dense`, which contract I.
    **options: `precision`, which has no meaning for float8.
  Returns:
    [..., O] of the dtype of `x`.
  """
  if any(size % MULTIPLE for size in kernel_IO.shape):
    return lax.dot_general(x, kernel_IO, dimension_numbers, **options)
  x_BI = x.reshape(-1, x.shape[-1])
  return multiply(x_BI, kernel_IO).reshape(*x.shape[:-1], kernel_IO.shape[1])
