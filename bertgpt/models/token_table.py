"""The lookup in a token table of which every part of the batch has a copy.

Axes: S parts of the batch, B rows, L length, E width, V rows of the table.
"""

import jax
import jax.numpy as jnp

from bertgpt.devices.sharding import map_shards


def look_up(copies_SVE: jax.Array, tokens_BL: jax.Array) -> jax.Array:
  """Returns the rows of tokens, [B, L, E] in the dtype of the table.

  Every device reads its own copy, so the gradients of the copies are not summed over the devices.

  Args:
    copies_SVE: result of `sharding.copy_for_batch`, for a table [V, E].
    tokens_BL: int32 ids of rows of the table.
  """
  # Summed outside: a gradient would be summed again by the transpose of a `psum` inside.
  return map_shards(_look_up_shard, (("batch", "vocab", None), ("batch", None)),
                    ("vocab", "batch", None, None), copies_SVE, tokens_BL).sum(0)


def _look_up_shard(copies_SVE, tokens_BL, *, names):
  """Returns the rows that one device holds, [1, B, L, E], and zeros for those of other devices."""
  table_VE, vocab_axes = copies_SVE[0], names["vocab"]
  if not vocab_axes:
    return jnp.take(table_VE, tokens_BL, axis=0)[None]
  tokens_BL = tokens_BL - jax.lax.axis_index(vocab_axes) * len(table_VE)
  is_here_BL1 = ((tokens_BL >= 0) & (tokens_BL < len(table_VE)))[..., None]
  return jnp.where(is_here_BL1, jnp.take(table_VE, tokens_BL, axis=0, mode="clip"), 0)[None]
