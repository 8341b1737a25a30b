"""bertgpt.models.remat: what the backward pass saves, and which programs have barriers."""

import collections

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from bertgpt.models import remat
from bertgpt.models.layers import ACTIVATIONS

PLAIN = {"gelu_tanh": lambda x: nn.gelu(x, approximate=True),
         "gelu_erf": lambda x: nn.gelu(x, approximate=False), "silu": nn.silu}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_gradient_are_those_of_plain_differentiation(name):
  x, g = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32) * 2
  got, pull = jax.vjp(ACTIVATIONS[name], x)
  expected, plain_pull = jax.vjp(PLAIN[name], x)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(pull(g)[0], plain_pull(g)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_saves_its_input(name):
  x = jnp.ones((8, 4))
  _, pull = jax.vjp(ACTIVATIONS[name], x)
  _, plain_pull = jax.vjp(PLAIN[name], x)
  size = lambda pull: sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))
  assert size(pull) == x.size < size(plain_pull)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_only_programs_for_gpus_have_barriers(platform, monkeypatch):
  monkeypatch.setattr(remat.sharding, "platform", lambda: platform)
  gradient = jax.grad(lambda x: remat.save_only_inputs(jnp.tanh)(x).sum())
  text = jax.jit(gradient).lower(jnp.ones(8)).as_text()
  assert ("optimization_barrier" in text) == (platform == "gpu")


# ------------------------------------------------------------ model.remat


def count(jaxpr, counts=None):
  """Counts the primitives of a jaxpr, including inner ones."""
  counts = collections.Counter() if counts is None else counts
  for equation in jaxpr.eqns:
    counts[equation.primitive.name] += 1
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      count(inner, counts)
  return counts


def trace(policy, **model):
  config = tiny.make_config(remat=policy, dropout=0.1, attention_dropout=0.1, scan_unroll=1,
                            **model)
  with tiny.Setup(config) as setup:
    jaxpr = jax.make_jaxpr(setup.gradients(1))(setup.abstract.params, tiny.make_batch(config), 3)
    return count(jaxpr.jaxpr)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_no_product_and_no_softmax_is_computed_again(norm):
  none, products, full = (trace(policy, norm=norm) for policy in ("none", "products", "full"))
  assert products["dot_general"] == none["dot_general"] < full["dot_general"]
  assert products["reduce_max"] == none["reduce_max"] < full["reduce_max"]
