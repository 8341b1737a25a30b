"""The precision of matmuls in a model."""

import contextlib

import jax

from bertgpt.config import ConfigDict


def matmul_precision(config: ConfigDict) -> contextlib.AbstractContextManager:
  """Returns a context in which a model computes in the dtype that its config names.

  Without it, GPUs round the operands of float32 matmuls to TF32, and TPUs to bfloat16.

  Args:
    config: config of a model.
  """
  is_exact = config.model.dtype == "float32"
  return jax.default_matmul_precision("highest") if is_exact else contextlib.nullcontext()
