"""ALBERT: published sizes, and shared layers against a BERT whose layers have equal parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import families, padded_vocab_size
from bertgpt.models import Inputs
from bertgpt.models.layers import layer_outputs
from bertgpt.training import steps

VOCAB = 30_000  # Tokens of the published models.


@pytest.mark.parametrize("name, pretraining, encoder, masked_lm", [
    ("base", 11_813_810, 11_683_584, 11_221_680), ("large", 17_847_474, 17_683_968, 16_795_824),
    ("xlarge", 59_021_490, 58_724_864, 54_821_040),
    ("xxlarge", 223_158_450, 222_595_584, 206_368_944)])
def test_sizes_are_the_published_ones(name, pretraining, encoder, masked_lm):
  """Sizes of AlbertForPreTraining, AlbertModel and AlbertForMaskedLM, vocabulary unpadded."""
  config = config_lib.base()
  config.model.update(families.FAMILIES["albert"].presets[name], vocab_size=VOCAB)
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  init = models.make_model(config).init
  params = jax.eval_shape(init, jax.random.key(0), Inputs(*[ids] * 6))["params"]
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  padding = padded_vocab_size(VOCAB) - VOCAB
  whole = size(params) - padding * 128 - padding
  assert whole == pretraining
  assert whole - size(params["mlm"]) + padding - size(params["sop"]) == encoder
  assert whole - size(params["pooler"]) - size(params["sop"]) == masked_lm


@pytest.mark.parametrize("groups, remat, unroll", [
    (2, "dots", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (1, "none", 1), (2, "none", 1), (1, "full", 1), (2, "full", 1), (1, "dots", 0),
        (2, "dots", 0)))])
def test_sharing_layers_are_equal_layers(groups, remat, unroll):
  """The oracle has layers with equal parameters; shared gradients are the sums of theirs."""
  make = functools.partial(tiny.make_config, "mlm_sop", num_layers=4, remat=remat,
                           scan_unroll=unroll)
  batch = tiny.make_batch(make(), rows=8)
  loss, grads, params = run(make(layer_groups=groups), batch)
  repeat = lambda x: jnp.repeat(x, 4 // groups, axis=0)
  layers = jax.tree.map(repeat, params["encoder"]["layers"])
  expected_loss, expected, _ = run(make(), batch, params | {"encoder": {"layers": layers}})
  assert loss == pytest.approx(expected_loss, rel=1e-6)
  add = lambda x: x.reshape(groups, 4 // groups, *x.shape[1:]).sum(1)
  expected = expected | {"encoder": {"layers": jax.tree.map(add, expected["encoder"]["layers"])}}
  for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


def run(config, batch, params=None):
  """Returns (loss, gradients, parameters); initializes the parameters if none are given."""
  with tiny.Setup(config) as setup:
    params = setup.init().params if params is None else params
    step = jax.jit(steps.make_gradients(setup.training))
    (grads, loss, _), _ = step(params, batch, 0, {})
  return jax.device_get((loss, grads, params))


def test_layers_that_share_drop_different_elements():
  """Each of the four layers has a mask of its own, though their parameters are one array.

  With kernels of zero and a bias of one behind the MLP, a pre-norm layer adds its mask, times two.
  """
  config = tiny.make_config("mlm_sop", num_layers=4, layer_groups=1, dropout=0.5, norm="pre")
  model = models.make_model(config)
  inputs = Inputs.of(tiny.make_batch(config, rows=8))
  params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
  layers = jax.tree.map(jnp.zeros_like, params["encoder"]["layers"])
  layers["mlp"]["down"]["bias"] = jnp.ones_like(layers["mlp"]["down"]["bias"])
  _, kept = jax.jit(lambda params: model.apply(
      {"params": params}, inputs, method="features", mutable=["intermediates"],
      rngs={"dropout": jax.random.key(1)}))(params | {"encoder": {"layers": layers}})
  outputs = np.asarray(layer_outputs(kept["intermediates"]["encoder"]))
  masks = np.round(np.diff(outputs, axis=0) / 2)
  np.testing.assert_allclose(masks.mean(axis=(1, 2, 3)), 0.5, atol=0.03)
  for i, mask in enumerate(masks):
    for other in masks[:i]:
      assert (mask == other).mean() == pytest.approx(0.5, abs=0.03)


def test_unrolling_leaves_no_loop_over_layers_that_share():
  config = tiny.make_config("mlm_sop", num_layers=4, layer_groups=1, scan_unroll=0)
  model, inputs = models.make_model(config), Inputs.of(tiny.make_batch(config, rows=8))
  params = jax.jit(model.init)(jax.random.key(0), inputs)
  encode = lambda p: model.apply(p, inputs, method="features")
  assert " while(" not in jax.jit(encode).lower(params).compile().as_text()


def test_the_embeddings_are_narrower_than_the_model():
  config = tiny.make_config("mlm_sop", embedding_width=16)
  with tiny.Setup(config) as setup:
    params = setup.init().params
  assert params["embeddings"]["token"]["embedding"].shape == (256, 16)
  assert params["embeddings"]["project"]["kernel"].shape == (16, 32)
  assert params["mlm"]["dense"]["kernel"].shape == (32, 16)
