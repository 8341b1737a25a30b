"""bertgpt.models.elmo against NumPy and PyTorch, and what its directions see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from differences import check_close, check_gradients

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import families
from bertgpt.data.tokens import spelling
from bertgpt.hub import elmo as hub
from bertgpt.models import Inputs, elmo
from bertgpt.training import objectives

WORDS = [b"[PAD]", b"<UNK>", b"", b"", b"", *(b"w%d" % (7 ** i % 1000) for i in range(1, 40))]
MARKS = {tiny.CLS: 256, tiny.SEP: 257}


def spell(word):
  """Returns the character ids of a word, as bilm-tf documents them."""
  inner = [MARKS[word]] if word in MARKS else list(WORDS[word])
  return [258, *inner, 259] + [260] * (48 - len(inner))


def make_model(seed=0, **model):
  """Returns config.model, the module, and parameters whose words are spelled."""
  fields = {"num_layers": 2, "vocab_size": len(WORDS), "state_clip": 0.1, "num_highways": 2}
  config = tiny.make_config("bilm", **(fields | model))
  module = models.make_model(config)
  inputs = Inputs.of_texts(jnp.zeros((1, 8), jnp.int32), jnp.array([8]))
  params = jax.jit(module.init)(jax.random.key(seed), inputs)["params"]
  table = np.full(params["words"]["spelling"].shape, 260, np.float32)
  table[:len(WORDS)] = [spell(word) for word in range(len(WORDS))]
  params["words"]["spelling"] = jnp.asarray(table)
  rng = np.random.default_rng(seed)  # Biases begin as zeros, which would hide where they belong.
  params["encoder"] = {name: x + rng.normal(size=x.shape).astype(np.float32) * (
      0.3 if "bias" in name else 0) for name, x in params["encoder"].items()}
  return config.model, module, params


# ------------------------------------------------------------------ NumPy


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


class NumpyElmo:
  """The model of bilm-tf, from the arrays of its file: reads word by word, and keeps a state."""

  def __init__(self, arrays, clip, has_residual):
    self.w = {name: x.astype(np.float64) for name, x in arrays.items()}
    self.clip, self.has_residual, self.state = clip, has_residual, {}

  def embed(self, word):
    x = self.w["char_embed"][spell(word)]
    pooled, i = [], 0
    while f"CNN/W_cnn_{i}" in self.w:
      kernel, = self.w[f"CNN/W_cnn_{i}"]
      places = range(len(x) - len(kernel) + 1)
      outputs = [np.einsum("wc,wcn->n", x[at:at + len(kernel)], kernel) for at in places]
      pooled.append(np.maximum(np.max(outputs, 0) + self.w[f"CNN/b_cnn_{i}"], 0))
      i += 1
    y, i = np.concatenate(pooled), 0
    while f"CNN_high_{i}/W_carry" in self.w:
      high = {part: y @ self.w[f"CNN_high_{i}/W_{part}"] + self.w[f"CNN_high_{i}/b_{part}"]
              for part in ("carry", "transform")}
      gate = sigmoid(high["carry"])
      y = gate * np.maximum(high["transform"], 0) + (1 - gate) * y
      i += 1
    return y @ self.w["CNN_proj/W_proj"] + self.w["CNN_proj/b_proj"]

  def step(self, direction, layer, x):
    cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
    kernel, bias, project = (self.w[cell + name] for name in ("W_0", "B", "W_P_0"))
    h, c = self.state.get(cell, (np.zeros(project.shape[1]), np.zeros(project.shape[0])))
    i, j, f, o = np.split(np.concatenate([x, h]) @ kernel + bias, 4)
    c = np.clip(sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j), -self.clip, self.clip)
    h = np.clip((sigmoid(o) * np.tanh(c)) @ project, -self.clip, self.clip)
    self.state[cell] = h, c
    return h + x if layer and self.has_residual else h

  def read(self, direction, words):
    """Returns the features of words, in the order in which they are read: [words, layers, P]."""
    rows = []
    for word in words:
      layers = [self.embed(word)]
      for layer in range(2):
        layers.append(self.step(direction, layer, layers[-1]))
      rows.append(layers)
    return np.array(rows)


def make_sentences(count, seed=0):
  rng = np.random.default_rng(seed)
  return [[tiny.CLS, *rng.integers(5, len(WORDS), rng.integers(1, 9)).tolist(), tiny.SEP]
          for _ in range(count)]


@pytest.mark.parametrize("residual", [pytest.param(True, marks=pytest.mark.slow), False])
def test_ten_sentences_in_a_row_equal_numpy(residual):
  """Both directions keep their state from one sentence to the next."""
  config, module, params = make_model(lstm_residual=residual)
  oracle = NumpyElmo(hub.to_bilm(params, config), config.state_clip, residual)
  read = jax.jit(functools.partial(module.apply, method="read"))
  carry = {name: np.zeros((1, *shape), dtype)
           for name, (shape, dtype) in elmo.carry_specs(config).items()}
  is_clipped = False
  for sentence in make_sentences(10):
    tokens = np.array([[sentence], [sentence[::-1]]], np.int32)
    forward, backward, carry = read({"params": params}, tokens, np.ones(tokens.shape[1:], bool),
                                    carry)
    for direction, found in enumerate((forward, backward)):
      expected = oracle.read(direction, tokens[direction, 0].tolist())[:, -1]
      check_close("features of the last layer", found.x[0], expected, atol=2e-6)
    is_clipped |= bool((np.abs(carry["hidden"]) == np.float32(config.state_clip)).any())
  assert is_clipped  # Otherwise, the test would not notice a wrong order of the clips.


def tiny_config(model):
  config = tiny.make_config("bilm")
  config.model.update(model)
  return config


def test_features_of_padded_rows_are_those_of_numpy_without_a_state():
  config, module, params = make_model()
  arrays = hub.to_bilm(params, config)
  sentences = make_sentences(4, seed=1)
  lengths = np.array([len(s) for s in sentences], np.int32)
  tokens = np.zeros((4, 12), np.int32)
  for row, sentence in zip(tokens, sentences, strict=True):
    row[:len(sentence)] = sentence
  found = jax.jit(functools.partial(module.apply, method="features"))(
      {"params": params}, Inputs.of_texts(tokens, lengths))
  for features, sentence in zip(np.asarray(found), sentences, strict=True):
    forward = NumpyElmo(arrays, config.state_clip, True).read(0, sentence)
    backward = NumpyElmo(arrays, config.state_clip, True).read(1, sentence[::-1])[::-1]
    expected = np.concatenate([forward, backward], -1).reshape(len(sentence), -1)
    check_close("features of all layers", features[:len(sentence)], expected, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_that_is_cut_into_steps_is_read_as_a_whole(dtype):
  config, module, params = make_model(dtype=dtype)
  rng = np.random.default_rng(0)
  tokens = rng.integers(5, len(WORDS), (2, 3, 24)).astype(np.int32)
  is_token = np.arange(24) < np.array([[24], [24], [20]])
  read = jax.jit(functools.partial(module.apply, method="read"))
  carry = {name: np.zeros((3, *shape), dtype)
           for name, (shape, dtype) in elmo.carry_specs(config).items()}
  whole = read({"params": params}, tokens, is_token, carry)
  outputs = []
  for start in (0, 8, 16):
    cut = slice(start, start + 8)
    *predictions, carry = read({"params": params}, tokens[:, :, cut], is_token[:, cut], carry)
    outputs.append([p.x.astype(np.float32) for p in predictions])
  close = functools.partial(np.testing.assert_allclose, atol=1e-6 if dtype == "float32" else 1e-2)
  for direction in range(2):
    joined = np.concatenate([x[direction] for x in outputs], 1)
    close(joined[is_token], np.asarray(whole[direction].x.astype(np.float32))[is_token])
  jax.tree.map(close, carry, whole[2])


def test_gradients_of_long_rows_are_summed_in_float32():
  """Summed in bfloat16, those of the recurrent weights would be off by 1.7%."""
  rng = np.random.default_rng(0)
  width, cells, length = 32, 64, 256
  draw = lambda *shape, scale: jnp.asarray(rng.normal(0, scale, shape), jnp.float32)
  x_2BLP, target_2BLP = (draw(2, 4, length, width, scale=1.0) for _ in range(2))
  weights = (draw(2, 2 * width, 4, cells, scale=0.1), draw(2, 4, cells, scale=0.1),
             draw(2, cells, width, scale=0.1))

  def loss(weights, dtype):
    state = elmo.State(jnp.zeros((2, 4, width)), jnp.zeros((2, 4, cells)))
    y_2BLP, _ = elmo.run_lstm(*weights, x_2BLP.astype(dtype), jnp.ones((4, length), bool), state, 0)
    return (y_2BLP.astype(jnp.float32) * target_2BLP).sum()

  exact, found = (jax.jit(jax.grad(functools.partial(loss, dtype=dtype)))(weights)
                  for dtype in ("float32", "bfloat16"))
  for a, b in zip(found, exact, strict=True):
    assert np.linalg.norm(a - b) < 8e-3 * np.linalg.norm(b)


# -------------------------------------------------------------- visibility


def test_a_hidden_word_is_guessed_from_all_others_but_not_from_itself():
  config, module, params = make_model()
  sentence = np.array([tiny.CLS, 7, 8, 9, 10, 11, tiny.SEP], np.int32)
  apply = jax.jit(lambda tokens: module.apply({"params": params}, Inputs.of_texts(
      tokens[None], jnp.array([7]))._replace(predict_positions_BK=jnp.array([[3]]))))
  logits = apply(sentence)
  for place in range(1, 6):
    changed = sentence.copy()
    changed[place] = 20
    assert np.array_equal(apply(changed), logits) == (place == 3)
  assert logits.shape == (1, 1, 128)
  assert (logits[..., len(WORDS):] < -1e8).all()


def test_words_that_are_not_predicted_never_win():
  _, module, params = make_model(target_words=12)
  assert params["lm"]["bias"].shape == (128,)
  inputs = Inputs.of_texts(np.array([[tiny.CLS, 7, 30, tiny.SEP]], np.int32), np.array([4]))
  logits = tiny.apply(module, params, inputs)
  assert logits.shape == (1, 4, 128)
  assert (logits[..., 12:] < -1e8).all() and (logits[..., :12] > -100).all()


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("name, count", [
    ("small", 13_593_296), ("medium", 28_027_728), ("original", 93_600_848)])
def test_sizes_have_the_published_numbers_of_parameters(name, count):
  config = config_lib.base()
  config.model.update(families.FAMILIES["elmo"].presets[name], vocab_size=100)
  module = models.make_model(config)
  inputs = Inputs.of_texts(jnp.zeros((1, 8), jnp.int32), jnp.array([8]))
  params = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs))["params"]
  spelled = params["words"].pop("spelling")
  assert spelled.shape == (128, spelling.WORD_CHARS)
  of_output = sum(x.size for x in jax.tree.leaves(params.pop("lm")))
  assert of_output == 128 * (config.model.width // 2 + 1)
  assert sum(x.size for x in jax.tree.leaves(params)) == count


# -------------------------------------------------------------------- PyTorch


def torch_loss(torch, arrays, output, batch, config):
  """Returns the loss of a batch whose state is zero, from arrays with the names of bilm-tf."""
  limit = lambda x: x.clamp(-config.state_clip, config.state_clip)
  functional = torch.nn.functional

  def embed(words):
    chars = torch.tensor([[spell(word) for word in row] for row in words.tolist()])
    x = arrays["char_embed"][chars.flatten(0, 1)].transpose(1, 2)
    pooled = [functional.relu(functional.conv1d(
        x, arrays[f"CNN/W_cnn_{i}"][0].permute(2, 1, 0), arrays[f"CNN/b_cnn_{i}"]).amax(2))
        for i in range(len(config.filters))]
    x = torch.cat(pooled, 1)
    for i in range(config.num_highways):
      w = {name: arrays[f"CNN_high_{i}/{name}"]
           for name in ("W_carry", "b_carry", "W_transform", "b_transform")}
      gate = torch.sigmoid(x @ w["W_carry"] + w["b_carry"])
      x = gate * functional.relu(x @ w["W_transform"] + w["b_transform"]) + (1 - gate) * x
    return (x @ arrays["CNN_proj/W_proj"] + arrays["CNN_proj/b_proj"]).unflatten(0, words.shape)

  total = 0
  for direction, names in enumerate((("tokens", "targets"),
                                     ("backward_tokens", "backward_targets"))):
    words, targets = (torch.tensor(batch[name], dtype=torch.long) for name in names)
    x = embed(words)
    for layer in range(config.num_layers):
      cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
      kernel, bias, project = (arrays[cell + name] for name in ("W_0", "B", "W_P_0"))
      h, c = x.new_zeros(len(x), project.shape[1]), x.new_zeros(len(x), project.shape[0])
      outputs = []
      for t in range(x.shape[1]):
        i, j, f, o = (torch.cat([x[:, t], h], 1) @ kernel + bias).chunk(4, 1)
        c = limit(torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j))
        h = limit((torch.sigmoid(o) * torch.tanh(c)) @ project)
        outputs.append(h)
      y = torch.stack(outputs, 1)
      x = y + x if layer else y
    logits = x @ output[0][:len(WORDS)].T + output[1][:len(WORDS)]
    nats = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    weights = torch.tensor(batch["sequence_ids"] > 0)
    total = total + (nats * weights).sum() / weights.sum() / 2
  return total


@pytest.mark.hf
def test_loss_and_gradients_equal_those_of_pytorch():
  import torch
  # With the usual limit, clipping would leave half of the elements of a state without a gradient.
  config, module, params = make_model(state_clip=0.3)
  rng = np.random.default_rng(3)
  batch = {name: rng.integers(5, len(WORDS), (3, 6)).astype(np.int32)
           for name in ("tokens", "targets", "backward_tokens", "backward_targets")}
  batch |= {"sequence_ids": np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 6], np.int32),
            "positions": np.zeros((3, 6), np.int32)}
  whole = tiny_config(config)
  objective = objectives.make_objective(
      whole, tiny.make_vocabulary()._replace(size=len(WORDS)))
  carry = objectives.make_zero_carry(objective, 3)

  def loss_of(params):
    model = objectives.BoundModel(module, params, carry=carry)
    sums, _ = objective.compute_sums(model, batch)
    return objectives.total_loss(sums, objective.weights(batch))

  loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
  assert not np.any(grads["words"]["spelling"])
  arrays = {name: torch.tensor(x, requires_grad=True)
            for name, x in hub.to_bilm(params, config).items()}
  output = [torch.tensor(np.asarray(params["lm"][name]), requires_grad=True)
            for name in ("embedding", "bias")]
  expected = torch_loss(torch, arrays, output, batch, config)
  expected.backward()
  check_close("loss", loss, expected.item(), atol=1e-5 * expected.item())
  arrays |= dict(zip(("embedding", "bias"), output, strict=True))
  found = hub.to_bilm(grads, config) | {name: grads["lm"][name] for name in ("embedding", "bias")}
  assert all(x.grad.abs().max() > 0 for x in arrays.values())
  check_gradients(found, {name: x.grad.numpy() for name, x in arrays.items()})
