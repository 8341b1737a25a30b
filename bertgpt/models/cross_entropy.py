"""Cross-entropy of an output layer whose logits are never in memory for all positions at once.

The gradient of a position's loss with respect to its logits, softmax - onehot, is known as soon
as the logits are. So the forward pass goes through the positions in chunks, and computes the
gradients of features, table and bias while it holds the logits of a chunk. The backward pass only
scales these gradients, and no matmul is computed twice.

Axes: B rows, L length, D width, V rows of the table, C positions of a chunk, S parts of the batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bertgpt.devices.sharding import copy_for_batch, map_shards, platform

UNCHUNKED = -1
# Float32 logits of one chunk per device, if the config sets no chunk. Every chunk reads the table
# and adds to its gradient. On accelerators, larger chunks than on CPUs are faster, and the memory
# that they take is otherwise used by the backward pass of the layers.
CHUNK_BYTES, CPU_CHUNK_BYTES = 2**30, 2**28
CHUNK_MULTIPLE = 128  # Positions; rows of a TPU matrix unit.

_POSITIONS, _FEATURES = ("batch", None), ("batch", None, None)
_COPIES = ("batch", "vocab", None)
_IN_AXES = (_FEATURES, _COPIES, ("vocab",), _POSITIONS, _POSITIONS)
_SUMS_AXES = (("batch",), ("batch",))
_GRADIENTS_AXES = (_FEATURES, _COPIES, ("batch", "vocab"))


class Prediction(NamedTuple):
  """Vocabulary logits x table' + bias, not computed yet.

  Attributes:
    x: features [..., D] in the compute dtype.
    table_VD: float32, one row per token.
    bias_V: float32; -1e9 for rows that only pad the table.
    copies_SVD: result of `sharding.copy_for_batch` for the table, if it has other uses too; None:
      it has no other.
  """

  x: jax.Array
  table_VD: jax.Array
  bias_V: jax.Array
  copies_SVD: jax.Array | None = None

  def logits(self) -> jax.Array:
    """Returns the logits, float32 [..., V]."""
    return _make_logits(self.x, self.table_VD.astype(self.x.dtype), self.bias_V)


def score(prediction: Prediction, targets_BL: jax.Array, weights_BL: jax.Array,
          chunk: int) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sums of the loss and of the correct guesses.

  The loss is -log p(target); a guess is correct if no other token is as likely as the target. The
  first sum is differentiable with respect to the prediction; the second has no gradient.

  Args:
    prediction: at every position, [B, L, ...].
    targets_BL: int32 ids.
    weights_BL: float32; positions of weight 0 do not count.
    chunk: positions whose logits a device holds at once; 0: as many as fit in `chunk_bytes`;
      -1: all, left to automatic differentiation.
  Returns:
    Two float32 scalars, the loss in nats.
  """
  if chunk == UNCHUNKED:
    return score_logits(prediction.logits(), targets_BL, weights_BL)
  x, table_VD, bias_V, copies_SVD = prediction
  if copies_SVD is None:
    copies_SVD = copy_for_batch(table_VD, "vocab", None)
  return _score_chunked(chunk, x, copies_SVD, bias_V, targets_BL, weights_BL)


def score_logits(logits: jax.Array, targets: jax.Array,
                 weights: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the two sums of `score` for logits that are computed already.

  Args:
    logits: float32 [..., V].
    targets: int32 [...].
    weights: float32 [...].
  """
  return _score_logits(logits, targets, weights, ())[0]


def _make_logits(x, table_VD, bias_V):
  return jnp.einsum("...D,VD->...V", x, table_VD, preferred_element_type=jnp.float32) + bias_V


def _score_logits(logits, targets, weights, vocab_axes, in_one_pass=False):
  """Returns ((loss sum, correct sum), arrays for their gradient) for float32 logits [..., V].

  The target's logit is picked by comparison, not by a gather: a gather along a vocabulary that is
  split over devices would collect the logits on each of them.

  Args:
    logits: float32 [..., V].
    targets: integer [...], ids in the whole vocabulary.
    weights: float32 [...].
    vocab_axes: mesh axes that the vocabulary is split over; the logits are one part of it.
    in_one_pass: read the logits only once; JAX cannot differentiate this.
  """
  rows = logits.shape[-1]
  first = jax.lax.axis_index(vocab_axes) * rows if vocab_axes else 0
  is_target = targets[..., None] == first + jnp.arange(rows)
  of_target = jnp.where(is_target, logits, 0)
  if in_one_pass:
    highest, total, as_high, of_target = _reduce_at_once(logits, of_target)
    if vocab_axes:
      own, highest = highest, jax.lax.pmax(highest, vocab_axes)
      total, as_high = total * jnp.exp(own - highest), as_high * (own == highest)
  else:
    highest = jax.lax.stop_gradient(logits).max(-1)
    highest = jax.lax.pmax(highest, vocab_axes) if vocab_axes else highest
    total = jnp.exp(logits - highest[..., None]).sum(-1)
    # Compared with the maximum: a comparison with the target's logit would take its own pass.
    as_high = (logits >= highest[..., None]).sum(-1)
    of_target = of_target.sum(-1)
  of_target, total, as_high = (jax.lax.psum(x, vocab_axes) for x in (of_target, total, as_high))
  is_correct = (of_target == highest) & (as_high == 1)
  log_total = highest + jnp.log(total)
  sums = ((log_total - of_target) * weights).sum(), (is_correct * weights).sum()
  return sums, (log_total, is_target)


def _reduce_at_once(logits, of_target):
  """Returns, for the last axis: the maximum, the sum of exp(logits - maximum), the number of logits
  that equal the maximum, and the sum of `of_target`.

  Sums of parts with different maxima are rescaled to the larger one (Milakov and Gimelshein 2018,
  arXiv:1805.02867).
  """

  def join(a, b):
    highest = jnp.maximum(a[0], b[0])
    total, as_high = (sum(part[i] * scale(part[0] - highest) for part in (a, b))
                      for i, scale in ((1, jnp.exp), (2, lambda x: (x == 0).astype(x.dtype))))
    return highest, total, as_high, a[3] + b[3]

  ones = jnp.ones_like(logits)
  start = [jnp.float32(x) for x in (jnp.finfo(jnp.float32).min, 0, 0, 0)]
  return jax.lax.reduce((logits, ones, ones, of_target), tuple(start), join, (logits.ndim - 1,))


# ----------------------------------------------------------- chunk by chunk


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score_chunked(chunk, *arrays):
  """Returns the sums of `score`; the arrays are those of `_scan_chunks`, whole."""
  return jax.tree.map(jnp.sum, _map_chunks(arrays, chunk, with_gradients=False))


def _forward(chunk, *arrays):
  sums, gradients = _map_chunks(arrays, chunk, with_gradients=True)
  return jax.tree.map(jnp.sum, sums), gradients


def _backward(chunk, gradients, cotangents):
  """Scales the gradients, those of the copies of the table one by one."""
  del chunk
  scale, _ = cotangents
  dx_BLD, dtable_SVD, dbias_SV = gradients
  return ((dx_BLD * scale).astype(dx_BLD.dtype), dtable_SVD * scale, (dbias_SV * scale).sum(0),
          None, None)


_score_chunked.defvjp(_forward, _backward)


def _map_chunks(arrays, chunk, with_gradients):
  """Returns what `_scan_chunks` returns for every device's part of the arrays."""
  x_BLD, copies_SVD, *others = arrays
  return map_shards(functools.partial(_scan_chunks, chunk=chunk, with_gradients=with_gradients),
                    _IN_AXES, (_SUMS_AXES, _GRADIENTS_AXES) if with_gradients else _SUMS_AXES,
                    x_BLD, copies_SVD.astype(x_BLD.dtype), *others)


def _scan_chunks(x_BLD, copies_SVD, bias_V, targets_BL, weights_BL, *, names, chunk,
                 with_gradients):
  """Returns the sums of one device, [1] each, and the gradients of the first sum.

  The gradients are [B, L, D], [1, V, D] and [1, V].
  """
  table_VD, positions = copies_SVD[0], targets_BL.size
  in_one_pass = platform() != "cpu"  # There, losses stay bit for bit those of earlier versions.
  size = chunk_size(positions, chunk or chunk_bytes(platform()) // (4 * len(bias_V)))
  pieces = [_split(x, positions, size) for x in (x_BLD, targets_BL, weights_BL)]
  vocab_axes = names["vocab"]

  def add_chunk(totals, piece):
    x_CD, targets_C, weights_C = piece
    logits_CV = _make_logits(x_CD, table_VD, bias_V)
    sums, (log_total_C, is_target_CV) = _score_logits(logits_CV, targets_C, weights_C, vocab_axes,
                                                      in_one_pass)
    if not with_gradients:
      return jax.tree.map(jnp.add, totals, sums), None
    p_CV = jnp.exp(logits_CV - log_total_C[:, None])
    dlogits_CV = (p_CV - is_target_CV) * weights_C[:, None]
    narrow_CV = dlogits_CV.astype(x_CD.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dx_CD = jax.lax.psum(product("CV,VD->CD", narrow_CV, table_VD), vocab_axes)
    dtable_VD = product("CV,CD->VD", narrow_CV, x_CD)
    totals = jax.tree.map(jnp.add, totals, (*sums, dtable_VD, dlogits_CV.sum(0)))
    return totals, dx_CD.astype(x_CD.dtype)

  zero = jnp.zeros((), jnp.float32)
  shapes = (table_VD.shape, bias_V.shape) if with_gradients else ()
  totals = (zero, zero, *(jnp.zeros(shape, jnp.float32) for shape in shapes))
  totals, dx = jax.lax.scan(add_chunk, totals, pieces)
  loss, correct, *rest = (total[None] for total in totals)
  if not with_gradients:
    return loss, correct
  return (loss, correct), (dx.reshape(-1, x_BLD.shape[-1])[:positions].reshape(x_BLD.shape), *rest)


def chunk_bytes(name: str) -> int:
  """Returns the bytes of float32 logits of a chunk on one device, if the config sets no chunk.

  Args:
    name: platform, 'cpu', 'gpu' or 'tpu'.
  """
  return CPU_CHUNK_BYTES if name == "cpu" else CHUNK_BYTES


def chunk_size(positions: int, most: int) -> int:
  """Returns the number of positions per chunk: as few chunks as possible.

  There may be up to twice as many if they then divide the positions into whole tiles.

  Args:
    positions: number of positions.
    most: largest number of positions per chunk.
  """
  fewest = -(-positions // max(most, 1))
  for count in range(fewest, 2 * fewest):
    if positions % (count * CHUNK_MULTIPLE) == 0:
      return positions // count
  return -(-positions // fewest)


def _split(x, positions, size):
  """Returns [chunks, size, ...] from [B, L, ...], padded with zeros."""
  x = x.reshape(positions, *x.shape[2:])
  x = jnp.pad(x, [(0, -positions % size)] + [(0, 0)] * (x.ndim - 1))
  return x.reshape(-1, size, *x.shape[1:])
