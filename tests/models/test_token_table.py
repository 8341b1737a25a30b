"""The lookup against NumPy on every mesh, and the sum of a tied table's gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt.devices import sharding
from bertgpt.models import cross_entropy, token_table
from bertgpt.models.cross_entropy import Prediction

ROWS, LENGTH, WIDTH, TABLE_ROWS = 8, 12, 16, 256


def make_case():
  """Returns a table, ids with repetitions, and cotangents of the looked up rows."""
  rng = np.random.default_rng(0)
  table = rng.normal(size=(TABLE_ROWS, WIDTH)).astype(np.float32)
  tokens = rng.integers(0, TABLE_ROWS, (ROWS, LENGTH)).astype(np.int32)
  tokens[:, ::3] = 7
  return table, tokens, rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)


def look_up(table, tokens):
  return token_table.look_up(sharding.copy_for_batch(table, "vocab", None), tokens)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("rows", [ROWS, 3])
def test_rows_and_their_gradients_are_those_of_numpy(mesh, rows):
  """Three rows cannot be divided among eight devices: then each computes all of them."""
  table, tokens, cotangents = make_case()
  tokens, cotangents = tokens[:rows], cotangents[:rows]
  config = tiny.make_config(mesh=mesh)
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    x, pull_back = jax.vjp(jax.jit(functools.partial(look_up, tokens=tokens)), table)
    (gradient,) = pull_back(cotangents)
  expected = np.zeros(table.shape, np.float64)
  np.add.at(expected, tokens, cotangents)
  np.testing.assert_array_equal(x, table[tokens])
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_without_a_mesh_rows_are_looked_up_too():
  table, tokens, _ = make_case()
  np.testing.assert_array_equal(look_up(table, tokens), table[tokens])


@pytest.mark.parametrize("mesh, parts", [((8, 1, 1), 1), ((2, 2, 2), 2)], ids=str)
def test_lookup_and_output_layer_send_one_gradient_of_their_table(mesh, parts):
  table, tokens, weights_BLD = make_case()
  config = tiny.make_config(mesh=mesh)

  def loss(table):
    copies = sharding.copy_for_batch(table, "vocab", None)
    x = jnp.tanh(token_table.look_up(copies, tokens) * weights_BLD)
    prediction = Prediction(x, table, jnp.zeros(TABLE_ROWS), copies)
    return cross_entropy.score(prediction, tokens, jnp.ones(tokens.shape), 0)[0]

  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    text = jax.jit(jax.grad(loss)).lower(table).compile().as_text()
  sums = re.findall(rf"f32\[(?:1,)?{TABLE_ROWS // parts},{WIDTH}\]\S* all-reduce\(", text)
  assert len(sums) == 1


def test_a_split_vocabulary_sends_nothing_for_the_gradient():
  table, tokens, weights_BLD = make_case()
  config = tiny.make_config(mesh=(1, 1, 4))
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    grad = jax.grad(lambda table: (look_up(table, tokens) * weights_BLD).sum())
    text = jax.jit(grad).lower(table).compile().as_text()
  assert "scatter" in text and "all-reduce(" not in text
