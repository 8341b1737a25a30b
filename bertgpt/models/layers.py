"""The transformer layers that the families share.

Axes: B batch, L length, D width, E width of the embeddings, N heads, H width of a head, F width of
the MLP.

Every matrix is stored [in, out] in float32; layers are stacked on a leading axis and scanned. The
initial values are in `initializers`. Dropout is active only if the caller passes an RNG named
'dropout'.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from ml_collections import FrozenConfigDict

from bertgpt.config import layer_loop, padded_vocab_size
from bertgpt.devices import sharding
from bertgpt.devices.sharding import constrain
from bertgpt.models import attention, float8, rope, token_table
from bertgpt.models.attention import Visibility
from bertgpt.models.cache import Cache
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.dropout import drop, dropout_key
from bertgpt.models.fork import fork
from bertgpt.models.initializers import init_sinusoid, make_init, residual_std
from bertgpt.models.layer_groups import make_group
from bertgpt.models.layer_keys import LayerKeys, make_layer_keys
from bertgpt.models.norms import Norm
from bertgpt.models.parameters import Param
from bertgpt.models.remat import SAVED, rematerialize, save_only_inputs

# For activations and norms, the backward pass saves only the input: the values in between, up to
# six arrays of the MLP's width, are cheaper to recompute than to write and read.
RmsNorm = nn.remat(nn.RMSNorm, prevent_cse=False)


def _gelu_erf(x: jax.Array) -> jax.Array:
  """Returns x times the normal distribution function at x (Hendrycks and Gimpel 2016,
  arXiv:1606.08415).

  By erf in float32, as PyTorch does: `nn.gelu` takes erfc, for which XLA evaluates two polynomials
  and a division at every element and then selects one.
  """
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1 + jax.lax.erf(wide * np.sqrt(0.5).astype(np.float32)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": save_only_inputs(functools.partial(nn.gelu, approximate=True)),
    "gelu_erf": save_only_inputs(_gelu_erf),
    "silu": save_only_inputs(nn.silu),
}

# Lines of the tables of parameters. Embeddings are split over the vocabulary. Mesh axes that do not
# divide it split the width: then XLA rebuilds the whole table for every lookup.
EMBEDDING_PARAMETERS = (
    Param(r"embeddings/token/embedding$", ("vocab", "embed"), is_embedding=True),
    Param(r"embeddings/(position|segment)/embedding$", (None, None), is_embedding=True),
    Param(r"embeddings/norm/(scale|bias)$", (None,), decays=False, is_embedding=True),
    Param(r"embeddings/project/kernel$", (None, "embed"), is_matrix=True, is_embedding=True),
    Param(r"embeddings/project/bias$", (None,), decays=False, is_embedding=True),
)
STACK_PARAMETERS = (
    Param(r"layers/attention/(query|key|value)/kernel$", ("layers", "embed", "heads"),
          is_matrix=True),
    Param(r"layers/attention/(query|key|value)/bias$", ("layers", "heads"), decays=False),
    Param(r"layers/attention/out/kernel$", ("layers", "heads", "embed"), is_matrix=True),
    Param(r"layers/attention/out/bias$", ("layers", None), decays=False),
    Param(r"layers/mlp/(up|gate)/kernel$", ("layers", "embed", "mlp"), is_matrix=True),
    Param(r"layers/mlp/(up|gate)/bias$", ("layers", "mlp"), decays=False),
    Param(r"layers/mlp/down/kernel$", ("layers", "mlp", "embed"), is_matrix=True),
    Param(r"layers/mlp/down/bias$", ("layers", None), decays=False),
    Param(r"layers/(attention|mlp)_norm/(scale|bias)$", ("layers", None), decays=False),
    Param(r"final_norm/(scale|bias)$", (None,), decays=False),
)


def make_dense(config: FrozenConfigDict, features: int, name: str | None,
               std: float = 0.0, can_have_bias: bool = True) -> nn.Dense:
  """Returns a dense layer in the compute dtype, with a bias if `config.use_bias`.

  Args:
    config: `config.model`.
    features: outputs.
    name: name of the layer in the path of its parameters; None: the attribute it is assigned to.
    std: standard deviation of the initial kernel; 0: `config.init_std`.
    can_have_bias: False: it has no bias, whatever the config says.
  """
  init = make_init(config, std or config.init_std)
  return nn.Dense(features, use_bias=config.use_bias and can_have_bias, dtype=config.dtype,
                  kernel_init=init, name=name,
                  dot_general=float8.dot_general if config.matmul == "fp8" else None)


def make_norm(config: FrozenConfigDict, name: str | None) -> nn.Module:
  """Returns the norm that `config.norm_kind` names, with float32 statistics.

  It is a LayerNorm (Ba et al. 2016, arXiv:1607.06450) or an RMSNorm (Zhang and Sennrich 2019,
  arXiv:1910.07467).

  Args:
    config: `config.model`.
    name: name of the layer in the path of its parameters; None: the attribute it is assigned to.
  """
  if config.norm_kind == "rms":
    return RmsNorm(config.layer_norm_epsilon, dtype=config.dtype, name=name)
  return Norm(config, name=name)


class SharedInputs(NamedTuple):
  """Inputs of every layer in addition to the features; they pass unchanged through the scan.

  Attributes:
    visibility: the keys that a query sees; None with a cache, whose rows are one sequence each.
    positions_BL: int32, positions of the tokens in their sequences.
    rope: result of `rope.make_tables`, which `Stack` adds; None: nothing is rotated.
  """

  visibility: Visibility | None
  positions_BL: jax.Array
  rope: jax.Array | None = None


class LayerInputs(NamedTuple):
  """Inputs that each layer has for itself; for the scan, arrays with a value per layer.

  Attributes:
    is_first: bool, whether it reads the embeddings; None: the first layer is like the others.
    is_global: bool, whether its queries see all keys in spite of `config.window`; None: all layers
      are alike.
    keys: its dropout keys; None: no dropout.
  """

  is_first: jax.Array | np.ndarray | None = None
  is_global: jax.Array | np.ndarray | None = None
  keys: LayerKeys | None = None


def make_layer_inputs(config: FrozenConfigDict) -> LayerInputs:
  """Returns how the layers differ, bool [layers] each; their keys are None.

  Args:
    config: `config.model`.
  """
  # NumPy constants, so that XLA knows the kernel of each layer of an unrolled loop.
  at, every = np.arange(config.num_layers), config.global_every
  return LayerInputs(at == 0 if config.norm == "pre" and config.skip_first_norm else None,
                     at % every == 0 if config.window and every else None)


class Attention(nn.Module):
  """Multi-head self-attention; see `Stack` for the arguments."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, query_BLD: jax.Array, key_BLD: jax.Array, value_BLD: jax.Array,
               shared: SharedInputs, cache: Cache | None,
               own: LayerInputs) -> tuple[jax.Array, Cache | None]:
    """Returns features [B, L, D], and the keys and values of these tokens if there is a cache.

    Args:
      query_BLD, key_BLD, value_BLD: the same features, from `fork`, for each of the projections.
      shared, cache, own: see `Stack`.
    """
    config = self.config
    width, heads = config.width, config.num_heads
    project = lambda name, x_BLD: make_dense(config, width, name)(x_BLD).reshape(
        *x_BLD.shape[:2], heads, width // heads)
    q_BLNH = project("query", query_BLD)
    k_BLNH = project("key", key_BLD)
    v_BLNH = project("value", value_BLD)
    if shared.rope is not None:
      q_BLNH, k_BLNH = (rope.rotate(x, shared.rope, own.is_global) for x in (q_BLNH, k_BLNH))
    new = None
    if cache is None:
      visibility = dataclasses.replace(shared.visibility, window=config.window or None,
                                       is_global=own.is_global)
      x_BLD = attention.attend(
          q_BLNH, k_BLNH, v_BLNH, visibility, kernel=config.attention,
          dropout=config.attention_dropout, dropout_key=own.keys and own.keys.attention)
    else:
      new = Cache(k_BLNH, v_BLNH)
      x_BLD = attention.attend_cached(q_BLNH, cache.insert(new, shared.positions_BL),
                                      shared.positions_BL, config.window, own.is_global)
    return make_dense(config, width, "out", residual_std(config))(x_BLD), new


class Mlp(nn.Module):
  """Two dense layers with the activation between them.

  With `config.mlp='gated'`, the activation is applied to a third layer, `gate`, whose result
  multiplies that of the first one, `up` (Shazeer 2020, arXiv:2002.05202).
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BLD: jax.Array, hidden_key: jax.Array | None = None) -> jax.Array:
    """Returns features [B, L, D].

    Args:
      x_BLD: features.
      hidden_key: key of dropout after the activation, for XLNet; None: there is none.
    """
    config = self.config
    activate = ACTIVATIONS[config.activation]
    x_BLF = checkpoint_name(make_dense(config, config.mlp_dim, "up")(x_BLD), SAVED)
    if config.mlp == "gated":
      gate_BLF = checkpoint_name(make_dense(config, config.mlp_dim, "gate")(x_BLD), SAVED)
      x_BLF = save_only_inputs(lambda gate, x: activate(gate) * x)(gate_BLF, x_BLF)
    else:
      x_BLF = activate(x_BLF)
    x_BLF = drop(x_BLF, config.dropout, hidden_key)
    return make_dense(config, config.width, "down", residual_std(config))(x_BLF)


class Block(nn.Module):
  """One layer: attention, then the MLP, each with a residual connection.

  `norm='post'` is x = norm(x + f(x)) (BERT, GPT-1), 'pre' is x = x + f(norm(x)) (GPT-2). With
  `skip_first_norm`, the attention of the first layer reads x itself, as in ModernBERT, whose
  embeddings have a norm; the stack still has its `attention_norm`, unused.
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BLD: jax.Array, shared: SharedInputs, cache: Cache | None,
               own: LayerInputs) -> tuple[jax.Array, Cache | None]:
    """Returns the features [B, L, D] after the MLP, and the keys and values as `Attention` does."""
    config = self.config
    attend, mlp = Attention(config, name="attention"), Mlp(config, name="mlp")
    attention_norm, mlp_norm = make_norm(config, "attention_norm"), make_norm(config, "mlp_norm")
    _, output_key, mlp_key = own.keys or LayerKeys(None, None, None)
    drop_output = functools.partial(drop, rate=config.dropout, key=output_key)
    drop_mlp = functools.partial(drop, rate=config.dropout if config.dropout_at == "all" else 0.0,
                                 key=mlp_key)
    if config.norm == "post":
      # `Attention` cannot fork x itself, because the residual connection uses x, too.
      query_BLD, key_BLD, value_BLD, x_BLD = fork(x_BLD, 4)
      y_BLD, new = attend(query_BLD, key_BLD, value_BLD, shared, cache, own)
      x_BLD = attention_norm(checkpoint_name(x_BLD + drop_output(y_BLD), SAVED))
      x_BLD = mlp_norm(checkpoint_name(x_BLD + drop_mlp(mlp(x_BLD)), SAVED))
    else:
      y_BLD = attention_norm(x_BLD)
      if own.is_first is not None:
        y_BLD = jnp.where(own.is_first, x_BLD, y_BLD)
      query_BLD, key_BLD, value_BLD = fork(y_BLD, 3)
      y_BLD, new = attend(query_BLD, key_BLD, value_BLD, shared, cache, own)
      x_BLD = checkpoint_name(x_BLD + drop_output(y_BLD), SAVED)
      x_BLD = x_BLD + drop_mlp(mlp(mlp_norm(x_BLD)))
    x_BLD = constrain(x_BLD, "batch", None, None)
    self.sow("intermediates", "output", x_BLD)  # Stored if the caller asks for it.
    return x_BLD, new


class Stack(nn.Module):
  """All layers, scanned. The parameters do not depend on how far the scan is unrolled.

  With `config.layer_groups` = G below the number of layers, the layers come in G runs of equal
  length and the layers of a run share their parameters, which are then stacked over G (ALBERT; see
  `layer_groups`).

  `mutable=["intermediates"]` adds the features of every layer; see `layer_outputs`.
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_BLD: jax.Array, shared: SharedInputs,
               cache: Cache | None = None) -> tuple[jax.Array, Cache | None]:
    """Returns the features [B, L, D] and the cache with these tokens.

    Args:
      x_BLD: embeddings, in the compute dtype.
      shared: visibility and positions.
      cache: keys and values of the tokens before these. Every row is then one sequence, and a
        token sees the cached tokens before its position. None: no cache is read or returned.
    """
    config = self.config
    groups = config.layer_groups or config.num_layers
    # The innermost loop: over the layers, or over those that share their parameters.
    inner = config.num_layers // groups if groups < config.num_layers else groups
    unroll, outer_unroll = (
        layer_loop.choose(config.scan_unroll, sharding.platform(), layers,
                          is_initializing=self.is_initializing())[0]
        for layers in (inner, groups))
    body = rematerialize(Block, config, is_loop=unroll < inner)
    lengths: tuple[int, ...] = (groups,)
    if groups < config.num_layers:
      body, lengths = make_group(body, inner, unroll), (groups, inner)
    of_layers = jax.tree.map(lambda x: x.reshape(lengths), make_layer_inputs(config))
    of_layers = of_layers._replace(keys=make_layer_keys(self, "layers", lengths))
    if config.position == "rope":
      shared = shared._replace(rope=rope.make_tables(config, shared.positions_BL))
    layers = nn.scan(body, length=groups, in_axes=(nn.broadcast, 0, 0),
                     variable_axes={"params": 0, "intermediates": 0},
                     split_rngs={"params": True}, unroll=outer_unroll)(config, name="layers")
    x_BLD, new = layers(x_BLD, shared, cache, of_layers)
    # The layers only read their part of the cache, which is then written once, in place.
    return x_BLD, None if cache is None else cache.insert(new, shared.positions_BL)


def gather(x_BLD: jax.Array, positions_BK: jax.Array) -> jax.Array:
  """Returns the features at chosen positions, [B, K, D].

  Args:
    x_BLD: features.
    positions_BK: int32.
  """
  return jnp.take_along_axis(x_BLD, positions_BK[:, :, None], axis=1)


def layer_outputs(intermediates: Mapping[str, Any]) -> jax.Array:
  """Returns the features of every layer, [layers, B, L, D].

  Args:
    intermediates: the part of the collection that belongs to a `Stack`, or to another module that
      sows the features of all layers as `output`.
  """
  (output,) = intermediates.get("layers", intermediates)["output"]
  return output.reshape(-1, *output.shape[-3:])


class Embeddings(nn.Module):
  """Sum of token, position and segment embeddings, the latter two if the config has them.

  The token table has its vocabulary padded to a multiple of 128 rows. With
  `config.embedding_width` the tables and their norm have that width, and a dense layer projects
  from it to `config.width` (Lan et al. 2019, arXiv:1909.11942).

  Attributes:
    use_norm: LayerNorm on the sum, as in BERT.
    use_segments: there are segment embeddings, as many as `config.num_segments`.
    starts_at_zero: whether the tables are initialized with zeros.
  """

  config: FrozenConfigDict
  use_norm: bool
  use_segments: bool
  starts_at_zero: bool = False

  def setup(self) -> None:
    config = self.config
    width = config.embedding_width or config.width
    # Looked up in float32: the gradient of a frequent token sums thousands of rows.
    embed = lambda rows, init: nn.Embed(
        rows, width, embedding_init=nn.initializers.zeros if self.starts_at_zero else init)
    init, position_std = make_init(config, config.init_std), config.position_init_std
    self.token = embed(padded_vocab_size(config.vocab_size), init)
    # The lookup and the output layer share the copies, so their gradients are summed as one.
    self.token_copies = sharding.copy_for_batch(self.token.embedding, "vocab", None)
    if config.position == "learned":
      self.position = embed(config.max_positions, init_sinusoid(position_std) if
                            config.position_init == "sinusoid" else make_init(config, position_std))
    self.has_segments = self.use_segments and config.num_segments > 0
    if self.has_segments:
      self.segment = embed(config.num_segments, init)
    if self.use_norm:
      self.norm = make_norm(config, None)
    self.is_factorized = width != config.width
    if self.is_factorized:
      self.project = make_dense(config, config.width, None)

  def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array,
               segment_ids_BL: jax.Array | None = None) -> jax.Array:
    """Returns features [B, L, D] in the compute dtype.

    Args:
      tokens_BL, positions_BL: int32.
      segment_ids_BL: int32; None: every token is of segment 0.
    """
    return self.widen(self.normalize(self.look_up(tokens_BL, positions_BL, segment_ids_BL)))

  def look_up(self, tokens_BL: jax.Array, positions_BL: jax.Array,
              segment_ids_BL: jax.Array | None) -> jax.Array:
    """Returns the sum of the rows of all tables, float32 [B, L, E].

    Args:
      tokens_BL, positions_BL, segment_ids_BL: see `__call__`.
    """
    x_BLE = token_table.look_up(self.token_copies, tokens_BL)
    if self.config.position == "learned":
      x_BLE = x_BLE + self.position(positions_BL)
    if self.has_segments:
      segment_ids_BL = jnp.zeros_like(tokens_BL) if segment_ids_BL is None else segment_ids_BL
      x_BLE = x_BLE + self.segment(segment_ids_BL)
    return x_BLE

  def normalize(self, x_BLE: jax.Array) -> jax.Array:
    """Returns the sum of the tables after LayerNorm and dropout, in the compute dtype.

    Args:
      x_BLE: result of `look_up`.
    """
    x_BLE = self.norm(x_BLE) if self.use_norm else x_BLE.astype(self.config.dtype)
    if self.config.dropout_at == "all":
      x_BLE = drop(x_BLE, self.config.dropout, dropout_key(self))
    return x_BLE

  def widen(self, x_BLE: jax.Array) -> jax.Array:
    """Returns features of the width of the model, [B, L, D].

    Args:
      x_BLE: result of `normalize`.
    """
    x_BLD = self.project(x_BLE) if self.is_factorized else x_BLE
    return constrain(x_BLD, "batch", None, None)

  def predict(self, x: jax.Array, bias_V: jax.Array | float = 0.0) -> Prediction:
    """Returns the output layer that is tied to the token table (Press and Wolf 2016,
    arXiv:1608.05859).

    The rows that pad the vocabulary get a logit that never wins and adds nothing to the softmax.

    Args:
      x: features [..., E].
      bias_V: float32, one per row of the padded table; 0: there is no bias.
    """
    table_VD = self.token.embedding
    is_token_V = jnp.arange(table_VD.shape[0]) < self.config.vocab_size
    return Prediction(x, table_VD, jnp.where(is_token_V, bias_V, -1e9), self.token_copies)
