"""ELMo (Peters et al. 2018, arXiv:1802.05365): a bidirectional language model over characters.

Two LSTMs read the text, one from each side, and share the layers below (a convolution over the
characters of a word) and above (the output layer). The equations, the order of the gates and the
initial values are those of allenai/bilm-tf, `bilm/training.py` and `bilm/model.py` (2018).

Axes: B batch, L length, M rows and positions together, S characters of a word, W width of their
embedding, N filters, P width of a direction, D = 2 P width of the model, C cells, G the four gates
i, j, f, o, E layers, V rows of the padded output table, K predicted positions of a row; an axis of
size 2 holds the directions, forward and backward.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.config import padded_vocab_size
from bertgpt.data.tokens import spelling
from bertgpt.devices.sharding import constrain
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.dropout import drop, dropout_key
from bertgpt.models.inputs import Inputs
from bertgpt.models.layers import gather
from bertgpt.models.parameters import Param

FORGET_BIAS = 1.0  # Added to the gate f; it is not in the bias.


class State(NamedTuple):
  """State of the LSTMs of one layer or, with a leading axis, of all of them.

  Attributes:
    hidden_2BP: outputs, before the residual, float32.
    cell_2BC: cells, float32.
  """

  hidden_2BP: jax.Array
  cell_2BC: jax.Array


def carry_specs(config: FrozenConfigDict) -> dict[str, tuple[tuple[int, ...], type]]:
  """Returns the schema of the carry of a row, the state of all LSTMs.

  Args:
    config: `config.model`.
  Returns:
    name -> (shape per row, dtype): 'hidden' [E, 2, P] and 'cell' [E, 2, C].
  """
  layers = config.num_layers
  return {"hidden": ((layers, 2, config.width // 2), np.float32),
          "cell": ((layers, 2, config.mlp_dim), np.float32)}


class Elmo(nn.Module):
  """The bidirectional language model.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self) -> None:
    config = self.config
    self.words = WordEncoder(config)
    self.encoder = BiLstm(config)
    self.lm = OutputLayer(config)
    self.mix = ScalarMix(config)

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the logits of `predict`, float32 [B, K, V]; it touches every parameter.

    Args:
      inputs: rows of one text each, and the positions to predict.
    """
    return self.predict(inputs).logits()

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the prediction of masked words without its logits.

    A word is predicted from the words before it by one direction, and from those after it by the
    other. Neither sees the word itself, except at the ends of a row, [CLS] and [SEP], which have a
    neighbor on one side only. The logits of both are added, so the probability is proportional to
    the product of both.

    Args:
      inputs: rows of one text each, [CLS] first and [SEP] last, and the positions to predict.
    """
    x_BLD = self.features(inputs)[..., -self.config.width:]
    positions_BK = inputs.predict_positions_BK
    if positions_BK is None:
      positions_BK = jnp.broadcast_to(jnp.arange(x_BLD.shape[1]), x_BLD.shape[:2])
    forward_BLP, backward_BLP = jnp.split(x_BLD, 2, axis=-1)
    last = x_BLD.shape[1] - 1
    x_BKP = (gather(forward_BLP, jnp.maximum(positions_BK - 1, 0))
             + gather(backward_BLP, jnp.minimum(positions_BK + 1, last)))
    prediction = self.lm(x_BKP)
    bias_V = jnp.where(prediction.bias_V < -1e8, prediction.bias_V, 2 * prediction.bias_V)
    return _with_all_words(prediction._replace(bias_V=bias_V), self.config)

  def read(self, tokens_2BL: jax.Array, is_token_BL: jax.Array,
           carry: dict[str, jax.Array]) -> tuple[Prediction, Prediction, dict[str, jax.Array]]:
    """Returns the predictions of the next words of two streams, and the new carry of their rows.

    Args:
      tokens_2BL: int32, words of the forward and of the backward stream.
      is_token_BL: bool, the same for both; padding leaves the state as it is.
      carry: arrays of `carry_specs`, [B, ...] each.
    Returns:
      Predictions at every position of the forward and of the backward stream, and the new carry.
    """
    states = State(jnp.moveaxis(carry["hidden"], 0, 2), jnp.moveaxis(carry["cell"], 0, 2))
    x_E2BLP, states = self.encoder(self.words(tokens_2BL), is_token_BL, states)
    forward_BLP, backward_BLP = (drop(x_BLP, self.config.dropout, dropout_key(self))
                                 for x_BLP in x_E2BLP[-1])
    carry = {"hidden": jnp.moveaxis(states.hidden_2BP, 2, 0),
             "cell": jnp.moveaxis(states.cell_2BC, 2, 0)}
    return self.lm(forward_BLP), self.lm(backward_BLP), carry

  def features(self, inputs: Inputs) -> jax.Array:
    """Returns the features of all layers, [B, L, E D] in the compute dtype: words, LSTM 1, LSTM 2.

    Every layer has both directions, side by side; the words have the same features twice. The
    state is zero where a text begins.

    Args:
      inputs: rows of one text each, followed only by padding.
    """
    is_token_BL = inputs.sequence_ids_BL > 0
    x_BLP = self.words(inputs.tokens_BL)
    order_BL = _reversed_order(is_token_BL)
    x_2BLP = jnp.stack([x_BLP, gather(x_BLP, order_BL)])
    states = _zero_states(self.config, len(x_BLP))
    x_E2BLP, _ = self.encoder(x_2BLP, is_token_BL, states)
    back = jax.vmap(gather, (0, None))
    x_EBLD = jnp.concatenate([x_E2BLP[:, 0], back(x_E2BLP[:, 1], order_BL)], axis=-1)
    self.encoder.keep(x_EBLD)
    return jnp.concatenate(list(x_EBLD), axis=-1)

  def pool(self, x: jax.Array) -> jax.Array:
    """Returns the learned mix of the layers at the first token or in the mean, [..., D].

    Args:
      x: features of all layers, [..., E D].
    """
    return self.mix(x)

  def token_features(self, x: jax.Array) -> jax.Array:
    """Returns the learned mix of the layers, which the output layers of tokens read, [..., D].

    Args:
      x: features of all layers, [..., E D].
    """
    return self.mix(x)


class WordEncoder(nn.Module):
  """Features of words from their characters: convolutions, their maxima, highways, a projection.

  `spelling` is a constant, the characters of every word; see `data.tokens.spelling`.
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Returns features [..., P] in the compute dtype.

    Args:
      tokens: int32 [...], words.
    """
    config = self.config
    table_VS = self.param("spelling", _unspelled, (
        padded_vocab_size(config.vocab_size), spelling.WORD_CHARS))
    embedding = self.param("embedding", _uniform(1.0), (spelling.NUM_CHARS, config.character_width))
    ids_MS = jax.lax.stop_gradient(table_VS)[tokens.reshape(-1)].astype(jnp.int32)
    x_MSW = embedding[ids_MS].astype(config.dtype)
    pooled = []
    for i, (width, filters) in enumerate(config.filters):
      kernel = self.param(f"filter_{i}_kernel", _uniform(0.05),
                          (width, config.character_width, filters))
      bias = self.param(f"filter_{i}_bias", nn.initializers.zeros, (filters,))
      pooled.append(_convolve(x_MSW, kernel.astype(config.dtype), bias))
    x_MN = jnp.concatenate(pooled, axis=-1)
    init = nn.initializers.normal(x_MN.shape[-1] ** -0.5)
    dense = functools.partial(nn.Dense, dtype=config.dtype, kernel_init=init)
    for i in range(config.num_highways):
      gate_MN = nn.sigmoid(dense(x_MN.shape[-1], name=f"highway_{i}_carry",
                                 bias_init=nn.initializers.constant(-2.0))(x_MN))
      new_MN = nn.relu(dense(x_MN.shape[-1], name=f"highway_{i}_transform")(x_MN))
      x_MN = gate_MN * new_MN + (1 - gate_MN) * x_MN
    x_MP = dense(config.width // 2, name="project")(x_MN)
    return x_MP.reshape(*tokens.shape, -1)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _convolve(x_MSW, kernel, bias):
  """Returns the largest output of every filter over the positions, after ReLU: [M, filters].

  The outputs at all positions would be the largest array of a step, so the backward pass recomputes
  them.
  """
  width = len(kernel)
  count = x_MSW.shape[1] - width + 1
  windows = jnp.concatenate([x_MSW[:, i:i + count] for i in range(width)], axis=-1)
  outputs = windows @ kernel.reshape(-1, kernel.shape[-1])
  return nn.relu(outputs.max(1) + bias.astype(outputs.dtype))


class BiLstm(nn.Module):
  """Layers of LSTMs in both directions, with projections, clipping and residuals.

  An LSTM of layer 2 and above adds its input to its output (`lstm_residual`). The recurrent state
  is the output before this addition. Dropout is applied to the input, and so to the residual too.
  """

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x_2BLP: jax.Array, is_token_BL: jax.Array,
               states: State) -> tuple[jax.Array, State]:
    """Returns the features of the words and of every layer [E, 2, B, L, P], and the new states.

    Args:
      x_2BLP: features of the words, in the compute dtype, each direction in its order of reading.
      is_token_BL: bool; the state is unchanged where it is false.
      states: states of all layers, with a leading axis.
    """
    config = self.config
    width, cells = config.width // 2, config.mlp_dim
    outputs, new = [x_2BLP], []
    for i in range(config.num_layers):
      # Glorot and Bengio 2010: TensorFlow initializes every kernel of a cell this way.
      init = nn.initializers.glorot_uniform(batch_axis=0)
      kernel = self.param(f"lstm_{i}_kernel", _as_gates(init, 2), (2, 2 * width, 4, cells))
      bias = self.param(f"lstm_{i}_bias", nn.initializers.zeros, (2, 4, cells))
      project = self.param(f"lstm_{i}_project", init, (2, cells, width))
      x_2BLP = jnp.stack([drop(x_BLP, config.dropout, dropout_key(self)) for x_BLP in x_2BLP])
      y_2BLP, state = run_lstm(kernel, bias, project, x_2BLP, is_token_BL,
                               jax.tree.map(lambda x, i=i: x[i], states), config.state_clip)
      x_2BLP = y_2BLP + x_2BLP if i and config.lstm_residual else y_2BLP
      outputs.append(x_2BLP)
      new.append(state)
    return jnp.stack(outputs), jax.tree.map(lambda *layers: jnp.stack(layers), *new)

  def keep(self, x_EBLD: jax.Array) -> None:
    """Sows the features of the layers if the caller asks for them; see `layers.layer_outputs`."""
    self.sow("intermediates", "output", x_EBLD)


def run_lstm(kernel: jax.Array, bias: jax.Array, project: jax.Array, x_2BLP: jax.Array,
             is_token_BL: jax.Array, state: State, clip: float) -> tuple[jax.Array, State]:
  """Runs LSTMs with projection over rows, one per direction (Sak et al. 2014, arXiv:1402.1128).

  c = clip(sigmoid(f + 1) c + sigmoid(i) tanh(j)); h = clip((sigmoid(o) tanh(c)) project), where
  i, j, f, o = [x, h] kernel + bias. The state is float32; matmuls are in the dtype of `x`.

  Args:
    kernel: float32 [2, 2 P, 4, C]; the rows for the input come before those for the state.
    bias: float32 [2, 4, C].
    project: float32 [2, C, P].
    x_2BLP: inputs.
    is_token_BL: bool; the state is unchanged where it is false.
    state: state before the rows.
    clip: largest absolute value of cells and outputs; 0: no limit.
  Returns:
    The outputs [2, B, L, P] in the dtype of `x`, and the state after the rows.
  """
  dtype, width = x_2BLP.dtype, x_2BLP.shape[-1]
  limit = functools.partial(jnp.clip, min=-clip, max=clip) if clip else lambda x: x
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  of_input, of_state = jnp.split(kernel, [width], axis=1)
  # The matmuls with the input need no loop.
  z_L2BGC = product("dblp,dpgc->ldbgc", x_2BLP, of_input.astype(dtype)) + bias[:, None]
  z_L2BGC = constrain(z_L2BGC.astype(dtype), None, None, "batch", None, "mlp")

  def step(state, inputs):
    z_2BGC, is_token_B = inputs
    h_2BP, c_2BC = state
    # Rounded here, so that the loop of the backward pass sums gradients in float32.
    z_2BGC = z_2BGC + product("dbp,dpgc->dbgc", h_2BP.astype(dtype), of_state.astype(dtype))
    i, j, f, o = (z_2BGC[:, :, g] for g in range(4))
    new_2BC = limit(nn.sigmoid(f + FORGET_BIAS) * c_2BC + nn.sigmoid(i) * jnp.tanh(j))
    gated_2BC = (nn.sigmoid(o) * jnp.tanh(new_2BC)).astype(dtype)
    new_2BP = limit(product("dbc,dcp->dbp", gated_2BC, project.astype(dtype)))
    is_token_B1 = is_token_B[:, None]
    state = State(jnp.where(is_token_B1, new_2BP, h_2BP), jnp.where(is_token_B1, new_2BC, c_2BC))
    return state, new_2BP.astype(dtype)

  state, y_L2BP = jax.lax.scan(step, State(*state), (z_L2BGC, is_token_BL.T))
  return jnp.moveaxis(y_L2BP, 0, 2), state


class OutputLayer(nn.Module):
  """Logits of words, with a table that both directions share."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x: jax.Array) -> Prediction:
    """Returns the prediction at every feature.

    Args:
      x: features [..., P] of one direction.
    """
    count = num_targets(self.config)
    rows = padded_vocab_size(count)
    init = nn.initializers.normal(x.shape[-1] ** -0.5)
    table_VP = self.param("embedding", init, (rows, x.shape[-1]))
    bias_V = self.param("bias", nn.initializers.zeros, (rows,))
    return Prediction(x, table_VP, jnp.where(jnp.arange(rows) < count, bias_V, -1e9))


class ScalarMix(nn.Module):
  """A weighted mean of the layers, times a factor; both are learned with the task (equation 1)."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., D] in the dtype of `x`.

    Args:
      x: features of all layers, [..., E D].
    """
    layers = self.config.num_layers + 1
    weights_E = nn.softmax(self.param("weights", nn.initializers.zeros, (layers,)))
    scale = self.param("scale", nn.initializers.ones, (1,))
    x = x.reshape(*x.shape[:-1], layers, -1)
    return (scale * jnp.einsum("...ED,E->...D", x.astype(jnp.float32), weights_E)).astype(x.dtype)


def num_targets(config: FrozenConfigDict) -> int:
  """Returns the number of words that are predicted, with ids from 0; the others are [UNK].

  Args:
    config: `config.model`.
  """
  return min(config.target_words or config.vocab_size, config.vocab_size)


def _with_all_words(prediction: Prediction, config: FrozenConfigDict) -> Prediction:
  """Returns a prediction with a row for every word; those that are not predicted never win."""
  missing = padded_vocab_size(config.vocab_size) - len(prediction.bias_V)
  return prediction._replace(table_VD=jnp.pad(prediction.table_VD, ((0, missing), (0, 0))),
                             bias_V=jnp.pad(prediction.bias_V, (0, missing), constant_values=-1e9))


def _reversed_order(is_token_BL: jax.Array) -> jax.Array:
  """Returns the order that reverses the tokens of rows, but not padding; it is its own inverse."""
  at_L = jnp.arange(is_token_BL.shape[1])
  lengths_B1 = is_token_BL.sum(1, keepdims=True)
  return jnp.where(at_L < lengths_B1, lengths_B1 - 1 - at_L, at_L)


def _zero_states(config: FrozenConfigDict, rows: int) -> State:
  layers = config.num_layers
  return State(jnp.zeros((layers, 2, rows, config.width // 2)),
               jnp.zeros((layers, 2, rows, config.mlp_dim)))


def _uniform(limit: float) -> nn.initializers.Initializer:
  """Returns an initializer of values between -limit and limit."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -limit, limit)


def _as_gates(init: nn.initializers.Initializer, axis: int) -> nn.initializers.Initializer:
  """Returns an initializer that treats the last two axes, gates and cells, as one."""
  return lambda key, shape, dtype=jnp.float32: init(
      key, (*shape[:axis], shape[axis] * shape[axis + 1]), dtype).reshape(shape)


def _unspelled(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """Returns padding in place of the characters of words, which are not known yet."""
  del key
  return jnp.full(shape, spelling.PADDING, dtype)


MODEL = Elmo

PARAMETERS = (
    Param(r"words/spelling$", ("vocab", None), decays=False, is_constant=True, is_embedding=True),
    Param(r"words/embedding$", (None, None), is_embedding=True),
    Param(r"words/filter_\d+_kernel$", (None, None, None), is_embedding=True),
    Param(r"words/filter_\d+_bias$", (None,), decays=False, is_embedding=True),
    Param(r"words/highway_\d+_(carry|transform)/kernel$", ("embed", "mlp"),
          is_matrix=True, is_embedding=True),
    Param(r"words/highway_\d+_(carry|transform)/bias$", ("mlp",), decays=False, is_embedding=True),
    Param(r"words/project/kernel$", ("embed", None), is_matrix=True, is_embedding=True),
    Param(r"words/project/bias$", (None,), decays=False, is_embedding=True),
    Param(r"encoder/lstm_\d+_kernel$", ("directions", "embed", None, "mlp")),
    Param(r"encoder/lstm_\d+_bias$", ("directions", None, "mlp"), decays=False),
    Param(r"encoder/lstm_\d+_project$", ("directions", "mlp", "embed"), is_matrix=True),
    Param(r"lm/embedding$", ("vocab", "embed")),
    Param(r"lm/bias$", ("vocab",), decays=False),
    Param(r"mix/(weights|scale)$", (None,), decays=False),
)
