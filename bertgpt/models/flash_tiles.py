"""Masks that the flash kernels of all platforms share: which weights of a tile are seen and kept.

A tile is a part of the array of weights [L, S]. Its queries and keys are given by their indices in
the row, which broadcast against each other, so that a kernel chooses the order of the axes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bertgpt.models import dropout

HIDDEN = -1e30  # Logit of a key that is not seen.


class Task(NamedTuple):
  """The attention that a kernel computes.

  Attributes:
    length: queries and keys of a row; the arrays may have more, as padding.
    head_width: width of a head.
    scale: factor of the logits.
    causal: a query sees no later key.
    window: largest distance at which a query sees a key; None: any distance.
    rate: share of the weights that is dropped.
    interpret: whether the kernel is interpreted, on a CPU.
  """

  length: int
  head_width: int
  scale: float
  causal: bool
  window: int | None
  rate: float
  interpret: bool

  def key_tiles(self, i: Any, tile: int, tiles: int) -> tuple[Any, Any]:
    """Returns the first tile of keys that a tile of queries sees, and the one after the last.

    Args:
      i: index of the tile of queries.
      tile: queries and keys of a tile.
      tiles: tiles of a row.
    """
    first, end = 0, tiles
    if self.window is not None and tiles > 1:
      reach = -(-self.window // tile)
      first, end = jnp.maximum(i - reach, 0), jnp.minimum(i + reach + 1, tiles)
    return first, i + 1 if self.causal and tiles > 1 else end

  def query_tiles(self, j: Any, tile: int, tiles: int) -> tuple[Any, Any]:
    """Returns the same for the tiles of queries that see the keys of tile `j`."""
    first, end = 0, tiles
    if self.window is not None and tiles > 1:
      reach = -(-self.window // tile)
      first, end = jnp.maximum(j - reach, 0), jnp.minimum(j + reach + 1, tiles)
    return j if self.causal and tiles > 1 else first, end

  def seen_tiles(self, tile: int, tiles: int) -> int:
    """Returns the number of pairs of tiles whose weights are computed."""
    reach = tiles if self.window is None else -(-self.window // tile)
    return sum(abs(i - j) <= reach and (j <= i or not self.causal)
               for i in range(tiles) for j in range(tiles))

  def sees(self, queries: jax.Array, keys: jax.Array, query_ids: jax.Array,
           key_ids: jax.Array) -> jax.Array:
    """Returns which keys of a tile a query sees, bool.

    Args:
      queries, keys: int32, their indices in the row.
      query_ids, key_ids: int32, ids of their sequences.
    """
    sees = query_ids == key_ids
    if self.causal:
      sees &= keys <= queries
    if self.window is not None:
      sees &= keys >= queries - self.window
      if not self.causal:
        sees &= keys <= queries + self.window
    return sees

  def keeps(self, queries: jax.Array, keys: jax.Array, head: Any, first: jax.Array,
            second: jax.Array) -> jax.Array:
    """Returns which weights of a tile are not dropped, bool.

    They are those that `dropout.drop` keeps of an array [B, N, L, S].

    Args:
      queries, keys: int32, their indices in the row.
      head: index of the head on this device.
      first, second: uint32 scalars, the keys of the row.
    """
    row = jnp.uint32(self.length)
    start = jnp.uint32(head) * row * row + first
    place = queries.astype(jnp.uint32) * row + keys.astype(jnp.uint32)
    return dropout.bits_of_places(place, start, second) >= dropout.threshold(self.rate)
