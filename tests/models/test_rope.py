"""Rotary positions against complex numbers in float64; scores depend only on distances."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from bertgpt import config as config_lib
from bertgpt.models import rope

LENGTH, WIDTH = 40, 8


def make_config(**model):
  config = config_lib.base()
  config.model.update({"position": "rope", "width": 2 * WIDTH, "num_heads": 2, **model})
  return FrozenConfigDict(config.model)


def turn(x_BLNH, positions_BL, theta):
  """Rotates features i and i + H/2 as the two parts of a complex number."""
  half = WIDTH // 2
  angles = positions_BL[:, :, None, None] * theta ** (-2 * np.arange(half) / WIDTH)
  turned = (x_BLNH[..., :half] + 1j * x_BLNH[..., half:]) * np.exp(1j * angles)
  return np.concatenate([turned.real, turned.imag], -1)


def draw(seed=0):
  rng = np.random.default_rng(seed)
  positions = np.stack([np.arange(LENGTH), np.r_[np.arange(15), np.arange(LENGTH - 15)]])
  return rng.normal(size=(2, LENGTH, 2, WIDTH)).astype(np.float32), positions.astype(np.int32)


@pytest.mark.parametrize("model, is_global, theta", [
    ({}, None, 10_000.0), ({"rope_theta": 160_000.0}, None, 160_000.0),
    ({"rope_theta": 500.0, "window": 4}, True, 500.0),
    ({"rope_theta": 500.0, "window": 4}, False, 10_000.0),
    ({"rope_theta": 500.0, "window": 4}, None, 10_000.0),  # All layers are local.
    ({"rope_theta": 500.0, "rope_theta_local": 500.0, "window": 4}, False, 500.0)])
def test_pairs_of_features_turn_by_their_angles(model, is_global, theta):
  x, positions = draw()
  tables = rope.make_tables(make_config(**model), positions)
  flag = None if is_global is None else jnp.asarray(is_global)
  np.testing.assert_allclose(rope.rotate(x, tables, flag), turn(x, positions, theta), atol=2e-5)


def test_a_score_depends_on_the_distance_only():
  q, _ = draw(1)
  k, _ = draw(2)
  config = make_config()

  def score(at_q, at_k):
    turned = [rope.rotate(x[:1, :1], rope.make_tables(config, np.array([[at]], np.int32)), None)
              for x, at in ((q, at_q), (k, at_k))]
    return np.asarray((turned[0] * turned[1]).sum(-1))

  np.testing.assert_allclose(score(3, 10), score(503, 510), atol=1e-4)
  assert np.abs(score(3, 10) - score(3, 11)).max() > 1e-2


def test_bfloat16_is_turned_in_float32():
  x, positions = draw()
  half = jnp.asarray(x, "bfloat16")
  found = rope.rotate(half, rope.make_tables(make_config(), positions), None)
  assert found.dtype == jnp.bfloat16
  exact = turn(np.asarray(half, np.float64), positions, 10_000.0)
  np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-6)
