"""Flash attention with dropout: no array of queries x keys is in memory, forward or backward.

The softmax is computed tile by tile, and again in the backward pass (Dao et al. 2022,
arXiv:2205.14135; Dao 2023, arXiv:2307.08691). The kernels drop exactly the weights that the plain
path drops: the mask of `dropout.drop` is a function of the weight's index, so the kernels compute
it themselves and neither read nor write it.

Axes: B rows, L queries, S keys, N heads, H width of a head, D = N x H.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bertgpt.config.attention_kernels import FLASH_TILE
from bertgpt.devices import data_parallel, sharding
from bertgpt.models import dropout, flash_gpu, flash_tpu
from bertgpt.models.flash_tiles import Task
from bertgpt.models.remat import SAVED

TILE = FLASH_TILE  # Rows are padded to a multiple of this length.
KERNELS: dict[str, Any] = {"tpu": flash_tpu, "gpu": flash_gpu, "cpu": flash_tpu}  # By platform.

# Logical axes; see `sharding.map_shards`.
_BLNH, _BLD, _BL = ("batch", None, "heads", None), ("batch", None, "heads"), ("batch", None)
_SUMS = ("batch", "heads", None, None)
_ARGUMENTS = [_BLNH, _BLNH, _BLNH, _BL, (None,), ("batch",)]


def attend(q_BLNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, ids_BL: jax.Array, *,
           causal: bool, window: int | None, rate: float, key_data: jax.Array | None) -> jax.Array:
  """Returns the attention, [B, L, D]; every device computes that of its rows and heads.

  Args:
    q_BLNH, k_BSNH, v_BSNH: queries, keys and values, of one dtype.
    ids_BL: int32, ids of sequences, at least 0; tokens with different ids do not see each other.
    causal, window: as in `attention.Visibility`.
    rate: share of the weights that is dropped.
    key_data: uint32 [2], of the key of the dropout mask; None: nothing is dropped.
  """
  length, width = q_BLNH.shape[1], q_BLNH.shape[3]
  task = Task(length, width, width ** -0.5, causal, window, 0.0 if key_data is None else rate,
              interpret=sharding.platform() == "cpu")
  key_data = jnp.zeros(2, jnp.uint32) if key_data is None else key_data
  rows_B = data_parallel.batch_rows(q_BLNH.shape[0])
  return _attend(task, q_BLNH, k_BSNH, v_BSNH, ids_BL, key_data, rows_B)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(task, *args):
  return _attend_forward(task, *args)[0]


def _attend_forward(task, *args):
  # The result is saved for the backward pass in this shape, in which the output projection saves it
  # too. A loop over layers would store a reshaped copy as a second array.
  x_BLD, sums_BN1L = checkpoint_name(sharding.map_shards(
      functools.partial(_forward, task), _ARGUMENTS, (_BLD, _SUMS), *args), SAVED)
  qkv, others = checkpoint_name([_join_heads(x) for x in args[:3]], SAVED), args[3:]
  return x_BLD, (*qkv, *others, x_BLD, sums_BN1L)


def _attend_backward(task, kept, g_BLD):
  kept = (*(x.reshape(*x.shape[:2], -1, task.head_width) for x in kept[:3]), *kept[3:])
  grads = sharding.map_shards(
      functools.partial(_backward, task), [*_ARGUMENTS, _BLD, _SUMS, _BLD], (_BLNH,) * 3,
      *kept, g_BLD)
  return (*grads, None, None, None)


_attend.defvjp(_attend_forward, _attend_backward)


# ---------------------------------------------------------------- on one device


def _forward(task, q_BLNH, k_BSNH, v_BSNH, ids_BL, key_data, rows_B, names):
  qkv = [_pad(_join_heads(x)) for x in (q_BLNH, k_BSNH, v_BSNH)]
  keys_B2 = _row_keys(task, key_data, rows_B, q_BLNH.shape[2], names)
  forward = KERNELS[sharding.platform()].forward
  x_BLD, sums_BN1L = forward(task, *qkv, _pad(ids_BL, -1), keys_B2)
  return _cut(x_BLD, q_BLNH), sums_BN1L


def _backward(task, q_BLNH, k_BSNH, v_BSNH, ids_BL, key_data, rows_B, x_BLD, sums_BN1L, g_BLD,
              names):
  qkv = [_pad(_join_heads(x)) for x in (q_BLNH, k_BSNH, v_BSNH)]
  keys_B2 = _row_keys(task, key_data, rows_B, q_BLNH.shape[2], names)
  backward = KERNELS[sharding.platform()].backward
  grads = backward(task, *qkv, _pad(ids_BL, -1), keys_B2, _pad(x_BLD), sums_BN1L, _pad(g_BLD))
  return tuple(_cut(x, q_BLNH).reshape(q_BLNH.shape) for x in grads)


def _row_keys(task: Task, key_data: jax.Array, rows_B: jax.Array, heads: int,
              names: Any) -> jax.Array:
  """Returns the dropout keys of this device's rows and heads, uint32 [B, 2].

  Heads are numbered over all devices, and rows in the whole batch, so the mask does not depend on
  the mesh.
  """
  first_B, second_B = dropout.row_keys(key_data, rows_B)
  # The index of an element in its row starts with the index of its head, and wraps at 2**32.
  first_B += sharding.shard_index(names["heads"]) * jnp.uint32(heads * task.length**2 % 2**32)
  return jnp.stack([first_B, second_B], axis=1)


def _join_heads(x_BLNH):
  return x_BLNH.reshape(*x_BLNH.shape[:2], -1)


def _pad(x, fill=0):
  """Returns an array whose length is padded to a multiple of `TILE`; its lanes are padded too, if
  they fill more than one tile."""
  padding = [-x.shape[1] % TILE, *(-size % TILE if size > TILE else 0 for size in x.shape[2:])]
  if not any(padding):
    return x
  return jnp.pad(x, [(0, 0), *((0, size) for size in padding)], constant_values=fill)


def _cut(x_BLD, q_BLNH):
  """Returns an array without its padding."""
  _, length, heads, width = q_BLNH.shape
  return x_BLD[:, :length, :heads * width]
