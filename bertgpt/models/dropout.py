"""Dropout (Srivastava et al. 2014), active only if the caller passes an RNG named 'dropout'.

There are three generators (`config.model.dropout_rng`). `hash` computes the mask of every element
from the element's index and two words of a threefry key. It takes a dozen integer operations, which
XLA fuses with their neighbors. The mask is never in memory, because the backward pass computes it
again. It is split over devices like any other arithmetic. Rows are numbered in the whole batch, so
the mask is the same on every mesh and for every number of micro-batches. `threefry` and `rbg` are
JAX's generators: they write an array of bits, and the mask is saved for the backward pass.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bertgpt.devices import data_parallel
from bertgpt.models.remat import gpu_barrier


def drop(x: jax.Array, rate: float, key: jax.Array | None, is_shared: bool = False) -> jax.Array:
  """Drops elements at random (inverted dropout).

  Args:
    x: [B, ...].
    rate: share of the elements that become 0; the others are divided by 1 - rate. One per run
      (`training.per_run`) if several runs are one program.
    key: a JAX key, or uint32 [2], the words of a `hash` mask, as `dropout_key` returns them. None:
      nothing is dropped.
    is_shared: whether all replicas hold the same array, instead of their own rows.
  Returns:
    [B, ...] of the dtype of `x`.
  """
  if key is None or rate == 0:
    return x
  if is_hash(key):
    rows = x.shape[0]
    rows_B = jnp.arange(rows, dtype=jnp.uint32) if is_shared else data_parallel.batch_rows(rows)
    if isinstance(rate, float):
      return _drop_by_hash(x, key, rows_B, rate)
    # The constants of a custom derivative cannot differ between runs. This one saves the mask.
    limit = jnp.asarray(round(rate * 2**32)).astype(jnp.uint32)
    return _scale(x, hash_bits(key, rows_B, x.shape) >= limit, rate)
  if not is_shared:
    key = jax.random.fold_in(key, data_parallel.replica_index())
  return _scale(x, jax.random.bernoulli(key, jnp.asarray(1 - rate), x.shape), rate)


def is_hash(key: jax.Array) -> bool:
  """Returns whether the result of `dropout_key` holds the two words of a `hash` mask."""
  return not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def dropout_key(module: nn.Module) -> jax.Array | None:
  """Returns a key for this call of a module, or None if dropout is off.

  Args:
    module: has `config.dropout_rng`.
  Returns:
    A JAX key; with the generator `hash` its two words, uint32 [2].
  """
  if not module.has_rng("dropout"):
    return None
  key = module.make_rng("dropout")
  return jax.random.key_data(key) if module.config.dropout_rng == "hash" else key


def _scale(x, keep, rate):
  # In float32, as 1 / 0.9 in bfloat16 is 0.2% too small.
  return jnp.where(keep, x.astype(jnp.float32) / (1 - rate), 0).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _drop_by_hash(x, key_data, rows_B, rate):
  return _scale(x, hash_bits(key_data, rows_B, x.shape) >= threshold(rate), rate)


def _drop_forward(x, key_data, rows_B, rate):
  return _drop_by_hash(x, key_data, rows_B, rate), (key_data, rows_B)


def _drop_backward(rate, mask, g):
  g, mask_now = gpu_barrier((g, mask))
  return _drop_by_hash(g, *mask_now, rate), *(np.zeros(x.shape, jax.dtypes.float0) for x in mask)


_drop_by_hash.defvjp(_drop_forward, _drop_backward)


def threshold(rate: float) -> np.uint32:
  """Returns the smallest hash with which an element is kept.

  Args:
    rate: share of the elements that are dropped, below 1.
  """
  return np.uint32(round(rate * 2**32))


def hash_bits(key_data: jax.Array, rows_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns bits that look random, a function of the row, the index in it, and two words.

  Every row (first axis) has a key of its own, so that rows of up to 2^32 elements do not repeat
  each other.

  Args:
    key_data: uint32 [2].
    rows_B: uint32, indices of the rows in the whole batch.
    shape: shape of the array, [B, ...].
  Returns:
    uint32 [shape].
  """
  row = rows_B.reshape(-1, *[1] * (len(shape) - 1))
  place = functools.reduce(
      lambda place, axis: place * np.uint32(shape[axis])
      + jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), axis),
      range(1, len(shape)), jnp.zeros((1, *shape[1:]), jnp.uint32))
  return bits_of_places(place, *row_keys(key_data, row))


def row_keys(key_data: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the two keys of rows, for `bits_of_places`.

  Args:
    key_data: uint32 [2].
    row: uint32, indices of rows.
  Returns:
    Two arrays, uint32, of the shape of `row`.
  """
  row_key = _mix(_mix(row + key_data[0]) ^ key_data[1])
  return row_key, row_key * np.uint32(0x9E3779B9) + key_data[1]


def bits_of_places(place: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the bits of elements of a row, uint32.

  Args:
    place: uint32, index of every element in its row.
    first, second: keys of the row; a result of `row_keys`.
  """
  return _mix(_mix(place + first) ^ second)


def _mix(x: jax.Array) -> jax.Array:
  """Mixes bits: a bijection with little bias (C. Wellons, hash-prospector, 'lowbias32', 2018)."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
