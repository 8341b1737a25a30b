"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864).

Axes: B batch, L length, N heads, H width of a head, T tables.

Feature i of a head and feature i + H/2 are one pair (GPT-NeoX, 2022, 'rotate half'), rotated by
the angle position * base^(-2 i / H). The scores of a query and a key then depend on the distance
between their positions. Queries and keys are rotated before attention, so any kernel can follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict


def make_tables(config: FrozenConfigDict, positions_BL: jax.Array) -> jax.Array:
  """Returns the cosines and sines of all angles, float32 [T, 2, B, L, H/2].

  T is 2, with the table of the global layers first, if local layers have a different base, and 1
  otherwise.

  Args:
    config: `config.model`.
    positions_BL: int32, positions of the tokens in their sequences.
  """
  thetas = [config.rope_theta]
  if config.window and config.rope_theta_local != config.rope_theta:
    thetas.append(config.rope_theta_local)
  width = config.width // config.num_heads
  frequencies = np.array([theta ** (-np.arange(0, width, 2) / width) for theta in thetas],
                         np.float32)
  angles = positions_BL[:, :, None].astype(jnp.float32) * frequencies[:, None, None, :]
  return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


def rotate(x_BLNH: jax.Array, tables: jax.Array,
           is_global: jax.Array | np.ndarray | None) -> jax.Array:
  """Returns rotated queries or keys, computed in float32, of the dtype of the argument.

  Args:
    x_BLNH: queries or keys.
    tables: result of `make_tables`.
    is_global: bool scalar, whether the layer is global; None: all layers are of one kind.
  """
  table = 0
  if tables.shape[0] == 2:
    table = 1 if is_global is None else 1 - is_global.astype(jnp.int32)
  cos_BL1P, sin_BL1P = tables[table][:, :, :, None]
  one, other = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([one * cos_BL1P - other * sin_BL1P, other * cos_BL1P + one * sin_BL1P],
                           axis=-1)
  return turned.astype(x_BLNH.dtype)
