"""Samples from an output layer whose logits are never in memory for all positions at once.

The token with the highest sum of its logit and its Gumbel noise is a sample from the softmax
(Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). The noise is a hash of the token, of the slot,
and of two words of the row, so that a sample depends neither on the mesh nor on other rows.

Axes: B rows, K slots of a row, C slots of a chunk, D width, V rows of the table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.devices.sharding import map_shards, platform
from bertgpt.models.cross_entropy import Prediction, chunk_bytes
from bertgpt.models.dropout import bits_of_places, row_keys

_IN_AXES = (("batch", None, None), ("vocab", None), ("vocab",), ("batch", None))


def sample(prediction: Prediction, key_data_B2: jax.Array, most: int = 0) -> jax.Array:
  """Returns one sample for every slot, int32 [B, K], without a gradient.

  Args:
    prediction: prediction for the slots, [B, K].
    key_data_B2: uint32, data of a key of every row.
    most: slots of a device whose logits are in memory at once; 0: as many as fit in
      `cross_entropy.chunk_bytes`.
  """
  x_BKD, table_VD, bias_V, _ = jax.lax.stop_gradient(prediction)
  return map_shards(functools.partial(_sample_shard, most=most), _IN_AXES, ("batch", None),
                    x_BKD, table_VD.astype(x_BKD.dtype), bias_V, key_data_B2)


def _sample_shard(x_BKD, table_VD, bias_V, key_data_B2, *, names, most):
  """Returns the samples of one device, which may hold only a part of the vocabulary."""
  rows, slots, _ = x_BKD.shape
  vocab_axes, size = names["vocab"], len(bias_V)
  first = jax.lax.axis_index(vocab_axes) * size if vocab_axes else 0
  tokens_V = first + jnp.arange(size, dtype=jnp.int32)
  most = most or chunk_bytes(platform()) // (4 * size)
  chunk = max(1, min(slots, most // rows))
  padded_BKD = jnp.pad(x_BKD, ((0, 0), (0, -slots % chunk), (0, 0)))
  x_NBCD = jnp.moveaxis(padded_BKD.reshape(rows, -1, chunk, x_BKD.shape[-1]), 1, 0)

  def sample_chunk(number, x_BCD):
    logits_BCV = jnp.einsum("BCD,VD->BCV", x_BCD, table_VD,
                            preferred_element_type=jnp.float32) + bias_V
    slots_C = number * chunk + jnp.arange(chunk)
    scores_BCV = logits_BCV + gumbel_noise(key_data_B2, slots_C, tokens_V)
    best_BC, token_BC = scores_BCV.max(-1), tokens_V[scores_BCV.argmax(-1)]
    if vocab_axes:
      highest_BC = jax.lax.pmax(best_BC, vocab_axes)
      token_BC = jnp.where(best_BC == highest_BC, token_BC, np.iinfo(np.int32).max)
      token_BC = jax.lax.pmin(token_BC, vocab_axes)
    return number + 1, token_BC

  _, token_NBC = jax.lax.scan(sample_chunk, jnp.int32(0), x_NBCD)
  return jnp.moveaxis(token_NBC, 0, 1).reshape(rows, -1)[:, :slots]


def gumbel_noise(key_data_B2: jax.Array, slots_C: jax.Array, tokens_V: jax.Array) -> jax.Array:
  """Returns noise of the standard Gumbel distribution, float32 [B, C, V].

  Args:
    key_data_B2: uint32, data of a key of every row.
    slots_C: integers, indices of the slots in their rows.
    tokens_V: integers, ids of the tokens.
  """
  key_data_2B11 = jnp.moveaxis(key_data_B2, 1, 0)[..., None, None]
  keys = row_keys(key_data_2B11, slots_C.astype(jnp.uint32)[:, None])
  bits_BCV = bits_of_places(tokens_V.astype(jnp.uint32), *keys)
  # 24 bits plus one half: never 0. In float32, the highest is rounded to 2**24; as 1, it would be
  # infinite noise, which overrides any logit.
  uniform_BCV = ((bits_BCV >> 8).astype(jnp.float32) + 0.5) * np.float32(2**-24)
  uniform_BCV = jnp.minimum(uniform_BCV, np.float32(1 - 2**-24))
  return -jnp.log(-jnp.log(uniform_BCV))
