"""ModernBERT and its decoder: published sizes, visibility, and parameters that nothing reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import families, padded_vocab_size
from bertgpt.models import Inputs, attention
from bertgpt.training import steps

VOCAB = 50_368  # Tokens of the published models.
NAMES = ("modernbert", "modernbert_decoder")


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("name, body, whole", [
    ("base", 149_014_272, 149_655_232), ("large", 394_781_696, 395_881_664),
    ("ettin_17m", 16_797_440, 16_913_600), ("ettin_32m", 31_883_136, 32_081_344),
    ("ettin_68m", 68_144_640, 68_457_664), ("ettin_150m", 149_014_272, 149_655_232),
    ("ettin_400m", 394_781_696, 395_881_664), ("ettin_1b", 1_028_050_688, 1_031_314_112)])
def test_sizes_are_the_published_ones(family, name, body, whole):
  """Sizes without and with the head; published files lack the first attention norm's scale."""
  config = config_lib.base()
  config.model.update(families.FAMILIES[family].presets[name], vocab_size=VOCAB)
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  init = models.make_model(config).init
  params = jax.eval_shape(init, jax.random.key(0), Inputs(*[ids] * 6))["params"]
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  width, padding = config.model.width, padded_vocab_size(VOCAB) - VOCAB
  assert size(params) - width - padding * (width + 1) == whole
  head = params["mlm" if family == "modernbert" else "lm"]
  assert size(params) - width - padding * width - size(head) == body


def make(family, **model):
  """Returns a small model with random parameters, none of which is 0 or 1."""
  config = tiny.make_config(families.FAMILIES[family].objectives[0], **{
      **families.FAMILIES[family].presets["base"], **tiny.SIZE, "window": 3, **model})
  network = models.make_model(config)
  return network, tiny.random_params(network, make_inputs())


def make_inputs(rows=1):
  """Returns rows of two packed texts and padding."""
  ids = np.repeat([[1] * 12 + [2] * 15 + [0] * 5], rows, 0).astype(np.int32)
  positions = np.repeat([[*range(12), *range(15), *range(5)]], rows, 0).astype(np.int32)
  tokens = np.random.default_rng(0).integers(5, tiny.VOCAB, (rows, tiny.LENGTH)).astype(np.int32)
  return Inputs(tokens, ids, positions)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("layers, every", [
    pytest.param(1, 3, marks=pytest.mark.slow), (2, 0), (2, 3)])
def test_local_layers_see_the_window_and_global_ones_the_sequence(family, layers, every):
  """Gradients show that two local layers reach twice as far as one, and a global layer, all."""
  network, params = make(family, num_layers=layers, global_every=every)
  inputs = make_inputs()

  def features(offset_LD):
    # Every position has a token of its own, whose embedding is moved.
    table = params["embeddings"]["token"]["embedding"].at[:tiny.LENGTH].add(offset_LD)
    moved = params | {"embeddings": params["embeddings"] | {"token": {"embedding": table}}}
    places = inputs._replace(tokens_BL=jnp.arange(tiny.LENGTH)[None])
    return tiny.apply(network, moved, places, method="features")[0]

  jacobian = jax.jacrev(lambda x: features(x) @ jax.random.normal(jax.random.key(3), (32,)))
  seen = np.abs(jax.jit(jacobian)(jnp.zeros((tiny.LENGTH, 32)))).sum(-1) > 0
  ids, at = inputs.sequence_ids_BL[0], np.arange(tiny.LENGTH)
  expected = ids[:, None] == ids
  if every == 0:
    expected &= abs(at[:, None] - at) <= 3 * layers
  if family == "modernbert_decoder":
    expected &= at[:, None] >= at
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("unroll, conditionals", [(0, 0), (1, 1)])
def test_an_unrolled_layer_has_the_kernel_of_its_kind_and_no_choice(monkeypatch, unroll,
                                                                    conditionals):
  """The kernel is cuDNN's, emulated by XLA; in a loop, each iteration chooses the window."""
  monkeypatch.setattr(attention.attention_kernels, "choose", lambda *args: ("cudnn", "a test"))
  network, params = make("modernbert_decoder", scan_unroll=unroll)
  tokens = np.full((2, tiny.LENGTH), 7, np.int32)
  inputs = Inputs.of_texts(tokens, jnp.full(2, tiny.LENGTH))
  encode = jax.jit(lambda p: network.apply({"params": p}, inputs, method="features"))
  text = encode.lower(params).compile().as_text()
  assert text.count(" conditional(") == conditionals


@pytest.mark.parametrize("family", NAMES)
def test_packed_texts_are_as_each_alone(family):
  """Positions restart at each text, and no layer sees the other text."""
  network, params = make(family)
  inputs = make_inputs()
  packed = tiny.apply(network, params, inputs, method="features")
  for part in (slice(0, 12), slice(12, 27)):
    alone = Inputs.of_texts(jnp.asarray(inputs.tokens_BL[:, part]),
                            jnp.array([part.stop - part.start]))
    found = tiny.apply(network, params, alone, method="features")
    np.testing.assert_allclose(packed[:, part], found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_nothing_reads_the_norm_before_the_first_layer(family):
  network, params = make(family)
  objective = families.FAMILIES[family].objectives[0]
  stack = {"mlm": "encoder", "causal": "decoder"}[objective]

  def total(params):
    x = tiny.apply(network, params, make_inputs(), method="features")
    return (x * jnp.arange(x.size).reshape(x.shape)).sum()

  grads = jax.jit(jax.grad(total))(params)[stack]["layers"]
  assert set(grads) == {"attention", "attention_norm", "mlp", "mlp_norm"}
  assert not grads["attention_norm"]["scale"][0].any()
  assert grads["attention_norm"]["scale"][1:].all() and grads["mlp_norm"]["scale"].all()
  assert all(path[-1].key in ("kernel", "scale")
             for path, _ in jax.tree_util.tree_leaves_with_path(grads))


def test_dropout_is_only_after_attention():
  """If attention's output matrices are zero, dropout changes nothing."""
  network, params = make("modernbert", dropout=0.5)
  out = params["encoder"]["layers"]["attention"]["out"]
  silent = jax.tree.map(lambda x: x, params)
  silent["encoder"]["layers"]["attention"]["out"] = jax.tree.map(jnp.zeros_like, out)
  rngs = {"dropout": jax.random.key(2)}
  for tree, is_same in ((silent, True), (params, False)):
    one, two = (tiny.apply(network, tree, make_inputs(), method="features", **kw)
                for kw in ({}, {"rngs": rngs}))
    assert np.abs(one - two).max() < 1e-6 if is_same else np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("family", NAMES)
def test_initial_values_are_those_of_megatron(family):
  """Warner et al. 2024: residual projections are smaller by sqrt(2 layers), all are truncated."""
  config = tiny.make_config(families.FAMILIES[family].objectives[0], **{
      **families.FAMILIES[family].presets["base"], **tiny.SIZE, "num_layers": 8, "width": 128})
  with tiny.Setup(config) as setup:
    params = steps.make_state(setup.training, setup.abstract).params
  (stack,) = {"encoder", "decoder"} & params.keys()
  layers = params[stack]["layers"]
  truncated = 0.8796  # Deviation of a normal distribution that is cut at two deviations.
  for path, std in ((("attention", "out"), 0.005), (("mlp", "down"), 0.005),
                    (("mlp", "gate"), 0.02), (("mlp", "up"), 0.02), (("attention", "key"), 0.02)):
    kernel = np.asarray(layers[path[0]][path[1]]["kernel"])
    assert kernel.std() == pytest.approx(std * truncated, rel=0.02), path
    assert np.abs(kernel).max() <= 2 * std + 1e-9


def losses_and_gradients(family, mesh, micro_batches, **model):
  objective = families.FAMILIES[family].objectives[0]
  config = tiny.make_config(objective, mesh=mesh, **{
      **families.FAMILIES[family].presets["base"], **tiny.SIZE, "mlp_dim": 64, "window": 3,
      "dtype": "float32", "num_layers": 4, "dropout": 0.0, **model})
  with tiny.Setup(config) as setup:
    params = setup.init().params
    batch = setup.put(tiny.make_batch(config))
    grads, (loss, _) = setup.gradients(micro_batches)(params, batch, 3)
    return float(loss), jax.device_get(grads)


@functools.cache
def undivided(family):
  return losses_and_gradients(family, (1, 1, 1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("mesh, micro_batches, model", [
    ((8, 1, 1), 4, {}), ((2, 2, 2), 2, {"remat": "full"}), ((1, 2, 4), 1, {"scan_unroll": 0}),
    ((1, 1, 1), 8, {"remat": "dots"}), ((4, 1, 2), 4, {"remat": "products", "scan_unroll": 2})])
@pytest.mark.parametrize("family", NAMES)
def test_loss_and_gradients_are_the_same_however_a_step_is_divided(family, mesh, micro_batches,
                                                                   model):
  """The model has local and global layers, and the rows hold two texts."""
  loss, grads = losses_and_gradients(family, mesh, micro_batches, **model)
  expected_loss, expected = undivided(family)
  assert loss == pytest.approx(expected_loss, rel=1e-5)
  for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * expected_loss)
