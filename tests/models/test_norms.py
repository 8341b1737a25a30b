"""LayerNorm and its gradients against float64 and Flax, and what is saved for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models.norms import Norm

SHAPE = (4, 6, 48)


def make_norm(epsilon=1e-12, dtype="float32", has_bias=True):
  return Norm(FrozenConfigDict({"layer_norm_epsilon": epsilon, "dtype": dtype,
                                "norm_bias": has_bias}))


def make_case(offset=0.0):
  rng = np.random.default_rng(0)
  x, g = rng.normal(size=SHAPE) + offset, rng.normal(size=SHAPE)
  scale, bias = 1 + 0.3 * rng.normal(size=SHAPE[-1]), rng.normal(size=SHAPE[-1])
  return [np.asarray(a, np.float32) for a in (x, scale, bias, g)]


def differentiate(module, x, scale, bias, g):
  """Returns the result and the gradients of x, scale and bias for the cotangent g."""
  y, pull = jax.vjp(lambda x, scale, bias: module.apply(
      {"params": {"scale": scale, "bias": bias}}, x), x, scale, bias)
  return y, *pull(jnp.asarray(g, y.dtype))


def closed_form(x, scale, bias, g, epsilon):
  """Returns the same in float64, with central differences of sum(g * y) for the gradient of x."""
  x, scale, bias, g = (np.asarray(a, np.float64) for a in (x, scale, bias, g))

  def normal(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)

  dx = np.zeros_like(x)
  for i in range(x.shape[-1]):
    step = 1e-5 * (np.arange(x.shape[-1]) == i)
    dx[..., i] = (g * scale * (normal(x + step) - normal(x - step))).sum(-1) / 2e-5
  return normal(x) * scale + bias, dx, (g * normal(x)).sum((0, 1)), g.sum((0, 1))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-1])
def test_values_and_gradients_are_those_of_float64(epsilon, offset):
  """An offset much larger than the standard deviation costs some digits of float32."""
  case = make_case(offset)
  tolerance = 1e-5 if offset == 0 else 1e-4
  for got, expected in zip(differentiate(make_norm(epsilon), *case), closed_form(*case, epsilon),
                           strict=True):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_gradients_are_those_of_plain_differentiation(dtype, tolerance):
  x, *others = make_case()
  plain = nn.LayerNorm(1e-5, dtype=dtype, use_fast_variance=False)
  x = jnp.asarray(x, dtype)
  for got, expected in zip(differentiate(make_norm(1e-5, dtype), x, *others),
                           differentiate(plain, x, *others), strict=True):
    assert got.dtype == expected.dtype
    expected = np.asarray(expected, np.float32)
    np.testing.assert_allclose(np.asarray(got, np.float32), expected, rtol=0,
                               atol=tolerance * np.abs(expected).max())


def test_the_backward_pass_keeps_the_input_and_two_numbers_per_position():
  x, scale, bias, _ = make_case()
  x = jnp.asarray(x, jnp.bfloat16)
  params = {"params": {"scale": scale, "bias": bias}}
  _, pull = jax.vjp(lambda x: make_norm(dtype="bfloat16").apply(params, x), x)
  kept = sorted(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))
  positions = x.size // SHAPE[-1]
  assert kept == sorted([x.size, positions, positions, SHAPE[-1]])


def test_without_a_bias_the_result_is_that_of_a_zero_bias():
  x, scale, bias, _ = make_case()
  got = make_norm(has_bias=False).apply({"params": {"scale": scale}}, x)
  expected = make_norm().apply({"params": {"scale": scale, "bias": bias * 0}}, x)
  np.testing.assert_array_equal(got, expected)


def test_parameters_start_at_the_identity():
  params = make_norm().init(jax.random.key(0), jnp.ones(SHAPE))["params"]
  assert {name: float(p.min()) for name, p in params.items()} == {"scale": 1, "bias": 0}
  assert all(p.shape == SHAPE[-1:] and p.dtype == np.float32 for p in params.values())
