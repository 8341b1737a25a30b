"""Flash attention for TPUs (Pallas, Mosaic): the kernels of one device; see `flash_attention`.

Heads lie next to each other in the lanes, as the dense layers write them, so that no array is
transposed in memory. A program of the grid computes some rows and some heads. Tiles of weights have
their keys in sublanes and their queries in lanes: sums over keys are then sums of registers, and a
statistic of the queries is a row. Narrow heads share a chunk of 128 lanes; the lanes of the other
heads are set to zero, which costs nothing, as the matrix unit pads its operands to 128 lanes.

Axes: B rows, L queries, S keys, D lanes of all heads, C lanes of a chunk, H lanes of a head,
N heads.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bertgpt.models.flash_tiles import HIDDEN, Task

LANES = 128
TILE = 512  # Queries and keys of a tile at most; [512, 512] float32 is 1 MB of VMEM.
MAX_ROWS = 8

# VMEM of a kernel: two copies of a program's blocks, and the values of a tile, about ten of which
# are live at once. A long row may need more than the default (16 MB).
VMEM_BYTES = 15 * 2**20
TILES_ALIVE = 10
VMEM_LIMIT = 64 * 2**20

# Operations of the vector units per weight: cycles in the compiler's schedule for TPU v5e, times
# 4 x 1,024 operations per cycle and the share of them in `hardware.TPU`.
# {(is backward, has dropout): ((smallest tile, operations), ...)}.
OPERATIONS_PER_WEIGHT = {
    (False, False): ((0, 26), (512, 12)), (False, True): ((0, 34), (512, 24)),
    (True, False): ((0, 42), (512, 21)), (True, True): ((0, 49), (512, 34)),
}


class Grid(NamedTuple):
  """How a kernel is divided into programs.

  Attributes:
    rows: rows of a program.
    lanes: lanes of a program: one or more chunks.
    chunk: lanes of a chunk: one or more heads.
    tile: queries and keys of a tile.
    tiles: tiles along the length.
    programs: programs along the rows and along the lanes.
  """

  rows: int
  lanes: int
  chunk: int
  tile: int
  tiles: int
  programs: tuple[int, int]


def make_grid(task: Task, x: Any, arrays: int) -> Grid:
  """Returns the grid of a kernel.

  Args:
    task: the attention that the kernel computes.
    x: an argument of the kernel, [B, L, D], with a length that is a multiple of 128.
    arrays: number of the kernel's arguments and results of that shape.
  """
  rows, length, width = x.shape
  chunk = min(width, max(task.head_width, LANES))
  chunks = width // chunk
  tile = next(n for n in range(min(length, TILE), 0, -LANES) if length % n == 0)
  vmem_bytes = VMEM_BYTES - TILES_ALIVE * 4 * tile**2
  bytes_per_chunk = 2 * arrays * length * chunk * x.dtype.itemsize
  count = max((n for n in range(1, chunks + 1)
               if chunks % n == 0 and n * bytes_per_chunk <= vmem_bytes), default=1)
  most_rows = min(MAX_ROWS, vmem_bytes // (count * bytes_per_chunk))
  num_rows = max((n for n in range(1, most_rows + 1) if rows % n == 0), default=1)
  return Grid(num_rows, count * chunk, chunk, tile, length // tile,
              (rows // num_rows, chunks // count))


def forward(task: Task, q_BLD: jax.Array, k_BSD: jax.Array, v_BSD: jax.Array, ids_BL: jax.Array,
            keys_B2: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the attention [B, L, D] and the log-sum-exp of its logits, float32 [B, N, 1, L].

  The arguments are those of `flash_attention`.
  """
  rows, length, width = q_BLD.shape
  grid = make_grid(task, q_BLD, arrays=4)
  block, ids, keys, sums = _specs(task, grid, length)
  sums_BN1L = jax.ShapeDtypeStruct((rows, width // task.head_width, 1, length), jnp.float32)
  return pl.pallas_call(
      functools.partial(_forward_kernel, task, grid), grid=grid.programs,
      in_specs=[block, block, block, ids, keys], out_specs=[block, sums],
      out_shape=[jax.ShapeDtypeStruct(q_BLD.shape, q_BLD.dtype), sums_BN1L],
      name="flash_attention_forward", **_options(task, grid, q_BLD, products=2),
  )(q_BLD, k_BSD, v_BSD, ids_BL[:, None], keys_B2)


def backward(task: Task, q_BLD: jax.Array, k_BSD: jax.Array, v_BSD: jax.Array, ids_BL: jax.Array,
             keys_B2: jax.Array, x_BLD: jax.Array, sums_BN1L: jax.Array,
             g_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the gradients of queries, keys and values, [B, L, D].

  The arguments are those of `flash_attention`, the results of `forward` and the cotangent.
  """
  length = q_BLD.shape[1]
  grid = make_grid(task, q_BLD, arrays=8)
  block, ids, keys, sums = _specs(task, grid, length)
  return pl.pallas_call(
      functools.partial(_backward_kernel, task, grid), grid=grid.programs,
      in_specs=[block, block, block, ids, keys, block, sums, block], out_specs=[block] * 3,
      out_shape=[jax.ShapeDtypeStruct(q_BLD.shape, q_BLD.dtype)] * 3,
      scratch_shapes=[pltpu.VMEM((grid.chunk, length), jnp.float32)],
      name="flash_attention_backward", **_options(task, grid, q_BLD, products=5),
  )(q_BLD, k_BSD, v_BSD, ids_BL[:, None], keys_B2, x_BLD, sums_BN1L, g_BLD)


def _options(task, grid, x_BLD, products):
  """Returns the options of a kernel and the work that it declares, for the planner's count."""
  rows, length, width = x_BLD.shape
  heads = width // task.head_width
  weights = rows * heads * task.seen_tiles(grid.tile, grid.tiles) * grid.tile ** 2
  arrays = 4 if products == 2 else 8
  operations = dict(OPERATIONS_PER_WEIGHT[products == 5, task.rate > 0])
  per_weight = operations[max(tile for tile in operations if tile <= grid.tile)]
  return {
      "interpret": task.interpret,
      "compiler_params": pltpu.CompilerParams(
          dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT),
      "cost_estimate": pl.CostEstimate(
          flops=2 * products * weights * task.head_width, transcendentals=weights,
          bytes_accessed=arrays * x_BLD.size * x_BLD.dtype.itemsize
          + 4 * rows * length * (heads + 1)),
      "metadata": {"vector_operations": str(weights * per_weight)}}


def _specs(task, grid, length):
  """Returns the blocks of arrays [B, L, D], of ids, of dropout keys and of log-sum-exps."""
  heads = grid.lanes // task.head_width
  return (pl.BlockSpec((grid.rows, length, grid.lanes), lambda b, d: (b, 0, d)),
          pl.BlockSpec((grid.rows, 1, length), lambda b, d: (b, 0, 0)),
          pl.BlockSpec(memory_space=pltpu.SMEM),
          pl.BlockSpec((grid.rows, heads, 1, length), lambda b, d: (b, d, 0, 0)))


# ------------------------------------------------------------------- a program


def _forward_kernel(task, grid, q_ref, k_ref, v_ref, ids_ref, keys_ref, x_ref, sums_ref):
  """Computes a block of rows and lanes."""

  def do_part(part):
    _loop(0, grid.tiles, lambda i, _: _attend(part, i, q_ref, k_ref, v_ref, x_ref, sums_ref))

  _for_each_part(task, grid, ids_ref, keys_ref, do_part)


def _attend(part, i, q_ref, k_ref, v_ref, x_ref, sums_ref):
  """Computes the queries of tile `i` with an online softmax (Milakov and Gimelshein 2018,
  arXiv:1805.02867)."""
  task, grid = part.task, part.grid
  q_LC = part.load(q_ref, i)
  q_NLC = part.split(q_LC * jnp.asarray(task.scale, q_LC.dtype))

  def add(j, carry):
    k_SC, v_CS = part.load(k_ref, j), part.load(v_ref, j).T
    sees_SL = part.sees(i, j)
    new = []
    for n, (most_1L, sum_1L, x_HL) in enumerate(carry):
      logits_SL = jnp.where(sees_SL, _dot(k_SC, q_NLC[n], (1, 1)), HIDDEN)
      next_1L = jnp.maximum(most_1L, logits_SL.max(0, keepdims=True))
      weights_SL = jnp.exp(logits_SL - next_1L)
      shrink_1L = jnp.exp(most_1L - next_1L)
      sum_1L = sum_1L * shrink_1L + weights_SL.sum(0, keepdims=True)
      weights_SL = part.drop(weights_SL, part.keeps(n, i, j)).astype(v_CS.dtype)
      x_HL = x_HL * shrink_1L + _dot(v_CS[part.lanes_of(n)], weights_SL, (1, 0))
      new.append((next_1L, sum_1L, x_HL))
    return new

  row_1L = jnp.zeros((1, grid.tile), jnp.float32)
  start = (row_1L + HIDDEN, row_1L, jnp.zeros((task.head_width, grid.tile), jnp.float32))
  done = _loop(*task.key_tiles(i, grid.tile, grid.tiles), add, [start] * part.heads)
  kept = 1 - task.rate
  x_CL = jnp.concatenate([x_HL * (1 / (sum_1L * kept)) for _, sum_1L, x_HL in done])
  part.store(x_ref, i, x_CL.T)
  for n, (most_1L, sum_1L, _) in enumerate(done):
    sums_ref[part.row, part.first_head + n, :, part.span(i)] = most_1L + jnp.log(sum_1L)


def _backward_kernel(task, grid, q_ref, k_ref, v_ref, ids_ref, keys_ref, x_ref, sums_ref, g_ref,
                     dq_ref, dk_ref, dv_ref, dq_CL_ref):
  """Computes the gradients of a block of rows and lanes: five matmuls per tile."""

  def do_part(part):
    dq_CL_ref[...] = jnp.zeros_like(dq_CL_ref)
    _loop(0, grid.tiles, lambda j, _: _differentiate(
        part, j, q_ref, k_ref, v_ref, x_ref, sums_ref, g_ref, dk_ref, dv_ref, dq_CL_ref))
    _loop(0, grid.tiles, lambda i, _: part.store(
        dq_ref, i, dq_CL_ref[:, part.span(i)].T * (task.scale / (1 - task.rate))))

  _for_each_part(task, grid, ids_ref, keys_ref, do_part)


def _differentiate(part, j, q_ref, k_ref, v_ref, x_ref, sums_ref, g_ref, dk_ref, dv_ref,
                   dq_CL_ref):
  """Computes the gradients of the keys and values of tile `j`, and adds to those of the queries.

  The kept weights are divided by the share that is kept only after the matmuls.
  """
  task, grid = part.task, part.grid
  kept = 1 - task.rate
  k_SC, v_SC = part.load(k_ref, j), part.load(v_ref, j)
  k_CS = k_SC.T

  def add(i, carry):
    dk_SC, dv_SC = carry
    q_LC, g_LC = part.load(q_ref, i), part.load(g_ref, i)
    x_LC = part.load(x_ref, i).astype(jnp.float32)
    dots_CL = (g_LC.astype(jnp.float32) * x_LC).T
    q_NLC, g_NLC = part.split(q_LC * jnp.asarray(task.scale, q_LC.dtype)), part.split(g_LC)
    sees_SL = part.sees(i, j)
    dq_NHL = []
    for n in range(part.heads):
      logits_SL = jnp.where(sees_SL, _dot(k_SC, q_NLC[n], (1, 1)), HIDDEN)
      weights_SL = jnp.exp(
          logits_SL - sums_ref[part.row, part.first_head + n, :, part.span(i)])
      keeps_SL = part.keeps(n, i, j)
      dweights_SL = part.drop(_dot(v_SC, g_NLC[n], (1, 1)), keeps_SL)
      mean_1L = dots_CL[part.lanes_of(n)].sum(0, keepdims=True) * kept
      dlogits_SL = (weights_SL * (dweights_SL - mean_1L)).astype(k_SC.dtype)
      dv_SC = dv_SC + _dot(part.drop(weights_SL, keeps_SL).astype(v_SC.dtype), g_NLC[n], (1, 0))
      dk_SC = dk_SC + _dot(dlogits_SL, q_NLC[n], (1, 0))
      dq_NHL.append(_dot(k_CS[part.lanes_of(n)], dlogits_SL, (1, 0)))
    dq_CL_ref[:, part.span(i)] += jnp.concatenate(dq_NHL)
    return dk_SC, dv_SC

  zeros_SC = jnp.zeros((grid.tile, grid.chunk), jnp.float32)
  dk_SC, dv_SC = _loop(*task.query_tiles(j, grid.tile, grid.tiles), add, (zeros_SC, zeros_SC))
  part.store(dk_ref, j, dk_SC * (1 / kept))
  part.store(dv_ref, j, dv_SC * (1 / kept))


# ----------------------------------------------------- one row and chunk of lanes


class _Part(NamedTuple):
  """One row and one chunk of lanes of a program.

  Attributes:
    task: the attention that is computed.
    grid: how the kernel is divided.
    ids_ref: int32 [rows, 1, S], ids of sequences.
    keys: uint32 scalars, the dropout keys of the row.
    head: index of the first head of the chunk, on this device.
    row: index of the row in the program.
    chunk: index of the chunk in the program.
  """

  task: Task
  grid: Grid
  ids_ref: Any
  keys: tuple[jax.Array, jax.Array]
  head: Any
  row: Any
  chunk: int

  @property
  def heads(self) -> int:
    """Heads of a chunk."""
    return self.grid.chunk // self.task.head_width

  @property
  def first_head(self) -> int:
    """Index of the first head of the chunk, in the program."""
    return self.chunk * self.heads

  def span(self, i):
    """Returns the slice of tile `i`."""
    start = i * self.grid.tile
    return pl.ds(start if isinstance(i, int) else pl.multiple_of(start, self.grid.tile),
                 self.grid.tile)

  def lanes_of(self, n):
    """Returns the lanes of head `n` of the chunk."""
    return slice(n * self.task.head_width, (n + 1) * self.task.head_width)

  def _lanes(self):
    return slice(self.chunk * self.grid.chunk, (self.chunk + 1) * self.grid.chunk)

  def load(self, ref, i):
    """Returns tile `i` of an array."""
    return ref[self.row, self.span(i), self._lanes()]

  def store(self, ref, i, x_LC):
    """Writes tile `i` of an array."""
    ref[self.row, self.span(i), self._lanes()] = x_LC.astype(ref.dtype)

  def split(self, x_LC):
    """Returns one array per head of the chunk, with zeros in the lanes of the others."""
    if self.heads == 1:
      return [x_LC]
    lane = jax.lax.broadcasted_iota(jnp.int32, x_LC.shape, 1)
    lanes = [self.lanes_of(n) for n in range(self.heads)]
    return [jnp.where((at.start <= lane) & (lane < at.stop), x_LC, jnp.zeros_like(x_LC))
            for at in lanes]

  def sees(self, i, j):
    """Returns which keys of tile `j` the queries of tile `i` see, bool [S, L]."""
    ids_1L, ids_1S = (self.ids_ref[self.row, :, self.span(t)] for t in (i, j))
    ids_SL = jnp.broadcast_to(ids_1S, (self.grid.tile,) * 2).T
    return self.task.sees(*self._numbers(i, j), ids_1L, ids_SL)

  def keeps(self, n, i, j):
    """Returns which weights of head `n` of the chunk are not dropped, bool [S, L]."""
    if not self.task.rate:
      return None
    return self.task.keeps(*self._numbers(i, j), self.head + n, *self.keys)

  def drop(self, x_SL, keeps_SL):
    """Returns weights with zeros in place of those that are dropped."""
    return x_SL if keeps_SL is None else jnp.where(keeps_SL, x_SL, 0.0)

  def _numbers(self, i, j):
    tile = self.grid.tile
    return (i * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 1),
            j * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, tile), 0))


def _for_each_part(task: Task, grid: Grid, ids_ref: Any, keys_ref: Any, function: Callable) -> None:
  """Calls `function` with every row and chunk of lanes of a program."""
  heads = grid.chunk // task.head_width
  chunks = grid.lanes // grid.chunk
  # Outside the loop, because the interpreter supports program_id only there.
  first_row, first_head = pl.program_id(0) * grid.rows, pl.program_id(1) * (chunks * heads)

  def do_row(row, _):
    keys = keys_ref[first_row + row, 0], keys_ref[first_row + row, 1]
    for chunk in range(chunks):
      function(_Part(task, grid, ids_ref, keys, first_head + chunk * heads, row, chunk))

  _loop(0, grid.rows, do_row)


def _loop(first: Any, end: Any, body: Callable, carry: Any = None) -> Any:
  """Returns the carry after `carry = body(i, carry)` for every i."""
  if isinstance(first, int) and isinstance(end, int) and end == first + 1:
    return body(first, carry)
  return jax.lax.fori_loop(first, end, body, carry)


def _dot(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
  """Returns the matmul that contracts an axis of `x` with one of `y`, in float32."""
  return jax.lax.dot_general(x, y, (((axes[0],), (axes[1],)), ((), ())),
                             preferred_element_type=jnp.float32)
