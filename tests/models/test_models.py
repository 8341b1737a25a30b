"""Both families against plain NumPy, exact parameter counts, and which token sees which."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import padded_vocab_size, presets
from bertgpt.models import Inputs
from bertgpt.models.cache import make_cache

VOCAB = 300  # Padded to 384.


def make_config(family="bert", norm="post", **model):
  config = config_lib.base()
  config.model.update({
      "family": family, "num_layers": 3, "width": 32, "num_heads": 4, "mlp_dim": 64,
      "max_positions": 24, "vocab_size": VOCAB, "dtype": "float32", "norm": norm,
      "num_segments": 2 if family == "bert" else 0,
      "layer_norm_epsilon": 1e-12 if family == "bert" else 1e-5, **model})
  config.objective.name = "mlm_nsp" if family == "bert" else "causal"
  config.phases[0].seq_len = 24
  return config


def make_inputs(rng, rows=2, length=24):
  """Returns rows of two packed sequences and padding."""
  sequence_ids = np.repeat([[1] * 10 + [2] * 9 + [0] * 5], rows, axis=0).astype(np.int32)
  positions = np.repeat([[*range(10), *range(9), *range(5)]], rows, axis=0).astype(np.int32)
  tokens = rng.integers(5, VOCAB, (rows, length)).astype(np.int32)
  segments = rng.integers(0, 2, (rows, length)).astype(np.int32)
  predict = rng.integers(0, 19, (rows, 4)).astype(np.int32)
  return Inputs(tokens, sequence_ids, positions, segments, predict,
                np.repeat([[0, 10]], rows, axis=0))


def make_text_inputs(tokens):
  """Returns full rows of one text each."""
  return Inputs.of_texts(tokens, jnp.full(len(tokens), tokens.shape[1]))


def init(config, inputs, seed=0):
  """Returns random parameters, even for biases and norms, so that none hides an error."""
  model = models.make_model(config)
  return model, tiny.random_params(model, inputs, seed)


# ----------------------------------------------------------- a NumPy oracle


def np_norm(x, p, epsilon):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + epsilon) * p["scale"] + p.get("bias", 0)


def np_rms_norm(x, p, epsilon):
  return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon) * p["scale"]


def np_dense(x, p):
  return x @ p["kernel"] + p.get("bias", 0)


def np_gelu(x, activation):
  if activation == "silu":
    return x / (1 + np.exp(-x))
  if activation == "gelu_tanh":
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def np_attention(x, p, sequence_ids, heads, causal, window=0, turn=lambda x: x):
  """Computes attention for one query at a time, over the keys that it sees."""
  q, k, v = (np_dense(x, p[name]) for name in ("query", "key", "value"))
  q, k = turn(q), turn(k)
  out, size = np.zeros_like(q), q.shape[-1] // heads
  for b, i, h in np.ndindex(*x.shape[:2], heads):
    seen = [j for j in range(x.shape[1]) if sequence_ids[b, j] == sequence_ids[b, i]
            and (j <= i or not causal) and (not window or abs(i - j) <= window)]
    part = slice(h * size, (h + 1) * size)
    scores = k[b, seen, part] @ q[b, i, part] / math.sqrt(size)
    weights = np.exp(scores - scores.max())
    out[b, i, part] = weights / weights.sum() @ v[b, seen, part]
  return np_dense(out, p["out"])


def np_stack(x, layers, sequence_ids, model, causal):
  for i in range(model.num_layers):
    x = np_block(x, jax.tree.map(lambda a: a[i], layers), sequence_ids, model, causal)  # noqa: B023
  return x


def np_block(x, p, sequence_ids, model, causal):
  norm = lambda y, name: np_norm(y, p[name], model.layer_norm_epsilon)
  attend = lambda y: np_attention(y, p["attention"], sequence_ids, model.num_heads, causal)
  up = lambda y: np_gelu(np_dense(y, p["mlp"]["up"]), model.activation)
  mlp = lambda y: np_dense(up(y), p["mlp"]["down"])
  if model.norm == "post":
    x = norm(x + attend(x), "attention_norm")
    return norm(x + mlp(x), "mlp_norm")
  x = x + attend(norm(x, "attention_norm"))
  return x + mlp(norm(x, "mlp_norm"))


def to_float64(params):
  return jax.tree.map(lambda p: np.asarray(p, np.float64), params)


@pytest.mark.parametrize("norm, activation", [
    ("post", "gelu_tanh"), ("post", "gelu_erf"), ("pre", "gelu_tanh")])
def test_bert_equals_numpy(norm, activation):
  config = make_config(norm=norm, activation=activation)
  inputs = make_inputs(np.random.default_rng(0))
  tokens, sequence_ids, positions, segments, predict, cls, *_ = inputs
  model, params = init(config, inputs)
  mlm, nsp = tiny.apply(model, params, inputs)

  p = to_float64(params)
  e = p["embeddings"]
  x = (e["token"]["embedding"][tokens] + e["position"]["embedding"][positions]
       + e["segment"]["embedding"][segments])
  x = np_norm(x, e["norm"], 1e-12)
  x = np_stack(x, p["encoder"]["layers"], sequence_ids, config.model, causal=False)
  x = np_norm(x, p["final_norm"], 1e-12) if norm == "pre" else x
  rows = np.arange(len(x))[:, None]
  y = np_gelu(np_dense(x[rows, predict], p["mlm"]["dense"]), activation)
  y = np_norm(y, p["mlm"]["norm"], 1e-12)
  expected_mlm = (y @ e["token"]["embedding"].T + p["mlm"]["bias"])[..., :VOCAB]
  expected_nsp = np_dense(np.tanh(np_dense(x[rows, cls], p["pooler"])), p["nsp"])
  np.testing.assert_allclose(mlm[..., :VOCAB], expected_mlm, rtol=0, atol=1e-5)
  np.testing.assert_allclose(nsp, expected_nsp, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_gpt_equals_numpy(norm):
  config = make_config("gpt", norm)
  inputs = make_inputs(np.random.default_rng(0))
  tokens, sequence_ids, positions, *_ = inputs
  model, params = init(config, inputs)
  logits = tiny.apply(model, params, inputs)

  p = to_float64(params)
  e = p["embeddings"]
  x = e["token"]["embedding"][tokens] + e["position"]["embedding"][positions]
  x = np_stack(x, p["decoder"]["layers"], sequence_ids, config.model, True)
  x = np_norm(x, p["final_norm"], 1e-5) if norm == "pre" else x
  expected = (x @ e["token"]["embedding"].T)[..., :VOCAB]
  np.testing.assert_allclose(logits[..., :VOCAB], expected, rtol=0, atol=1e-5)


# Everything in which later models' layers differ from those of BERT and GPT, in two mixtures.
MODERN = {"norm": "pre", "skip_first_norm": True, "norm_bias": False, "use_bias": False,
          "mlp": "gated", "activation": "gelu_erf", "window": 3, "global_every": 2,
          "position": "rope", "rope_theta": 300.0, "rope_theta_local": 20.0}
LLAMA = {"norm": "pre", "norm_kind": "rms", "use_bias": False, "mlp": "gated", "activation": "silu",
         "position": "rope"}


def np_modern_stack(x, layers, sequence_ids, positions, model, causal):
  """Computes layers with the options of later models; rotary angles are complex numbers."""
  norm = np_rms_norm if model.norm_kind == "rms" else np_norm
  size = model.width // model.num_heads

  def turn(theta, y):
    y = y.reshape(*y.shape[:2], model.num_heads, size)
    angles = positions[:, :, None, None] * theta ** (-2 * np.arange(size // 2) / size)
    pairs = (y[..., :size // 2] + 1j * y[..., size // 2:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], -1).reshape(x.shape)

  for i in range(model.num_layers):
    p = jax.tree.map(lambda a: a[i], layers)  # noqa: B023
    is_local = model.window and i % model.global_every
    theta = model.rope_theta_local if is_local else model.rope_theta
    y = x if i == 0 and model.skip_first_norm else norm(x, p["attention_norm"], 1e-5)
    x = x + np_attention(y, p["attention"], sequence_ids, model.num_heads, causal,
                         model.window * bool(is_local), functools.partial(turn, theta))
    y = norm(x, p["mlp_norm"], 1e-5)
    gate = np_gelu(np_dense(y, p["mlp"]["gate"]), model.activation)
    x = x + np_dense(gate * np_dense(y, p["mlp"]["up"]), p["mlp"]["down"])
  return x


@pytest.mark.parametrize("family", ["bert", "gpt"])
@pytest.mark.parametrize("fields", [MODERN, LLAMA], ids=["modern", "llama"])
def test_later_layers_equal_numpy_in_every_family(family, fields):
  config = make_config(family, **{**fields, "layer_norm_epsilon": 1e-5})
  inputs = make_inputs(np.random.default_rng(0))
  tokens, sequence_ids, positions, segments, *_ = inputs
  model, params = init(config, inputs)
  found = tiny.apply(model, params, inputs, method="features")

  p = to_float64(params)
  e = p["embeddings"]
  assert "position" not in e
  norm = np_rms_norm if config.model.norm_kind == "rms" else np_norm
  x = e["token"]["embedding"][tokens]
  if family == "bert":
    x = norm(x + e["segment"]["embedding"][segments], e["norm"], 1e-5)
  layers = p["encoder" if family == "bert" else "decoder"]["layers"]
  x = np_modern_stack(x, layers, sequence_ids, positions, config.model, family == "gpt")
  np.testing.assert_allclose(found, norm(x, p["final_norm"], 1e-5), rtol=0, atol=2e-5)


def test_layers_that_share_their_parameters_have_kinds_of_their_own():
  """Of four layers in two groups, the first and the third are global."""
  config = make_config(num_layers=4, layer_groups=2, **MODERN)
  config.model.family, config.objective.name = "albert", "mlm_sop"
  inputs = make_inputs(np.random.default_rng(0))
  model, params = init(config, inputs)
  found = tiny.apply(model, params, inputs, method="features")
  layers = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), params["encoder"]["layers"])
  config.model.layer_groups = 0
  params = params | {"encoder": {"layers": layers}}
  expected = tiny.apply(models.make_model(config), params, inputs, method="features")
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------- sizes


def count_parameters(config, with_pretraining_heads):
  """Returns the number of parameters with an unpadded vocabulary, from shapes only."""
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  model = models.make_model(config)
  params = jax.eval_shape(model.init, jax.random.key(0), Inputs(*[ids] * 6))["params"]
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  padding = padded_vocab_size(config.model.vocab_size) - config.model.vocab_size
  total = size(params) - padding * config.model.width
  if config.objective.name == "mlm":
    return total - padding - size(params["pooler"]) - size(params["nsp"])
  if config.model.family == "gpt":
    return total
  if with_pretraining_heads:
    return total - padding
  return total - size(params["mlm"]) - size(params["nsp"])


@pytest.mark.parametrize("name, vocab_size, with_pooler, pretraining", [
    ("base", 30522, 109_482_240, 110_106_428), ("large", 30522, 335_141_888, 336_226_108),
    ("base", 28996, 108_310_272, 108_932_934), ("large", 28996, 333_579_264, 334_661_958),
    ("tiny", 30522, 4_385_920, None), ("mini", 30522, 11_170_560, None),
    ("small", 30522, 28_763_648, None), ("medium", 30522, 41_373_184, None)])
def test_bert_sizes_are_the_published_ones(name, vocab_size, with_pooler, pretraining):
  config = config_lib.base()
  config.model.update(presets.BERT[name])
  config.model.vocab_size = vocab_size
  assert count_parameters(config, False) == with_pooler
  if pretraining:
    assert count_parameters(config, True) == pretraining


@pytest.mark.parametrize("name, size", [("base", 124_697_433), ("large", 355_412_057)])
def test_roberta_sizes_are_those_of_its_masked_lm_in_transformers(name, size):
  """It has 514 rows of positions, one segment and no pooler."""
  config = config_lib.base()
  config.objective.name = "mlm"
  config.model.update(presets.ROBERTA[name], vocab_size=50_265, num_segments=1)
  config.model.max_positions += 2
  assert count_parameters(config, True) == size


@pytest.mark.parametrize("preset, vocab_size, size", [
    (presets.GPT1, 40478, 116_534_784), (presets.GPT2["small"], 50257, 124_439_808),
    (presets.GPT2["medium"], 50257, 354_823_168), (presets.GPT2["large"], 50257, 774_030_080),
    (presets.GPT2["xl"], 50257, 1_557_611_200)], ids=["gpt1", "small", "medium", "large", "xl"])
def test_gpt_sizes_are_the_published_ones(preset, vocab_size, size):
  config = config_lib.base()
  config.model.update(preset)
  config.model.vocab_size = vocab_size
  assert count_parameters(config, True) == size


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_one_rotation_leads_from_every_sinusoid_position_to_the_next(family):
  config = make_config(family, norm="post", position_init="sinusoid", position_init_std=0.05)
  inputs = make_inputs(np.random.default_rng(0))
  params = jax.jit(models.make_model(config).init)(jax.random.key(0), inputs)["params"]
  table = np.asarray(params["embeddings"]["position"]["embedding"], np.float64)
  turned = table[:, :16] + 1j * table[:, 16:]  # (sin, cos) of one frequency as one complex number.
  steps = turned[1:] / turned[:-1]
  np.testing.assert_allclose(steps, np.repeat(steps[:1], 23, axis=0), atol=1e-5)
  assert len(np.unique(np.round(steps[0], 4))) == 16  # All frequencies have different angles.
  assert np.sqrt((table**2).mean()) == pytest.approx(0.05, rel=1e-5)
  # Positions are orthogonal and have the same length.
  np.testing.assert_allclose(table @ table.T, 32 * 0.05**2 * np.eye(24), atol=1e-6)


def test_gpt2_residual_projections_start_smaller():
  """Radford et al. 2019, 2.3: by 1 / sqrt(number of residual layers)."""
  config = make_config("gpt", "pre", scale_residual_init=True, truncated_init=False, num_layers=8,
                       width=128)
  inputs = make_text_inputs(jnp.zeros((1, 8), jnp.int32))
  params = jax.jit(models.make_model(config).init)(jax.random.key(0), inputs)["params"]
  layers = params["decoder"]["layers"]
  for kernel in (layers["attention"]["out"]["kernel"], layers["mlp"]["down"]["kernel"]):
    assert float(kernel.std()) == pytest.approx(0.02 / 4, rel=0.02)
  assert float(layers["mlp"]["up"]["kernel"].std()) == pytest.approx(0.02, rel=0.02)


# ------------------------------------------------------------ visibility


def influence(config, inputs):
  """Returns |gradients| of the features at l by the embedding at s in row 0: [L, L]."""
  model, params = init(config, inputs)
  tokens = inputs.tokens_BL

  def features(offset_LD):
    # Every position has a token of its own, whose embedding is moved.
    places = jnp.arange(tokens.shape[1])[None]
    table = params["embeddings"]["token"]["embedding"]
    moved = params | {"embeddings": params["embeddings"] | {
        "token": {"embedding": table.at[: tokens.shape[1]].add(offset_LD)}}}
    row = jax.tree.map(lambda x: x[:1], inputs)._replace(tokens_BL=places)
    return tiny.apply(model, moved, row, method="features")[0]

  jacobian = jax.jacrev(lambda x: features(x) @ jax.random.normal(jax.random.key(3), (32,)))
  return np.abs(jax.jit(jacobian)(jnp.zeros((tokens.shape[1], 32)))).sum(-1)


def test_bert_sees_its_whole_sequence_and_nothing_else():
  inputs = make_inputs(np.random.default_rng(0))
  seen = influence(make_config(), inputs) > 0
  ids = inputs.sequence_ids_BL[0]
  np.testing.assert_array_equal(seen, ids[:, None] == ids[None, :])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_gpt_sees_its_own_past_and_nothing_else(norm):
  inputs = make_inputs(np.random.default_rng(0))
  seen = influence(make_config("gpt", norm), inputs) > 0
  ids = inputs.sequence_ids_BL[0]
  expected = (ids[:, None] == ids[None, :]) & np.tri(len(ids), dtype=bool)
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("norm, model", [
    ("post", {}), ("pre", {"scan_unroll": 0}), ("pre", MODERN),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("pre", {}), ("post", {"remat": "full"}), ("pre", MODERN | {"global_every": 0})))])
def test_a_cache_changes_no_logits(norm, model):
  """Tokens arrive in parts of any length, and every row begins at its own position."""
  config = make_config("gpt", **{"norm": norm, "num_layers": 2, **model})
  rng, rows, length = np.random.default_rng(0), 3, 20
  tokens = rng.integers(5, VOCAB, (rows, length)).astype(np.int32)
  positions = np.tile(np.arange(length), (rows, 1))
  whole = make_text_inputs(tokens)
  gpt, params = init(config, whole)
  expected = tiny.apply(gpt, params, whole)

  # Each row has its own prompt; later tokens do not see the slots after it.
  prompts = np.array([7, 4, 1])
  start = np.where(np.arange(7) < prompts[:, None], tokens[:, :7], 299)
  cache = make_cache(config.model, rows, 24)
  _, cache = tiny.apply(gpt, params, start, positions[:, :7], cache, method="extend")
  at, found = prompts.copy(), np.zeros((rows, length, VOCAB))
  for part in (1, 1, 3, 1, 7):
    where = at[:, None] + np.arange(part)
    x, cache = tiny.apply(gpt, params, np.take_along_axis(tokens, where, 1), where, cache,
                          method="extend")
    logits = tiny.apply(gpt, params, x, method="logits")
    np.put_along_axis(found, where[:, :, None], np.asarray(logits)[:, :, :VOCAB], 1)
    at += part
  for row, (first, last) in enumerate(zip(prompts, at, strict=True)):
    np.testing.assert_allclose(found[row, first:last], expected[row, first:last, :VOCAB],
                               rtol=0, atol=1e-5)


def test_padded_ids_never_win_and_take_no_probability():
  config = make_config()
  inputs = make_inputs(np.random.default_rng(0))
  model, params = init(config, inputs)
  params["mlm"]["bias"] = params["mlm"]["bias"].at[VOCAB:].set(1e6)
  mlm, _ = tiny.apply(model, params, inputs)
  assert mlm.shape[-1] == 384
  assert (mlm.argmax(-1) < VOCAB).all()
  assert float(jax.nn.softmax(mlm)[..., VOCAB:].sum()) == 0


def test_bfloat16_compute_keeps_float32_where_it_matters():
  config = make_config(dtype="bfloat16")
  inputs = make_inputs(np.random.default_rng(0))
  model, params = init(config, inputs)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  mlm, nsp = tiny.apply(model, params, inputs)
  assert mlm.dtype == nsp.dtype == jnp.float32
  exact, _ = tiny.apply(models.make_model(make_config()), params, inputs)
  np.testing.assert_allclose(mlm[..., :VOCAB], exact[..., :VOCAB], atol=0.15)
  text = jax.jit(model.apply).lower({"params": params}, inputs).as_text()
  assert all("f32" in line for line in text.splitlines() if "stablehlo.exponential" in line)


def test_dropout_is_on_only_with_a_key():
  config = make_config()
  inputs = make_inputs(np.random.default_rng(0))
  model, params = init(config, inputs)
  apply = lambda **kw: np.asarray(tiny.apply(model, params, inputs, **kw)[0])
  np.testing.assert_array_equal(apply(), apply())
  one, two = (apply(rngs={"dropout": jax.random.key(i)}) for i in (0, 1))
  assert np.abs(one - apply()).max() > 0.1 and np.abs(one - two).max() > 0.1
