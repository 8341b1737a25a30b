"""Keys and values of earlier tokens, with which a decoder continues texts.

Axes: B batch, L new tokens, S slots, N heads, H width of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict


class Cache(NamedTuple):
  """Keys and values of the tokens of a row so far.

  Slot s holds position s; slots after the last position are never read.

  Attributes:
    k, v: [B, S, N, H] in the compute dtype; [layers, B, S, N, H] for a whole stack.
  """

  k: jax.Array
  v: jax.Array

  def insert(self, new: "Cache", positions_BL: jax.Array) -> "Cache":
    """Returns the cache with the keys and values of more tokens.

    Args:
      new: keys and values of L tokens of every row, [..., B, L, N, H].
      positions_BL: int32, positions of these tokens.
    """
    # Axes are counted from the end, so this works with and without an axis of layers.
    rows_B1 = jnp.arange(positions_BL.shape[0])[:, None]
    layers = (slice(None),) * (self.k.ndim - 4)
    at = (*layers, rows_B1, positions_BL)
    return Cache(self.k.at[at].set(new.k), self.v.at[at].set(new.v))


def make_cache(config: FrozenConfigDict, rows: int, slots: int) -> Cache:
  """Returns an empty cache of a stack.

  Args:
    config: `config.model`.
    rows: B.
    slots: largest number of tokens per row.
  """
  shape = (config.num_layers, rows, slots, config.num_heads, config.width // config.num_heads)
  return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
