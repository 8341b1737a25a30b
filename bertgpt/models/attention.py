"""Attention over packed rows: one function with four kernels.

`xla` is written out in array operations and runs everywhere. The others do not store the [L, S]
array of weights; every device runs them on its own rows and heads: `cudnn` (NVIDIA) and `splash`
(TPU) come with JAX and have no dropout, `flash` is our own.

Axes: B batch, L query length, S key length, N heads, H width of a head.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from bertgpt.config import attention_kernels
from bertgpt.devices import data_parallel, sharding
from bertgpt.models import flash_attention
from bertgpt.models.cache import Cache
from bertgpt.models.dropout import drop, is_hash
from bertgpt.models.remat import SAVED

SPLASH_BLOCK = 512  # Queries and keys per step of the grid; [512, 512] float32 is 1 MB of VMEM.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
  """The keys that a query sees: the keys of its own sequence that every other field allows.

  Attributes:
    sequence_ids_BL: int32; tokens with different ids do not see each other.
    lengths_B: int32, number of tokens of every row, if each row is one sequence followed only by
      padding; the fused kernels then need no mask. None: a row may hold several sequences.
    causal: a query sees no later key.
    window: largest distance in positions at which a query sees a key (Beltagy et al. 2020,
      arXiv:2004.05150). None: any distance.
    is_global: bool scalar, whether the window is lifted in this layer. None: it is not.
  """

  sequence_ids_BL: jax.Array
  lengths_B: jax.Array | None = None
  is_global: jax.Array | np.ndarray | None = None
  causal: bool = dataclasses.field(default=False, metadata={"static": True})
  window: int | None = dataclasses.field(default=None, metadata={"static": True})

  def mask(self) -> jax.Array:
    """Returns the mask: bool [B, 1, L, L], True if query l (axis 2) sees key s (axis 3)."""
    at = jnp.arange(self.sequence_ids_BL.shape[1])
    mask_BLS = self.sequence_ids_BL[:, :, None] == self.sequence_ids_BL[:, None, :]
    if self.causal:
      mask_BLS &= at[:, None] >= at
    if self.window is not None:
      is_near_LS = abs(at[:, None] - at) <= self.window
      mask_BLS &= is_near_LS if self.is_global is None else is_near_LS | self.is_global
    return mask_BLS[:, None]


def attend(q_BLNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, visibility: Visibility, *,
           kernel: str, dropout: float, dropout_key: jax.Array | None) -> jax.Array:
  """Returns scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, 3.2.1).

  Logits and softmax are float32 for inputs of any dtype.

  Args:
    q_BLNH, k_BSNH, v_BSNH: queries, keys and values, of one dtype.
    visibility: the keys that a query sees.
    kernel: `config.model.attention`; see `attention_kernels.choose`.
    dropout: share of attention weights dropped, 0 to 1.
    dropout_key: result of `dropout.dropout_key`; None: no dropout.
  Returns:
    [B, L, N x H] of the dtype of `v_BSNH`.
  """
  dropout = 0.0 if dropout_key is None else dropout
  layer = attention_kernels.Layer(
      sharding.platform(), str(q_BLNH.dtype), q_BLNH.shape[1], q_BLNH.shape[3], dropout,
      "hash" if dropout_key is None or is_hash(dropout_key) else "", visibility.window is not None,
      sharding.compute_capability())
  name, _ = attention_kernels.choose(kernel, layer)
  return KERNELS[name](q_BLNH, k_BSNH, v_BSNH, visibility, dropout, dropout_key)


def attend_cached(q_BLNH: jax.Array, cache: Cache, positions_BL: jax.Array, window: int = 0,
                  is_global: jax.Array | np.ndarray | None = None) -> jax.Array:
  """Returns causal attention to cached tokens, for rows of one sequence each.

  Args:
    q_BLNH: queries.
    cache: cache of one layer, [B, S, N, H]; the keys and values of the queries' tokens are in it.
    positions_BL: int32, positions of the queries.
    window: largest distance at which a query sees a key; 0: any distance.
    is_global: bool scalar, whether the window is lifted. None: it is not.
  Returns:
    [B, L, N x H] of the dtype of the cache.
  """
  at_S = jnp.arange(cache.k.shape[1])
  mask_BLS = at_S <= positions_BL[:, :, None]
  if window:
    is_near_BLS = at_S >= positions_BL[:, :, None] - window
    mask_BLS &= is_near_BLS if is_global is None else is_near_BLS | is_global
  return join_heads(mix(_weigh(q_BLNH * _scale(q_BLNH), cache.k, mask_BLS[:, None]), cache.v))


# --------------------------------------------------------------------- xla


def _attend_xla(q_BLNH, k_BSNH, v_BSNH, visibility, dropout, dropout_key):
  mask_B1LS = visibility.mask()
  weights_BNLS = _weigh(q_BLNH * _scale(q_BLNH), k_BSNH, mask_B1LS)
  x_BLD = join_heads(mix(drop(weights_BNLS, dropout, dropout_key), v_BSNH))
  return checkpoint_name(x_BLD, SAVED)


@jax.custom_vjp
def mix(weights_BNLS: jax.Array, v_BSNH: jax.Array) -> jax.Array:
  """Returns the values weighted by attention, [B, L, N, H].

  Args:
    weights_BNLS: attention weights.
    v_BSNH: values, which are saved for the backward pass.
  """
  return jnp.einsum("BNLS,BSNH->BLNH", weights_BNLS, v_BSNH)


def _mix_forward(weights_BNLS, v_BSNH):
  return mix(weights_BNLS, v_BSNH), (weights_BNLS, checkpoint_name(v_BSNH, SAVED))


def _mix_backward(kept, g_BLNH):
  weights_BNLS, v_BSNH = kept
  return (jnp.einsum("BLNH,BSNH->BNLS", g_BLNH, v_BSNH),
          jnp.einsum("BNLS,BLNH->BSNH", weights_BNLS, g_BLNH))


mix.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def _weigh(q_BLNH: jax.Array, k_BSNH: jax.Array, mask_B1LS: jax.Array) -> jax.Array:
  """Returns attention weights [B, N, L, S], computed in float32, in the dtype of the arguments.

  In bfloat16, JAX's own derivative would multiply `q` and `k` by a float32 cotangent, at the speed
  of float32, and save the weights twice, in both precisions, as well as the mask. Here all matmuls
  are in bfloat16, and the weights are saved for the backward pass only once.
  """
  logits_BNLS = jnp.einsum("BLNH,BSNH->BNLS", q_BLNH, k_BSNH, preferred_element_type=jnp.float32)
  weights_BNLS = jax.nn.softmax(jnp.where(mask_B1LS, logits_BNLS, -1e30), axis=-1)
  return weights_BNLS.astype(q_BLNH.dtype)


def _weigh_forward(q_BLNH, k_BSNH, mask_B1LS):
  weights_BNLS = checkpoint_name(_weigh(q_BLNH, k_BSNH, mask_B1LS), SAVED)
  return weights_BNLS, (*checkpoint_name((q_BLNH, k_BSNH), SAVED), weights_BNLS)


def _weigh_backward(kept, g_BNLS):
  q_BLNH, k_BSNH, weights_BNLS = kept
  weights_BNLS = weights_BNLS.astype(jnp.float32)
  g_BNLS = weights_BNLS * g_BNLS
  g_BNLS = (g_BNLS - weights_BNLS * g_BNLS.sum(-1, keepdims=True)).astype(q_BLNH.dtype)
  return (jnp.einsum("BNLS,BSNH->BLNH", g_BNLS, k_BSNH),
          jnp.einsum("BNLS,BLNH->BSNH", g_BNLS, q_BLNH), None)


_weigh.defvjp(_weigh_forward, _weigh_backward)


def join_heads(x_BLNH: jax.Array) -> jax.Array:
  """Returns the features of all heads next to each other, [B, L, N x H]."""
  return x_BLNH.reshape(*x_BLNH.shape[:2], -1)


def _scale(q_BLNH):
  return jnp.asarray(q_BLNH.shape[-1] ** -0.5, q_BLNH.dtype)


# ------------------------------------------------------- kernels on one device


def _attend_flash(q_BLNH, k_BSNH, v_BSNH, visibility, dropout, dropout_key):
  key_data = dropout_key if dropout else None
  attend_all, attend_near = (functools.partial(
      flash_attention.attend, ids_BL=visibility.sequence_ids_BL, causal=visibility.causal,
      window=window, rate=dropout, key_data=key_data) for window in (None, visibility.window))
  return _attend_either(attend_all, attend_near, visibility.is_global, q_BLNH, k_BSNH, v_BSNH)


def _attend_without_dropout(attend_part, q_BLNH, k_BSNH, v_BSNH, visibility, *_):
  """Computes one of the kernels of JAX on the rows and heads of every device."""
  axes = ("batch", None, "heads", None)
  arrays, rebuild = jax.tree.flatten(visibility)
  x_BLNH = sharding.map_shards(
      lambda q, k, v, *parts, names: attend_part(q, k, v, jax.tree.unflatten(rebuild, parts)),
      [axes, axes, axes, *(("batch", None)[:x.ndim] for x in arrays)], axes,
      q_BLNH, k_BSNH, v_BSNH, *arrays)
  return join_heads(x_BLNH)


def _attend_cudnn(q_BLNH, k_BSNH, v_BSNH, visibility):
  """Computes cuDNN's flash attention; without a GPU, XLA computes the same (for tests)."""
  q_BLNH, k_BSNH, v_BSNH = checkpoint_name((q_BLNH, k_BSNH, v_BSNH), SAVED)
  limits: dict[str, jax.Array] = {}
  if visibility.lengths_B is None or (visibility.window and not visibility.causal):
    limits["mask"] = dataclasses.replace(visibility, causal=False).mask()
    if data_parallel.is_mapped():
      # JAX's rule for vmap assumes that every head has a mask of its own.
      shape = (*limits["mask"].shape[:1], q_BLNH.shape[2], *limits["mask"].shape[2:])
      limits["mask"] = jnp.broadcast_to(limits["mask"], shape)
  elif not visibility.causal:  # A causal query before the padding sees none of it.
    # At least one key, because a softmax over no keys is NaN.
    lengths_B = jnp.maximum(visibility.lengths_B, 1)
    limits = {"query_seq_lengths": lengths_B, "key_value_seq_lengths": lengths_B}
  attend_all = functools.partial(
      jax.nn.dot_product_attention, **limits, is_causal=visibility.causal,
      implementation="cudnn" if sharding.platform() == "gpu" else "xla")
  if visibility.window is None or "mask" in limits:
    return attend_all(q_BLNH, k_BSNH, v_BSNH)
  attend_near = functools.partial(attend_all, local_window_size=(visibility.window, 0))
  return _attend_either(attend_all, attend_near, visibility.is_global, q_BLNH, k_BSNH, v_BSNH)


def _attend_splash(q_BLNH, k_BSNH, v_BSNH, visibility):
  """Computes splash attention, interpreted if there is no TPU (slow, for tests)."""
  _, length, heads, width = q_BLNH.shape
  ids_BL, window = visibility.sequence_ids_BL, visibility.window

  sizes, ahead = _block_sizes(length, width), 0 if visibility.causal else length

  def attend_by(static_mask, reach, *qkv):
    attend_row = splash.make_splash_mha(
        splash_mask.MultiHeadMask([static_mask] * heads), block_sizes=sizes,
        head_shards=1, q_seq_shards=1, residual_checkpoint_name=SAVED,
        interpret=sharding.platform() == "cpu")
    with jax.named_scope(splash_name(length, sizes.block_q, reach, min(reach, ahead))):
      return jax.vmap(attend_row)(*qkv, splash.SegmentIds(ids_BL, ids_BL))

  make_static_mask = splash_mask.CausalMask if visibility.causal else splash_mask.FullMask
  attend_all = functools.partial(attend_by, make_static_mask((length, length)), length)
  qkv = [x.swapaxes(1, 2) for x in (q_BLNH * _scale(q_BLNH), k_BSNH, v_BSNH)]
  qkv = checkpoint_name(qkv, SAVED)
  if window is None:
    return attend_all(*qkv).swapaxes(1, 2)
  # Blocks of keys that no query of a block sees are skipped.
  near = splash_mask.LocalMask((length, length), (window, min(window, ahead)), 0)
  attend_near = functools.partial(attend_by, near, window)
  return _attend_either(attend_all, attend_near, visibility.is_global, *qkv).swapaxes(1, 2)


def _attend_either(attend_all, attend_near, is_global, *qkv):
  """Computes attention to all keys in a global layer, and to those of the window in others."""
  if is_global is None:
    return attend_near(*qkv)
  return jax.lax.cond(is_global, attend_all, attend_near, *qkv)


def splash_name(length: int, block: int, behind: int, ahead: int) -> str:
  """Returns 'splash_3_of_4_blocks' for a kernel that visits three of four blocks.

  Profiles and compiled programs show it; `planning` reads it, for they hide the work otherwise.

  Args:
    length: tokens per row.
    block: tokens per block.
    behind, ahead: how far before and after its position a query sees keys.
  """
  starts = np.arange(0, length, block)
  offsets = starts - starts[:, None]  # Of the first key of a block from the first query.
  is_visited = (offsets + block > -behind) & (offsets - block < ahead)
  return f"splash_{is_visited.sum()}_of_{is_visited.size}_blocks"


def _block_sizes(length: int, width: int) -> splash.BlockSizes:
  """Returns the largest blocks that divide the length.

  One kernel computes all three gradients: five matmuls per block instead of seven. The last
  dimension in memory is padded to 128, so the head dimension of narrower heads comes before the
  length: with heads of width 64 and rows of 512, this saves a sixth of the bytes that the layer
  moves on a TPU v5e.
  """
  block = next(b for b in range(min(length, SPLASH_BLOCK), 0, -128) if length % b == 0)
  layout = splash.QKVLayout.SEQ_MINOR if width % 128 else splash.QKVLayout.HEAD_DIM_MINOR
  return splash.BlockSizes(block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
                           use_fused_bwd_kernel=True, q_layout=layout, k_layout=layout,
                           v_layout=layout)


# Name -> (queries, keys, values, visibility, share of dropped weights, key of the dropout) -> the
# result of `attend`.
KERNELS: dict[str, Callable[..., jax.Array]] = {
    "xla": _attend_xla,
    "cudnn": functools.partial(_attend_without_dropout, _attend_cudnn),
    "splash": functools.partial(_attend_without_dropout, _attend_splash),
    "flash": _attend_flash,
}
