"""ELECTRA: published sizes, and which loss trains which parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import families, padded_vocab_size
from bertgpt.models import Inputs
from bertgpt.training.objectives import BoundModel
from bertgpt.trees import named_leaves

VOCAB = 30_522


@pytest.mark.parametrize("name, discriminator, generator, joint", [
    ("small", 13_549_057, 4_620_026, 14_196_219),
    ("small_plus", 13_549_057, 13_546_682, 23_122_875),
    ("base", 109_483_009, 33_740_602, 119_386_427),
    ("large", 335_142_913, 51_295_290, 354_655_291)])
def test_sizes_are_the_published_ones(name, discriminator, generator, joint):
  """Sizes of ElectraForPreTraining, ElectraForMaskedLM, and of both with shared tables."""
  config = config_lib.base()
  config.model.update(families.FAMILIES["electra"].presets[name], vocab_size=VOCAB)
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  params = jax.eval_shape(models.make_model(config).init, jax.random.key(0),
                          Inputs(*[ids] * 5))["params"]
  sizes = {path: x.size for path, x in named_leaves(params).items()}
  padding = padded_vocab_size(VOCAB) - VOCAB
  sizes["embeddings/token/embedding"] -= padding * config.model.embedding_width
  sizes["mlm/bias"] -= padding
  count = lambda *starts: sum(x for path, x in sizes.items() if path.startswith(starts))
  assert count("") == joint
  assert count("embeddings/", "encoder/", "rtd/") == discriminator
  assert (count("embeddings/", "generator", "mlm/") - count("embeddings/project/")) == generator


def make_config(**model):
  return tiny.make_config("rtd", **{"embedding_width": 16, "generator_width": 24,
                                    "generator_num_heads": 2, "generator_mlp_dim": 48,
                                    "activation": "gelu_erf", **model})


def trained_by(config):
  """Returns, for each loss, the paths of the parameters to which it gives a gradient."""
  batch = jax.tree.map(jnp.asarray, tiny.make_batch(config, rows=4))
  names = "mlm_loss", "rtd_loss"
  with tiny.Setup(config) as setup:
    params = setup.init().params

    def loss_of(params, chosen):
      corrupted = setup.objective.corrupt(batch, jax.random.key(0), jnp.arange(4))
      sums, _ = setup.objective.compute_sums(BoundModel(setup.model, params), corrupted)
      return sum(chosen[i] * sums[name][0] for i, name in enumerate(names))

    gradients = jax.jit(jax.grad(loss_of))
    found = {name: gradients(params, jnp.eye(2)[i]) for i, name in enumerate(names)}
  return {name: {path for path, x in named_leaves(grads).items() if np.any(x)}
          for name, grads in found.items()}


@pytest.mark.parametrize("sharing", [
    "gdes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shared", "none"))])
def test_the_discriminators_loss_does_not_train_the_generator(sharing):
  """Only shared tables have gradients from both losses."""
  trained = trained_by(make_config(embedding_sharing=sharing))
  both = {path.split("/")[0] for path in trained["mlm_loss"] & trained["rtd_loss"]}
  assert both == ({"embeddings"} if sharing == "shared" else set())
  groups = {name: {path.split("/")[0] for path in paths} for name, paths in trained.items()}
  own = {"shared": "embeddings"}.get(sharing, "generator_embeddings")
  assert groups["rtd_loss"] == {"embeddings", "encoder", "rtd"}
  assert groups["mlm_loss"] == {own, "generator", "generator_project", "mlm"}


@pytest.mark.slow
def test_the_discriminator_of_gdes_starts_with_the_generators_tables():
  """Its features are those of a discriminator that has these tables as its own."""
  config = make_config(embedding_sharing="gdes")
  inputs = Inputs.of(tiny.make_batch(config, rows=4))
  model = models.make_model(config)
  params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
  found = tiny.apply(model, params, inputs, method="features")
  tables = {name: params["generator_embeddings"][name] for name in ("token", "position", "segment")}
  params = {**params, "embeddings": params["embeddings"] | tables}
  other = models.make_model(make_config(embedding_sharing="none"))
  expected = tiny.apply(other, params, inputs, method="features")
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
