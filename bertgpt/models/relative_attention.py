"""Attention whose scores also depend on the distance of query and key, and on their segments.

The score of a query q for a key k at distance d is
((q + u) k + (q + v) W r(d) + (q + w) s) / sqrt(H): r is a sinusoid of the distance, s one of two
vectors, for a key of the same segment and for one of another; u, v, w, W and s are parameters (Dai
et al. 2019, arXiv:1901.02860, 3.3; Yang et al. 2019, arXiv:1906.08237, 2.4 and 2.5).

Axes: B batch, L length, K targets, T queries: the L tokens, then the K targets; S keys: memory,
then the L tokens; R distances, N heads, H width of a head, D width of the model.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bertgpt.models.remat import SAVED

MAX_WAVELENGTH = 10_000.0  # In units of 2 pi (Vaswani et al. 2017, arXiv:1706.03762, 3.5).


class Sight(NamedTuple):
  """What the queries see of the keys; the same in all layers.

  Attributes:
    mask_BTS: bool, whether a query sees a key.
    is_same_BTS: bool, whether they are of one segment.
    targets_BK: int32, positions of the targets, different ones in every row; None: there are no
      targets, and T = L.
  """

  mask_BTS: jax.Array
  is_same_BTS: jax.Array
  targets_BK: jax.Array | None


class Biases(NamedTuple):
  """Parameters of the scores of one layer, in the compute dtype.

  Attributes:
    content_NH, position_NH, segment_NH: u, v, w in the formula of this module.
    segments_2NH: s, for a key of the same segment and for a key of another.
  """

  content_NH: jax.Array
  position_NH: jax.Array
  segment_NH: jax.Array
  segments_2NH: jax.Array


def make_sinusoids(length: int, num_keys: int, width: int) -> np.ndarray:
  """Returns [sin(d w), cos(d w)] for the distances d = S, S - 1, ..., 1 - L: float32 [L + S, D].

  Args:
    length: L.
    num_keys: S.
    width: D.
  """
  distances_R = np.arange(num_keys, -length, -1)
  frequencies = MAX_WAVELENGTH ** (-np.arange(0, width, 2) / width)
  angles = distances_R[:, None] * frequencies
  return np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, :width].astype(np.float32)


def see(sequence_ids_BL: jax.Array, segment_ids_BL: jax.Array, order_BL: jax.Array | None,
        targets_BK: jax.Array | None, is_memory_BM: jax.Array) -> Sight:
  """Returns what tokens and targets see.

  A token sees the tokens of its sequence whose place in the order is not after its own. A target
  has the position of a token, and sees what that token sees except the tokens of the same place,
  such as the token itself. Every query sees all tokens of the memory, which are of segment 0.

  Args:
    sequence_ids_BL, segment_ids_BL: int32.
    order_BL: int32, places of the tokens. None: all tokens see each other, and a target sees all
      tokens except the targets.
    targets_BK: int32, positions of the targets; None: there are none.
    is_memory_BM: bool, whether a place of the memory, which is before the row, holds a token.
  """
  rows_B1 = jnp.arange(sequence_ids_BL.shape[0])[:, None]
  if order_BL is None:
    order_BL = jnp.zeros_like(sequence_ids_BL)
    if targets_BK is not None:
      order_BL = order_BL.at[rows_B1, targets_BK].set(1)
  is_near_BTL = _equal(sequence_ids_BL, targets_BK)
  is_seen_BTL = order_BL[:, :, None] >= order_BL[:, None]
  if targets_BK is not None:
    before_BKL = order_BL[rows_B1, targets_BK][..., None] > order_BL[:, None]
    is_seen_BTL = jnp.concatenate([is_seen_BTL, before_BKL], axis=1)
  mask_BTL = is_near_BTL & is_seen_BTL
  memory_BTM = jnp.broadcast_to(is_memory_BM[:, None], (*mask_BTL.shape[:2], is_memory_BM.shape[1]))
  keys_BS = jnp.pad(segment_ids_BL, ((0, 0), (is_memory_BM.shape[1], 0)))
  return Sight(jnp.concatenate([memory_BTM, mask_BTL], axis=2),
               _equal(segment_ids_BL, targets_BK, keys_BS), targets_BK)


def _equal(ids_BL, targets_BK, keys_BS=None):
  """Returns whether the ids of queries and keys are equal, bool [B, T, S]."""
  keys_BS = ids_BL if keys_BS is None else keys_BS
  if targets_BK is not None:
    ids_BL = jnp.concatenate([ids_BL, jnp.take_along_axis(ids_BL, targets_BK, 1)], axis=1)
  return ids_BL[:, :, None] == keys_BS[:, None]


def weigh(q_BTNH: jax.Array, k_BSNH: jax.Array, r_RNH: jax.Array, biases: Biases,
          sight: Sight) -> jax.Array:
  """Returns attention weights [B, N, T, S] in the dtype of the queries, from float32 scores.

  A query that sees no key has weights of 0.

  Args:
    q_BTNH: queries of the tokens, then of the targets.
    k_BSNH: keys of the memory, then of the tokens.
    r_RNH: projected sinusoids of the distances S, ..., 1 - L.
    biases: parameters of the scores.
    sight: result of `see`.
  """
  scale = jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
  content_BTNH, position_BTNH, segment_BTNH = (
      (q_BTNH + bias_NH) * scale for bias_NH in biases[:3])
  scores_BNTS = _multiply("BTNH,BSNH->BNTS", content_BTNH, k_BSNH)
  scores_BNTS += _score_positions(position_BTNH, r_RNH, sight.targets_BK)
  segments_BNT2 = _multiply("BTNH,CNH->BNTC", segment_BTNH, biases.segments_2NH)
  scores_BNTS += jnp.where(sight.is_same_BTS[:, None], segments_BNT2[..., :1],
                           segments_BNT2[..., 1:])
  return _softmax(q_BTNH.dtype, scores_BNTS, sight.mask_BTS[:, None])


def _score_positions(q_BTNH, r_RNH, targets_BK):
  """Returns the second term of the scores, float32 [B, N, T, S]."""
  product = functools.partial(_multiply, "BLNH,RNH->BNLR")
  if targets_BK is None:
    return shift(product(q_BTNH, r_RNH))
  length = q_BTNH.shape[1] - targets_BK.shape[1]
  q_BLNH, q_BKNH = q_BTNH[:, :length], q_BTNH[:, length:]
  # With targets at the positions of their tokens, the distances are the same in every row. The
  # targets of a row have different positions, so neither scattering nor its derivative needs sums.
  put = jax.vmap(lambda q, at: jnp.zeros_like(q, shape=(length, *q.shape[1:])).at[at].set(
      q, unique_indices=True))
  take = jax.vmap(lambda x, at: x.at[:, at].get(unique_indices=True))
  of_targets_BNKS = take(shift(product(put(q_BKNH, targets_BK), r_RNH)), targets_BK)
  return jnp.concatenate([shift(product(q_BLNH, r_RNH)), of_targets_BNKS], axis=2)


def shift(x_BNLR: jax.Array) -> jax.Array:
  """Returns x[..., l, L - l + s] for every query l and key s: [B, N, L, S] with S = R - L.

  Column r of `x` belongs to the distance S - r, and the distance of query l and key s is
  (S - L + l) - s. Both reshapes leave the memory as it is: without the first L elements, and with
  rows one element shorter, row l begins at column L - l of the old row l (Dai et al. 2019,
  appendix B).

  Args:
    x_BNLR: any array of four axes.
  """
  *outer, length, distances = x_BNLR.shape
  x = x_BNLR.reshape(*outer, distances, length)[:, :, 1:]
  return x.reshape(*outer, length, distances - 1)[..., :distances - length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(spec, a, b):
  """Returns the float32 matmul of two arrays of one dtype; its derivative computes in this dtype.

  JAX's own derivative would multiply them by a float32 cotangent, at the speed of float32.
  """
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _multiply_forward(spec, a, b):
  return _multiply(spec, a, b), (a, b)


def _multiply_backward(spec, kept, g):
  a, b = kept
  inputs, out = spec.split("->")
  axes_a, axes_b = inputs.split(",")
  g = g.astype(a.dtype)
  return (jnp.einsum(f"{out},{axes_b}->{axes_a}", g, b),
          jnp.einsum(f"{out},{axes_a}->{axes_b}", g, a))


_multiply.defvjp(_multiply_forward, _multiply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(dtype, scores, mask):
  """Returns the softmax over the scores in the mask; the backward pass saves only the result.

  Args:
    dtype: of the result.
    scores: float32.
    mask: bool; where it is False, and if it is False everywhere, weights are 0.
  """
  weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
  return jnp.where(mask, weights, 0).astype(dtype)


def _softmax_forward(dtype, scores, mask):
  weights = checkpoint_name(_softmax(dtype, scores, mask), SAVED)
  return weights, weights


def _softmax_backward(dtype, weights, g):
  del dtype
  weights = weights.astype(jnp.float32)
  g = weights * g
  return g - weights * g.sum(-1, keepdims=True), None


_softmax.defvjp(_softmax_forward, _softmax_backward)
