"""Dropout that is on exactly when the caller passes a 'dropout' generator."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout of `x`; the identity without a key."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


def dropout_key(module: nn.Module) -> jax.Array | None:
  """A key of this call of `module`, or None when dropout is off."""
  return module.make_rng("dropout") if module.has_rng("dropout") else None
