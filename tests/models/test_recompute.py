"""bertgpt.models.recompute: what the backward pass saves, and which programs have barriers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bertgpt.models import recompute
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
def test_an_activation_keeps_its_input(name):
  x = jnp.ones((8, 4))
  _, pull = jax.vjp(ACTIVATIONS[name], x)
  _, plain_pull = jax.vjp(PLAIN[name], x)
  size = lambda pull: sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))
  assert size(pull) == x.size < size(plain_pull)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_only_programs_for_gpus_have_barriers(platform, monkeypatch):
  monkeypatch.setattr(recompute.sharding, "platform", lambda: platform)
  gradient = jax.grad(lambda x: recompute.keep_input(jnp.tanh)(x).sum())
  text = jax.jit(gradient).lower(jnp.ones(8)).as_text()
  assert ("optimization_barrier" in text) == (platform == "gpu")
