"""LayerNorm (Ba et al. 2016, arXiv:1607.06450) with float32 statistics.

Axes: ... any leading axes, D width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from ml_collections import FrozenConfigDict

from bertgpt.models.remat import SAVED, gpu_barrier


class Norm(nn.Module):
  """LayerNorm over the last axis, in the compute dtype.

  Attributes:
    config: `config.model`.
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the normalized features.

    Args:
      x: features [..., D].
    Returns:
      [..., D] in the compute dtype.
    """
    width = x.shape[-1]
    scale_D = self.param("scale", nn.initializers.ones, (width,))
    bias_D = (self.param("bias", nn.initializers.zeros, (width,)) if self.config.norm_bias else
              jnp.zeros(width))
    return _normalize(self.config.layer_norm_epsilon, self.config.dtype, x, scale_D, bias_D)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(epsilon, dtype, x, scale_D, bias_D):
  """Returns LayerNorm of the features; the backward pass saves them and their statistics.

  JAX's own derivative would save several float32 arrays, or compute the statistics again.

  Args:
    epsilon: added to the variance.
    dtype: of the result.
    x: features [..., D].
    scale_D, bias_D: float32.
  """
  return _normalize_forward(epsilon, dtype, x, scale_D, bias_D)[0]


def _normalize_forward(epsilon, dtype, x, scale_D, bias_D):
  x32 = x.astype(jnp.float32)
  mean = checkpoint_name(x32.mean(-1, keepdims=True), SAVED)
  # Two passes: mean(x^2) - mean(x)^2 loses digits.
  variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
  inverse = checkpoint_name(jax.lax.rsqrt(variance + epsilon), SAVED)
  y = (x32 - mean) * (inverse * scale_D) + bias_D
  return y.astype(dtype), (x, mean, inverse, scale_D)


def _normalize_backward(epsilon, dtype, kept, g):
  del epsilon, dtype
  x, mean, inverse, scale_D = kept
  leading = tuple(range(g.ndim - 1))

  def widen(x, g):
    return (x.astype(jnp.float32) - mean) * inverse, g.astype(jnp.float32)

  # Sums over positions and sums over the width are different kernels: both read x and g.
  normal, g32 = widen(*gpu_barrier((x, g)))
  dscale_D, dbias_D = (g32 * normal).sum(leading), g32.sum(leading)
  normal, g32 = widen(x, g)
  g32 *= scale_D
  dx = inverse * (g32 - g32.mean(-1, keepdims=True)
                  - normal * (g32 * normal).mean(-1, keepdims=True))
  return dx.astype(x.dtype), dscale_D, dbias_D


_normalize.defvjp(_normalize_forward, _normalize_backward)
