"""Initial values of parameters.

| parameter                         | initial value                                       |
|-----------------------------------|-----------------------------------------------------|
| kernels, token, segment embedding | normal(0, init_std), or truncated at two std        |
| position embedding                | the same with position_init_std, or `init_sinusoid` |
| attention/out, mlp/down kernels   | with `scale_residual_init`, sqrt(2 layers) smaller  |
| biases                            | 0                                                   |
| LayerNorm                         | scale 1, bias 0                                     |
"""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict


def make_init(config: FrozenConfigDict, std: float) -> nn.initializers.Initializer:
  """Returns the initializer of matrices and embeddings: a normal distribution, which
  `config.truncated_init` truncates at two standard deviations.

  Args:
    config: `config.model`.
    std: standard deviation, before the truncation.
  """
  if config.truncated_init:
    return nn.initializers.truncated_normal(std)
  return nn.initializers.normal(std)


def init_sinusoid(std: float) -> nn.initializers.Initializer:
  """Returns an initializer with sin(p w), cos(p w) at position p.

  A single linear map takes every position to its neighbor, which attention would otherwise have to
  learn position by position (Vaswani et al. 2017, arXiv:1706.03762, 3.5). The frequencies w are
  evenly spaced between 0 and pi, so that positions less than `width` apart are orthogonal; most
  frequencies of the paper are so low that neighbors look alike.

  Args:
    std: root mean square of the values.
  """

  def init(key, shape, dtype=jnp.float32):
    del key
    rows, width = shape
    w = jnp.pi * (jnp.arange(0, width, 2) + 1) / width
    angles = jnp.arange(rows)[:, None] * w
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]
    return (2 ** 0.5 * std * table).astype(dtype)

  return init


def residual_std(config: FrozenConfigDict) -> float:
  """Returns the initial standard deviation of projections into the residual stream.

  With `scale_residual_init`, it is smaller than the others' by the factor 1 / sqrt(2 layers)
  (Radford et al. 2019, 2.3).

  Args:
    config: `config.model`.
  """
  return config.init_std * ((2 * config.num_layers) ** -0.5 if config.scale_residual_init else 1.0)
