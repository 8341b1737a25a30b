"""Flash attention for NVIDIA GPUs (Pallas, Triton): the kernels of one device; see
`flash_attention`.

Each program of the grid computes, for one head, a tile of queries; in the backward pass, the
gradients of a tile of keys and then of a tile of queries. No sums over programs are needed, but the
backward pass computes every tile of weights twice: seven matmuls instead of five. A row of only
one or two tiles has a single program in the backward pass, which computes its weights once.

Axes: B rows, L queries, S keys, N heads, H width of a head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from bertgpt.models.flash_tiles import HIDDEN, Task

TILE = 64  # Queries and keys of a tile; two tiles of weights fit the registers of four warps.

# Instructions per weight in the kernels' loops, from their PTX for sm_90.
# {(matmuls, has dropout): operations}.
OPERATIONS_PER_WEIGHT = {(2, False): 22, (2, True): 44, (5, False): 44, (5, True): 68,
                         (7, False): 45, (7, True): 88}


# Largest row, in tiles, and head width whose gradients together fit the registers of four warps.
SHORT, NARROW = 2, 64


def forward(task: Task, q_BLD: jax.Array, k_BSD: jax.Array, v_BSD: jax.Array, ids_BL: jax.Array,
            keys_B2: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the attention [B, L, D] and the log-sum-exp of its logits, float32 [B, N, 1, L].

  The arguments are those of `flash_attention`, with a length that is a multiple of `TILE`.
  """
  rows, length, width = q_BLD.shape
  heads = width // task.head_width
  q_BLNH, k_BSNH, v_BSNH = (_split_heads(x, heads) for x in (q_BLD, k_BSD, v_BSD))
  row, tile, ids, keys, _, sums = _specs(task, heads, length)
  x_BLNH, sums_BN1L = pl.pallas_call(
      functools.partial(_forward_kernel, task, heads), grid=(length // TILE, rows * heads),
      in_specs=[tile, row, row, ids, keys], out_specs=[tile, sums],
      out_shape=[jax.ShapeDtypeStruct(q_BLNH.shape, q_BLNH.dtype),
                 jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32)],
      name="flash_attention_forward", **_options(task, q_BLNH, products=2),
  )(q_BLNH, k_BSNH, v_BSNH, ids_BL, keys_B2)
  return x_BLNH.reshape(q_BLD.shape), sums_BN1L


def backward(task: Task, q_BLD: jax.Array, k_BSD: jax.Array, v_BSD: jax.Array, ids_BL: jax.Array,
             keys_B2: jax.Array, x_BLD: jax.Array, sums_BN1L: jax.Array,
             g_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the gradients of queries, keys and values, [B, L, D].

  The arguments are those of `flash_attention`, the results of `forward` and the cotangent.
  """
  rows, length, width = q_BLD.shape
  heads = width // task.head_width
  q_BLNH, k_BSNH, v_BSNH, x_BLNH, g_BLNH = (
      _split_heads(x, heads) for x in (q_BLD, k_BSD, v_BSD, x_BLD, g_BLD))
  # The mean gradient of a query's weights is the dot product of its result and its cotangent.
  means_BLN = (x_BLNH.astype(jnp.float32) * g_BLNH.astype(jnp.float32)).sum(-1)
  means_BN1L = means_BLN.swapaxes(1, 2)[:, :, None]
  row, tile, ids, keys, row_sums, _ = _specs(task, heads, length)
  tiles = length // TILE
  is_short = tiles <= SHORT and task.head_width <= NARROW
  grads = pl.pallas_call(
      functools.partial(_backward_row_kernel if is_short else _backward_kernel, task, heads),
      grid=(1 if is_short else tiles, rows * heads),
      in_specs=[row, row, row, ids, keys, row_sums, row_sums, row],
      out_specs=[row if is_short else tile] * 3,
      out_shape=[jax.ShapeDtypeStruct(q_BLNH.shape, q_BLNH.dtype)] * 3,
      name="flash_attention_backward",
      **_options(task, q_BLNH, products=5 if is_short else 7),
  )(q_BLNH, k_BSNH, v_BSNH, ids_BL, keys_B2, sums_BN1L, means_BN1L, g_BLNH)
  return tuple(x.reshape(q_BLD.shape) for x in grads)


def _split_heads(x_BLD, heads):
  return x_BLD.reshape(*x_BLD.shape[:2], heads, -1)


def _specs(task, heads, length):
  """Returns the blocks that a program sees: a row and a tile of [B, L, N, H], a row of ids, a row
  of dropout keys, and a row and a tile of sums [B, N, 1, L]."""
  width = task.head_width
  return (pl.BlockSpec((None, length, None, width), lambda i, n: (n // heads, 0, n % heads, 0)),
          pl.BlockSpec((None, TILE, None, width), lambda i, n: (n // heads, i, n % heads, 0)),
          pl.BlockSpec((None, length), lambda i, n: (n // heads, 0)),
          pl.BlockSpec((None, 2), lambda i, n: (n // heads, 0)),
          pl.BlockSpec((None, None, None, length), lambda i, n: (n // heads, n % heads, 0, 0)),
          pl.BlockSpec((None, None, None, TILE), lambda i, n: (n // heads, n % heads, 0, i)))


def _options(task, x_BLNH, products):
  """Returns the options of a kernel and the work that it declares, for the planner's count."""
  rows, length, heads, width = x_BLNH.shape
  weights = rows * heads * task.seen_tiles(TILE, length // TILE) * TILE ** 2
  per_weight = OPERATIONS_PER_WEIGHT[products, task.rate > 0]
  warps = 4 if width <= NARROW else 8
  return {"interpret": task.interpret,
          "compiler_params": plgpu.CompilerParams(num_warps=warps, num_stages=2),
          "metadata": {"flops": str(2 * products * weights * width),
                       "vector_operations": str(weights * per_weight)}}


# -------------------------------------------------------------------- programs


def _forward_kernel(task, heads, q_ref, k_ref, v_ref, ids_ref, keys_ref, x_ref, sums_ref):
  """Computes a tile of queries with an online softmax (Milakov and Gimelshein 2018,
  arXiv:1805.02867)."""
  i = pl.program_id(0)
  tile = functools.partial(_Tile, task, pl.program_id(1) % heads, ids_ref, keys_ref, i)
  q_LH = _scaled(task, q_ref[...])

  def add(j, carry):
    most_L, sum_L, x_LH = carry
    at = _span(j)
    here = tile(j)
    logits_LS = jnp.where(here.sees(), plgpu.dot(q_LH, k_ref[at, :].T), HIDDEN)
    next_L = jnp.maximum(most_L, logits_LS.max(1))
    weights_LS = jnp.exp(logits_LS - next_L[:, None])
    shrink_L = jnp.exp(most_L - next_L)
    sum_L = sum_L * shrink_L + weights_LS.sum(1)
    v_SH = v_ref[at, :]
    x_LH = x_LH * shrink_L[:, None] + plgpu.dot(here.drop(weights_LS).astype(v_SH.dtype), v_SH)
    return next_L, sum_L, x_LH

  zeros_L = jnp.zeros(TILE, jnp.float32)
  most_L, sum_L, x_LH = jax.lax.fori_loop(
      *task.key_tiles(i, TILE, k_ref.shape[0] // TILE), add,
      (zeros_L + HIDDEN, zeros_L, jnp.zeros(q_LH.shape, jnp.float32)))
  x_ref[...] = (x_LH / (sum_L * (1 - task.rate))[:, None]).astype(x_ref.dtype)
  sums_ref[...] = most_L + jnp.log(sum_L)


def _backward_kernel(task, heads, q_ref, k_ref, v_ref, ids_ref, keys_ref, sums_ref, means_ref,
                     g_ref, dq_ref, dk_ref, dv_ref):
  """Computes the gradients of a tile of keys and values, then those of a tile of queries."""
  mine, tiles = pl.program_id(0), k_ref.shape[0] // TILE
  differentiate = functools.partial(
      _differentiate, task, pl.program_id(1) % heads, q_ref, k_ref, v_ref, ids_ref, keys_ref,
      sums_ref, means_ref, g_ref)

  def add_queries(i, carry):
    dk_SH, dv_SH = carry
    q_LH, _, g_LH, weights_LS, dlogits_LS = differentiate(i, mine)
    return dk_SH + plgpu.dot(dlogits_LS.T, q_LH), dv_SH + plgpu.dot(weights_LS.T, g_LH)

  def add_keys(j, dq_LH):
    _, k_SH, _, _, dlogits_LS = differentiate(mine, j)
    return dq_LH + plgpu.dot(dlogits_LS, k_SH)

  kept, zeros = 1 - task.rate, jnp.zeros((TILE, q_ref.shape[1]), jnp.float32)
  dk_SH, dv_SH = jax.lax.fori_loop(*task.query_tiles(mine, TILE, tiles), add_queries,
                                   (zeros, zeros))
  dk_ref[...] = (dk_SH / kept).astype(dk_ref.dtype)
  dv_ref[...] = (dv_SH / kept).astype(dv_ref.dtype)
  dq_LH = jax.lax.fori_loop(*task.key_tiles(mine, TILE, tiles), add_keys, zeros)
  dq_ref[...] = (dq_LH * (task.scale / kept)).astype(dq_ref.dtype)


def _backward_row_kernel(task, heads, q_ref, k_ref, v_ref, ids_ref, keys_ref, sums_ref, means_ref,
                         g_ref, dq_ref, dk_ref, dv_ref):
  """Computes the gradients of a whole row."""
  tiles = k_ref.shape[0] // TILE
  kept, zeros = 1 - task.rate, jnp.zeros((TILE, q_ref.shape[1]), jnp.float32)
  dq_LH = [zeros] * tiles
  for j in range(tiles):
    dk_SH = dv_SH = zeros
    for i in range(j if task.causal else 0, tiles):
      q_LH, k_SH, g_LH, weights_LS, dlogits_LS = _differentiate(
          task, pl.program_id(1) % heads, q_ref, k_ref, v_ref, ids_ref, keys_ref, sums_ref,
          means_ref, g_ref, i, j)
      dk_SH += plgpu.dot(dlogits_LS.T, q_LH)
      dv_SH += plgpu.dot(weights_LS.T, g_LH)
      dq_LH[i] += plgpu.dot(dlogits_LS, k_SH)
    dk_ref[_span(j), :] = (dk_SH / kept).astype(dk_ref.dtype)
    dv_ref[_span(j), :] = (dv_SH / kept).astype(dv_ref.dtype)
  for i in range(tiles):
    dq_ref[_span(i), :] = (dq_LH[i] * (task.scale / kept)).astype(dq_ref.dtype)


def _differentiate(task, head, q_ref, k_ref, v_ref, ids_ref, keys_ref, sums_ref, means_ref, g_ref,
                   i, j):
  """Returns the queries of tile `i`, the keys of tile `j`, the cotangent, the weights that are kept
  and the gradients of the logits.

  The kept weights are divided by the share that is kept only after the matmuls.
  """
  here = _Tile(task, head, ids_ref, keys_ref, i, j)
  q_LH, k_SH, v_SH = _scaled(task, q_ref[_span(i), :]), k_ref[_span(j), :], v_ref[_span(j), :]
  g_LH = g_ref[_span(i), :]
  logits_LS = jnp.where(here.sees(), plgpu.dot(q_LH, k_SH.T), HIDDEN)
  weights_LS = jnp.exp(logits_LS - sums_ref[_span(i)][:, None])
  kept_LS = here.drop(weights_LS)  # One call: the compiler may compute the mask again per call.
  means_L = means_ref[_span(i)] * (1 - task.rate)
  dlogits_LS = kept_LS * plgpu.dot(g_LH, v_SH.T) - weights_LS * means_L[:, None]
  return q_LH, k_SH, g_LH, kept_LS.astype(v_SH.dtype), dlogits_LS.astype(k_SH.dtype)


def _scaled(task, q_LH):
  return q_LH * jnp.asarray(task.scale, q_LH.dtype)


def _span(i):
  """Returns the slice of tile `i`."""
  return pl.ds(i * TILE, TILE)


class _Tile:
  """The queries of tile `i` and the keys of tile `j` of a head."""

  def __init__(self, task: Task, head: Any, ids_ref: Any, keys_ref: Any, i: Any, j: Any):
    self.task, self.head, self.keys = task, head, (keys_ref[0], keys_ref[1])
    self.ids = ids_ref[_span(i)][:, None], ids_ref[_span(j)][None, :]
    at = jnp.arange(TILE)
    self.numbers = (i * TILE + at)[:, None], (j * TILE + at)[None, :]

  def sees(self):
    """Returns which keys the queries see, bool [L, S]."""
    return self.task.sees(*self.numbers, *self.ids)

  def drop(self, x_LS):
    """Returns weights with zeros in place of those that are dropped."""
    if not self.task.rate:
      return x_LS
    return jnp.where(self.task.keeps(*self.numbers, self.head, *self.keys), x_LS, 0.0)
