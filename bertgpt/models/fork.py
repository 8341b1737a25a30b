"""An array that several matmuls read, and the order in which their gradients are summed."""

import functools
import operator

import jax

from bertgpt.devices.sharding import platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fork(x: jax.Array, count: int) -> tuple[jax.Array, ...]:
  """Returns an array several times, once for each use.

  The gradients are added one by one, starting with that of the last use, and always as
  `matmul + sum`: only in this form does XLA for GPUs let the matmul itself add the sum, which
  saves reading and writing the array once more. On TPUs, they are added from the first use on: if
  `mesh.tensor` divides the matmuls, XLA then sums their results over the devices at once.

  Args:
    x: any array.
    count: number of uses; those that are not inputs of matmuls should be the last.
  Returns:
    `x`, `count` times.
  """
  return (x,) * count


def _fork_forward(x, count):
  return fork(x, count), None


def _fork_backward(count, kept, gradients):
  del count, kept
  if platform() == "tpu":
    return (functools.reduce(operator.add, gradients),)
  return (functools.reduce(lambda total, g: g + total, reversed(gradients)),)


fork.defvjp(_fork_forward, _fork_backward)
