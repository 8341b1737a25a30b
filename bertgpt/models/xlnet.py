"""XLNet (Yang et al. 2019, arXiv:1906.08237): a language model of tokens in any order.

The encoder has two streams with the same parameters. The features of a token are computed from its
own id and from the tokens that it sees; those of a target, which are computed only at the predicted
positions, from its position and the tokens before it in the order of prediction. Both streams are
in one array, the tokens before the targets, so that every matmul and every norm is computed for
both at once. Only the tokens are keys.

Three things differ from the published code (github.com/zihangdai/xlnet, modeling.py, 2019). The
dropout mask of the sinusoids is the same for all rows of a batch, so that they are projected once.
A target that sees no token gets no values here; in the published code, it gets the mean of all
values, including its own. There is no reversed text: without memory, reversed text with negated
distances is the same as the text.

Axes: B batch, L length, K targets of a row, T = L + K, M tokens of memory, S = M + L keys,
R distances, Y layers, D width, N heads, H width of a head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from ml_collections import FrozenConfigDict

from bertgpt.config import layer_loop, padded_vocab_size
from bertgpt.devices import sharding
from bertgpt.devices.sharding import constrain
from bertgpt.models import layers, relative_attention
from bertgpt.models.attention import join_heads, mix
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.dropout import drop, dropout_key
from bertgpt.models.initializers import make_init, residual_std
from bertgpt.models.inputs import Inputs
from bertgpt.models.parameters import Param
from bertgpt.models.relative_attention import Biases, Sight
from bertgpt.models.remat import SAVED, rematerialize


class Xlnet(nn.Module):
  """The two streams, with the output layer that is tied to the token table.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self) -> None:
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=False, use_segments=False)
    self.encoder = TwoStreams(config)
    self.pooler = layers.make_dense(config, config.width, None)
    self.mlm = OutputBias(config)

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the logits of `predict`, float32 [B, K, V]; it touches every parameter.

    Args:
      inputs: see `predict`.
    """
    return self.predict(inputs).logits()

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the prediction of the targets without its logits: a loss needs few at a time.

    Args:
      inputs: tokens, and the positions to predict. Without an order, a target sees all tokens
        except the targets, whose ids are not read.
    """
    return self.predict_and_remember(inputs, 0, 0)[0]

  def predict_and_remember(self, inputs: Inputs, reuse: int,
                           memory_length: int) -> tuple[Prediction, jax.Array]:
    """Returns the prediction, and the memory for the rows that follow these.

    Args:
      inputs: see `predict`.
      reuse: number of tokens at the start of a row after which the next row continues.
      memory_length: tokens of the new memory: the last ones of the old memory and these rows.
    Returns:
      The prediction at the targets; and [Y, B, M, D] in the compute dtype, without a gradient.
    """
    length = inputs.tokens_BL.shape[1]
    x_BTD, memory_YBMD = self._encode(inputs, reuse, memory_length)
    x_BKD = drop(x_BTD[:, length:], self.config.dropout, dropout_key(self))
    return self.embeddings.predict(x_BKD, self.mlm()), memory_YBMD

  def features(self, inputs: Inputs) -> jax.Array:
    """Returns the features of the tokens in the last layer, [B, L, D] in the compute dtype.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    return self._encode(inputs._replace(predict_positions_BK=None), 0, 0)[0]

  def pool(self, x: jax.Array) -> jax.Array:
    """Returns the pooled features of [CLS] tokens, [..., D].

    Args:
      x: features of the last layer at [CLS], [..., D].
    """
    return jnp.tanh(self.pooler(drop(x, self.config.dropout, dropout_key(self))))

  def token_features(self, x: jax.Array) -> jax.Array:
    """Returns the features that the output layers of tokens read: those of the last layer.

    Args:
      x: features of the last layer, [..., D].
    """
    return x

  def _encode(self, inputs, reuse, memory_length):
    x_BLD = self.embeddings(inputs.tokens_BL, inputs.positions_BL)
    return self.encoder(x_BLD, inputs, reuse, memory_length)


class OutputBias(nn.Module):
  """The bias of the output layer."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns float32 [V]."""
    rows = padded_vocab_size(self.config.vocab_size)
    return self.param("bias", nn.initializers.zeros, (rows,))


class SharedInputs(NamedTuple):
  """Inputs of every layer in addition to the features.

  Attributes:
    sight: what queries see.
    sinusoids_RD: encodings of the distances, after dropout.
  """

  sight: Sight
  sinusoids_RD: jax.Array


class LayerInputs(NamedTuple):
  """Inputs of one layer, or of all of them, stacked for the scan.

  Attributes:
    memory_BMD: inputs of the layer at earlier tokens; None: there is no memory.
    keys: keys of dropout for the attention weights, the output of the attention, the hidden
      features of the MLP and its output; None: no dropout.
  """

  memory_BMD: jax.Array | None
  keys: tuple[jax.Array | None, ...]


class TwoStreams(nn.Module):
  """All layers, scanned, over the tokens and the targets of every row.

  `mutable=["intermediates"]` adds the features of the tokens in every layer; see
  `layers.layer_outputs`.
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BLD: jax.Array, inputs: Inputs, reuse: int,
               memory_length: int) -> tuple[jax.Array, jax.Array]:
    """Returns features [B, T, D], and the new memory [Y, B, M, D].

    Args:
      x_BLD: embeddings, in the compute dtype.
      inputs: everything else about the rows.
      reuse, memory_length: see `Xlnet.predict_and_remember`.
    """
    config, memory_YBMD = self.config, inputs.memory_YBMD
    init = make_init(config, config.init_std)
    target_11D = self.param("mask_embedding", init, (1, 1, config.width))
    length = x_BLD.shape[1]
    is_memory_BM = _find_memory(inputs)
    targets_BK = inputs.predict_positions_BK
    if targets_BK is not None:
      shape = (*targets_BK.shape, config.width)
      x_BKD = drop(jnp.broadcast_to(target_11D.astype(x_BLD.dtype), shape), config.dropout,
                   dropout_key(self))
      x_BLD = jnp.concatenate([x_BLD, x_BKD], axis=1)
    segment_ids_BL = inputs.segment_ids_BL
    if segment_ids_BL is None:
      segment_ids_BL = jnp.zeros_like(inputs.tokens_BL)
    sight = relative_attention.see(inputs.sequence_ids_BL, segment_ids_BL, inputs.order_BL,
                                   targets_BK, is_memory_BM)
    sinusoids_RD = jnp.asarray(relative_attention.make_sinusoids(
        length, is_memory_BM.shape[1] + length, config.width), x_BLD.dtype)
    sinusoids_RD = drop(sinusoids_RD, config.dropout, dropout_key(self), is_shared=True)
    unroll, _ = layer_loop.choose(config.scan_unroll, sharding.platform(), config.num_layers,
                                  is_initializing=self.is_initializing())
    block = rematerialize(Block, config, is_loop=unroll < config.num_layers)
    scanned = nn.scan(block, length=config.num_layers, in_axes=(nn.broadcast, 0),
                      variable_axes={"params": 0, "intermediates": 0},
                      split_rngs={"params": True}, unroll=unroll)
    return scanned(config, length, reuse, memory_length, name="layers")(
        x_BLD, SharedInputs(sight, sinusoids_RD), LayerInputs(memory_YBMD, self._make_keys()))

  def _make_keys(self):
    """Returns the keys of dropout of all layers, four arrays of keys, or None."""
    layer_keys = dropout_key(self)
    if layer_keys is None:
      return (None,) * 4
    if self.config.dropout_rng == "hash":
      layer_keys = jax.random.wrap_key_data(layer_keys, impl="threefry2x32")
    keys = jax.random.split(layer_keys, (4, self.config.num_layers))
    return tuple(jax.random.key_data(keys) if self.config.dropout_rng == "hash" else keys)


def _find_memory(inputs):
  """Returns which places of the memory hold a token, bool [B, M]; M is 0 if there is no memory."""
  if inputs.is_memory_BM is not None:
    return inputs.is_memory_BM
  length = 0 if inputs.memory_YBMD is None else inputs.memory_YBMD.shape[2]
  return jnp.ones((inputs.tokens_BL.shape[0], length), bool)


class Block(nn.Module):
  """One layer: attention, then the MLP, each with a residual connection and a norm after it.

  Attributes:
    config: `config.model`.
    length: L; the other T - L queries are targets.
    reuse, memory_length: see `Xlnet.predict_and_remember`.
  """

  config: FrozenConfigDict
  length: int
  reuse: int
  memory_length: int

  @nn.compact
  def __call__(self, x_BTD: jax.Array, shared: SharedInputs,
               own: LayerInputs) -> tuple[jax.Array, jax.Array]:
    """Returns features after the MLP [B, T, D], and the new memory of the layer [B, M, D].

    Args:
      x_BTD: features of the tokens, then of the targets.
      shared, own: see their classes.
    """
    config = self.config
    attention_key, output_key, hidden_key, mlp_key = own.keys
    keys_BSD = x_BTD[:, :self.length]
    new_BMD = x_BTD[:, :self.reuse]
    if own.memory_BMD is not None:
      memory_BMD = jax.lax.stop_gradient(own.memory_BMD.astype(x_BTD.dtype))
      keys_BSD = jnp.concatenate([memory_BMD, keys_BSD], axis=1)
      new_BMD = jnp.concatenate([memory_BMD, new_BMD], axis=1)
    first = max(0, new_BMD.shape[1] - self.memory_length)
    new_BMD = jax.lax.stop_gradient(new_BMD[:, first:])
    y_BTD = RelativeAttention(config, name="attention")(x_BTD, keys_BSD, shared, attention_key)
    y_BTD = drop(y_BTD, config.dropout, output_key)
    x_BTD = layers.make_norm(config, "attention_norm")(checkpoint_name(x_BTD + y_BTD, SAVED))
    y_BTD = layers.Mlp(config, name="mlp")(x_BTD, hidden_key)
    y_BTD = drop(y_BTD, config.dropout, mlp_key)
    x_BTD = layers.make_norm(config, "mlp_norm")(checkpoint_name(x_BTD + y_BTD, SAVED))
    x_BTD = constrain(x_BTD, "batch", None, None)
    self.sow("intermediates", "output", x_BTD[:, :self.length])  # Stored if the caller asks.
    return x_BTD, new_BMD


class RelativeAttention(nn.Module):
  """Multi-head attention of tokens and targets to memory and tokens."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BTD: jax.Array, keys_BSD: jax.Array, shared: SharedInputs,
               key: jax.Array | None) -> jax.Array:
    """Returns features [B, T, D].

    Args:
      x_BTD: features of the queries.
      keys_BSD: features of the keys.
      shared: see its class.
      key: key of the dropout of weights; None: no dropout.
    """
    config = self.config
    heads, width = config.num_heads, config.width
    init = make_init(config, config.init_std)
    split = lambda x: checkpoint_name(x.reshape(*x.shape[:-1], heads, width // heads), SAVED)
    project = lambda name, x: split(layers.make_dense(config, width, name, can_have_bias=False)(x))
    vector = lambda name, *shape: self.param(name, init, (*shape, width)).reshape(
        *shape, heads, width // heads).astype(config.dtype)
    biases = Biases(vector("content_bias"), vector("position_bias"), vector("segment_bias"),
                    vector("segment_embedding", 2))
    weights_BNTS = relative_attention.weigh(
        project("query", x_BTD), project("key", keys_BSD),
        project("position", shared.sinusoids_RD), biases, shared.sight)
    weights_BNTS = drop(weights_BNTS, config.attention_dropout, key)
    y_BTD = checkpoint_name(join_heads(mix(weights_BNTS, project("value", keys_BSD))), SAVED)
    return layers.make_dense(config, width, "out", residual_std(config), can_have_bias=False)(y_BTD)


MODEL = Xlnet

PARAMETERS = (
    Param(r"encoder/mask_embedding$", (None, None, None), is_embedding=True),
    Param(r"layers/attention/position/kernel$", ("layers", "embed", "heads"), is_matrix=True),
    # They decay (github.com/zihangdai/xlnet, model_utils.py, 2019).
    Param(r"layers/attention/(content|position|segment)_bias$", ("layers", "heads")),
    Param(r"layers/attention/segment_embedding$", ("layers", None, "heads")),
    *layers.EMBEDDING_PARAMETERS,
    *layers.STACK_PARAMETERS,
    Param(r"pooler/kernel$", ("embed", None), is_matrix=True),
    Param(r"pooler/bias$", (None,), decays=False),
    Param(r"mlm/bias$", ("vocab",), decays=False),
)
