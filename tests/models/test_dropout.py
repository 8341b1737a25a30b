"""Dropout masks have the right share, differ, and are the same in both passes and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt.devices import sharding
from bertgpt.models import dropout
from bertgpt.training import objectives, steps

RATE = 0.1
SHAPE = (16, 4, 64, 64)


def make_words(number):
  return jax.random.key_data(jax.random.fold_in(jax.random.key(0), number))


def standardized_mask(number, shape=SHAPE, rate=RATE):
  """Returns the mask scaled to mean 0 and variance 1, if elements are kept with 1 - rate."""
  kept = np.asarray(dropout.drop(jnp.ones(shape), rate, make_words(number))) > 0
  return (kept - (1 - rate)) / (rate * (1 - rate)) ** 0.5


def z_score(a, b=1.0):
  """Returns the mean of a * b, in standard deviations of independent noise."""
  return (a * b).mean() * a.size ** 0.5


@pytest.mark.parametrize("rate", [0.0001, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements(rate):
  assert abs(z_score(standardized_mask(0, rate=rate))) < 4.5


def test_masks_of_two_keys_are_independent():
  masks = [standardized_mask(i) for i in range(6)]
  scores = [z_score(a, b) for i, a in enumerate(masks) for b in masks[:i]]
  assert np.abs(scores).max() < 4.5


@pytest.mark.parametrize("axis", range(4))
def test_neighbors_are_independent(axis):
  mask = standardized_mask(1)
  for shift in (1, 2, 3):
    size = mask.shape[axis]
    ahead, behind = mask.take(range(shift, size), axis), mask.take(range(size - shift), axis)
    assert abs(z_score(ahead, behind)) < 4.5, shift


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (3,), (1, 2, 3)])
def test_sums_along_an_axis_scatter_as_noise_does(axes):
  mask = standardized_mask(2)
  means = mask.mean(axes)
  variance = (means ** 2).mean() * np.prod([SHAPE[axis] for axis in axes])
  assert abs(variance - 1) < 6 * (2 / means.size) ** 0.5


def test_rows_do_not_repeat_each_other():
  rows = standardized_mask(3, (128, 1024))
  scores = rows @ rows.T / 1024 ** 0.5
  assert np.abs(scores[~np.eye(128, dtype=bool)]).max() < 6


def test_every_bit_is_balanced():
  bits = np.asarray(dropout.hash_bits(make_words(4), np.arange(SHAPE[0], dtype=np.uint32), SHAPE))
  for i in range(32):
    assert abs(z_score(2.0 * (bits >> i & 1) - 1)) < 4.5, i


def test_the_mean_is_kept():
  assert np.asarray(dropout.drop(jnp.ones(SHAPE), RATE, make_words(5))).mean() == pytest.approx(
      1, abs=0.005)


def test_the_gradient_passes_where_the_value_did():
  x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
  y, backward = jax.vjp(lambda x: dropout.drop(x, RATE, make_words(6)), x)
  np.testing.assert_allclose(backward(jnp.ones(SHAPE))[0] * x, y, rtol=1e-6)


def test_the_backward_pass_keeps_no_mask():
  _, backward = jax.vjp(lambda x: dropout.drop(x, RATE, make_words(7)), jnp.ones(SHAPE))
  kept = sum(leaf.size for leaf in jax.tree.leaves(backward) if hasattr(leaf, "size"))
  assert kept <= 2 + SHAPE[0]  # The two words of the key, and the indices of the rows.


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_the_mask_is_the_same_on_every_mesh(mesh):
  config = tiny.make_config(mesh=mesh)
  apply = lambda x: sharding.constrain(dropout.drop(x, RATE, make_words(8)), "batch", "heads",
                                       None, None)
  alone = apply(jnp.ones(SHAPE))
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    np.testing.assert_array_equal(jax.jit(apply)(jnp.ones(SHAPE)), alone)


@pytest.mark.parametrize("generator", [
    "hash", pytest.param("threefry", marks=pytest.mark.slow),
    pytest.param("rbg", marks=pytest.mark.slow)])
def test_a_model_drops_with_every_generator(generator):
  dropping = tiny.make_config(dropout=0.5, attention_dropout=0.5, dropout_rng=generator)
  losses = []
  for config in (dropping, dropping, tiny.make_config()):
    with tiny.Setup(config) as setup:
      state, batch = setup.init(), setup.put(tiny.make_batch(config))
      losses.append(float(setup.gradients()(state.params, batch, 0)[1][0]))
  assert losses[0] == losses[1] and abs(losses[0] - losses[2]) > 1e-3


@pytest.mark.parametrize("generator", ["hash", "threefry", "rbg"])
def test_pieces_and_replicas_drop_apart(generator):
  """The loss has its mask as gradient, so two pieces on two replicas add up four masks.

  The sum has the variance of four independent masks; any two equal masks would add an eighth.
  """
  config, width = tiny.make_config(mesh=(2, 1, 1), dropout_rng=generator), 2**16
  config.phases[0].micro_batches = 2

  def compute_sums(model, batch):
    key, params = model.dropout_key, model.params
    key = jax.random.key_data(key) if generator == "hash" else key
    return {"loss": (dropout.drop(params["final_norm"]["scale"], 0.5, key).sum(), 1)}, {}

  plain = objectives.Objective(lambda phase: {}, lambda batch, key, rows: batch,
                               lambda batch: {"loss": 1}, compute_sums, lambda batch: ())
  mesh = sharding.make_mesh(config, tiny.devices_of(config))
  with sharding.use_mesh(mesh, config):
    part, _ = jax.jit(steps.make_gradients(steps.Setup(config, mesh, None, plain)))(
        {"final_norm": {"scale": jnp.ones(width)}}, tiny.make_batch(config), 0, {})
  kept = np.asarray(part.grads["final_norm"]["scale"]) / 2  # 0 to 4 of the masks keep an element.
  assert abs(z_score(kept - 2)) < 4.5
  assert kept.var() == pytest.approx(1, abs=0.03)
