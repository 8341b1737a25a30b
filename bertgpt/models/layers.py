"""The transformer stack under both families.

Axes: B batch, L length, D width, N heads, H width of a head, F width of the MLP.

Every matrix is stored [in, out] in float32; layers are stacked on a leading axis and
scanned. Dropout is on exactly when the caller passes a 'dropout' generator.

| parameter                         | initial value                                       |
|-----------------------------------|-----------------------------------------------------|
| kernels, token, segment embedding | normal(0, init_std), or truncated at two deviations |
| position embedding                | the same with position_init_std, or `init_sinusoid` |
| attention/out, mlp/down kernels   | with `scale_residual_init`, sqrt(2 layers) smaller  |
| biases                            | 0                                                   |
| LayerNorm                         | scale 1, bias 0                                     |
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.config import padded_vocab_size
from bertgpt.devices.sharding import constrain
from bertgpt.models import attention
from bertgpt.models.attention import Cache
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.dropout import drop, dropout_key

# Of activations and norms the backward pass keeps the input alone: what lies in between, up to six
# arrays of the MLP's width, is cheaper computed again than written and read.
_keep_input = functools.partial(jax.checkpoint, prevent_cse=False)
Norm = nn.remat(nn.LayerNorm, prevent_cse=False)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": _keep_input(functools.partial(nn.gelu, approximate=True)),
    "gelu_erf": _keep_input(functools.partial(nn.gelu, approximate=False)),
}

# What the backward pass keeps of a layer; the rest is computed again.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def make_init(config: FrozenConfigDict, std: float) -> nn.initializers.Initializer:
  if config.truncated_init:
    return nn.initializers.truncated_normal(std)
  return nn.initializers.normal(std)


def init_sinusoid(std: float) -> nn.initializers.Initializer:
  """sin(p w), cos(p w) at position p, whose root mean square is `std`.

  One linear map leads from every position to its neighbour, which attention would otherwise
  have to learn position by position (Vaswani et al. 2017, arXiv:1706.03762, 3.5). The
  frequencies w are evenly spaced between 0 and pi, so that positions less than `width` apart are
  orthogonal; of the paper's, most are so low that neighbours look alike.
  """

  def init(key, shape, dtype=jnp.float32):
    del key
    rows, width = shape
    w = jnp.pi * (jnp.arange(0, width, 2) + 1) / width
    angles = jnp.arange(rows)[:, None] * w
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]
    return (2 ** 0.5 * std * table).astype(dtype)

  return init


def make_dense(config: FrozenConfigDict, features: int, name: str, std: float = 0.0) -> nn.Dense:
  init = make_init(config, std or config.init_std)
  return nn.Dense(features, dtype=config.dtype, kernel_init=init, name=name)


def make_norm(config: FrozenConfigDict, name: str) -> nn.Module:
  """LayerNorm with float32 statistics; the two-pass variance, as the one-pass loses digits."""
  return Norm(config.layer_norm_epsilon, dtype=config.dtype, use_fast_variance=False, name=name)


def residual_std(config: FrozenConfigDict) -> float:
  """Deviation of projections that end in the residual stream (Radford et al. 2019, 2.3)."""
  return config.init_std * ((2 * config.num_layers) ** -0.5 if config.scale_residual_init else 1.0)


class Attention(nn.Module):
  """Self-attention, and with a cache the new keys and values; see `Stack`."""

  config: FrozenConfigDict
  causal: bool

  @nn.compact
  def __call__(self, x_BLD: jax.Array, sequence_ids_BL: jax.Array, positions_BL: jax.Array | None,
               cache: Cache | None) -> tuple[jax.Array, Cache | None]:
    config = self.config
    width, heads = config.width, config.num_heads
    project = lambda name: make_dense(config, width, name)(x_BLD).reshape(
        *x_BLD.shape[:2], heads, width // heads)
    q_BLNH, new = project("query"), Cache(project("key"), project("value"))
    if cache is None:
      x_BLNH = attention.attend(
          q_BLNH, *new, sequence_ids_BL, kernel=config.attention, causal=self.causal,
          dropout=config.attention_dropout, dropout_key=dropout_key(self))
    else:
      x_BLNH = attention.attend_cached(q_BLNH, cache.insert(new, positions_BL), positions_BL)
    out = make_dense(config, width, "out", residual_std(config))
    return out(x_BLNH.reshape(x_BLD.shape)), None if cache is None else new


class Mlp(nn.Module):
  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    config = self.config
    x_BLF = ACTIVATIONS[config.activation](make_dense(config, config.mlp_dim, "up")(x_BLD))
    return make_dense(config, config.width, "down", residual_std(config))(x_BLF)


class Block(nn.Module):
  """One layer: attention, then the MLP, each beside a residual connection.

  `norm='post'` is x = norm(x + f(x)) (BERT, GPT-1), 'pre' is x = x + f(norm(x)) (GPT-2).
  """

  config: FrozenConfigDict
  causal: bool

  @nn.compact
  def __call__(self, x_BLD: jax.Array, sequence_ids_BL: jax.Array | None,
               positions_BL: jax.Array | None = None,
               cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
    config = self.config
    self_attention = Attention(config, self.causal, name="attention")
    mlp = Mlp(config, name="mlp")
    parts = (("attention_norm", lambda x: self_attention(x, sequence_ids_BL, positions_BL, cache)),
             ("mlp_norm", lambda x: (mlp(x), None)))
    new = []
    for norm_name, part in parts:
      norm = make_norm(config, norm_name)
      y_BLD, of_cache = part(x_BLD if config.norm == "post" else norm(x_BLD))
      x_BLD = x_BLD + drop(y_BLD, config.dropout, dropout_key(self))
      x_BLD = norm(x_BLD) if config.norm == "post" else x_BLD
      new.append(of_cache)
    x_BLD = constrain(x_BLD, "batch", None, None)
    self.sow("intermediates", "output", x_BLD)  # Kept where the caller asks for it.
    return x_BLD, new[0]


class Stack(nn.Module):
  """All layers, scanned. The parameters are the same however far the scan is unrolled.

  With a cache the tokens go on with rows that each are one sequence: they see what is cached before
  `positions_BL`, and one another; the result is (features, cache with these tokens).
  `mutable=["intermediates"]` adds the features of every layer, `layers/output` [layers, B, L, D].
  """

  config: FrozenConfigDict
  causal: bool

  @nn.compact
  def __call__(self, x_BLD: jax.Array, sequence_ids_BL: jax.Array | None,
               positions_BL: jax.Array | None = None,
               cache: Cache | None = None) -> jax.Array | tuple[jax.Array, Cache]:
    config = self.config
    block = Block
    if config.remat != "none":
      # Without a loop, XLA would find the first computation again and keep its results.
      is_loop = 0 < config.scan_unroll < config.num_layers
      block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=not is_loop)
    layers = nn.scan(block, length=config.num_layers, in_axes=(nn.broadcast, nn.broadcast, 0),
                     variable_axes={"params": 0, "intermediates": 0},
                     split_rngs={"params": True, "dropout": True},
                     unroll=config.scan_unroll or config.num_layers)(
                         config, self.causal, name="layers")
    x_BLD, new = layers(x_BLD, sequence_ids_BL, positions_BL, cache)
    # The layers only read their part of the cache, which is then written once, in place.
    return x_BLD if cache is None else (x_BLD, cache.insert(new, positions_BL))


def make_cache(config: FrozenConfigDict, rows: int, slots: int) -> Cache:
  """An empty cache of a stack for rows of up to `slots` tokens."""
  shape = (config.num_layers, rows, slots, config.num_heads, config.width // config.num_heads)
  return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


class Embeddings(nn.Module):
  """Token, position and segment embeddings, summed.

  The token table has its vocabulary padded to a multiple of 128 rows.
  """

  config: FrozenConfigDict
  use_norm: bool

  def setup(self):
    config = self.config
    # Looked up in float32: the gradient of a frequent token sums thousands of rows.
    embed = lambda rows, init: nn.Embed(rows, config.width, embedding_init=init)
    init, position_std = make_init(config, config.init_std), config.position_init_std
    self.token = embed(padded_vocab_size(config.vocab_size), init)
    self.position = embed(config.max_positions, init_sinusoid(position_std) if
                          config.position_init == "sinusoid" else make_init(config, position_std))
    if config.num_segments:
      self.segment = embed(config.num_segments, init)
    if self.use_norm:
      self.norm = make_norm(config, None)

  def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array,
               segment_ids_BL: jax.Array | None = None) -> jax.Array:
    x_BLD = self.token(tokens_BL) + self.position(positions_BL)
    if self.config.num_segments:
      x_BLD = x_BLD + self.segment(segment_ids_BL)
    x_BLD = self.norm(x_BLD) if self.use_norm else x_BLD.astype(self.config.dtype)
    x_BLD = drop(x_BLD, self.config.dropout, dropout_key(self))
    return constrain(x_BLD, "batch", None, None)

  def predict(self, x: jax.Array, bias_V: jax.Array | float = 0.0) -> Prediction:
    """Tied output layer over features [..., D]; V are the rows of the padded table.

    The rows that pad the vocabulary get a logit that never wins and adds nothing to
    the softmax.
    """
    table_VD = self.token.embedding
    is_token_V = jnp.arange(table_VD.shape[0]) < self.config.vocab_size
    return Prediction(x, table_VD, jnp.where(is_token_V, bias_V, -1e9))
