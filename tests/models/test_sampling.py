"""bertgpt.models.sampling: samples follow the softmax, on any mesh and in chunks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt.devices import sharding
from bertgpt.models import sampling
from bertgpt.models.cross_entropy import Prediction

ROWS, SLOTS, WIDTH, VOCAB = 2000, 5, 8, 16


def make_prediction(rows=ROWS, seed=0):
  """Returns a prediction with logits of very different sizes, and the random words of its rows."""
  keys = jax.random.split(jax.random.key(seed), 4)
  bias_V = jnp.where(jnp.arange(VOCAB) < VOCAB - 2, jax.random.normal(keys[2], (VOCAB,)), -1e9)
  x_1KD = jax.random.normal(keys[0], (1, SLOTS, WIDTH))
  prediction = Prediction(jnp.broadcast_to(x_1KD, (rows, SLOTS, WIDTH)),
                          0.5 * jax.random.normal(keys[1], (VOCAB, WIDTH)), bias_V)
  return prediction, jax.random.bits(keys[3], (rows, 2), jnp.uint32)


def test_tokens_are_as_frequent_as_their_probability():
  prediction, words = make_prediction()
  sampled = np.asarray(sampling.sample(prediction, words))
  p_KV = np.asarray(jax.nn.softmax(prediction.logits()[0]))
  for slot in range(SLOTS):
    counts = np.bincount(sampled[:, slot], minlength=VOCAB)
    assert counts[VOCAB - 2:].sum() == 0, "rows that pad the table"
    expected = ROWS * p_KV[slot][:VOCAB - 2]
    chi_square = ((counts[:VOCAB - 2] - expected) ** 2 / expected).sum()
    assert chi_square < VOCAB + 5 * np.sqrt(2 * VOCAB)
  # Slots of a row are independent of each other.
  pairs = np.bincount(sampled[:, 0] * VOCAB + sampled[:, 1], minlength=VOCAB**2)
  expected = ROWS * np.outer(p_KV[0], p_KV[1]).ravel()
  is_often = expected > 5
  chi_square = ((pairs - expected)[is_often] ** 2 / expected[is_often]).sum()
  assert chi_square < is_often.sum() + 5 * np.sqrt(2 * is_often.sum())


def test_a_sample_depends_on_its_row_only():
  prediction, words = make_prediction(64)
  whole = sampling.sample(prediction, words)
  part = sampling.sample(prediction._replace(x=prediction.x[16:24]), words[16:24])
  np.testing.assert_array_equal(part, whole[16:24])
  other = sampling.sample(prediction, words + np.uint32(1))
  assert (other != whole).mean() > 0.3


@pytest.mark.parametrize("most", [1, 64, 130, 200])
def test_chunks_change_nothing(most):
  prediction, words = make_prediction(64)
  expected = sampling.sample(prediction, words)
  np.testing.assert_array_equal(sampling.sample(prediction, words, most), expected)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)])
def test_samples_are_the_same_on_every_mesh(mesh):
  prediction, words = make_prediction(64)
  expected = sampling.sample(prediction, words)
  config = tiny.make_config(mesh=mesh)
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    np.testing.assert_array_equal(jax.jit(sampling.sample)(prediction, words), expected)


def test_noise_is_gumbels():
  """The mean is the Euler-Mascheroni constant, and the variance is pi^2 / 6."""
  noise = np.asarray(sampling.gumbel_noise(jax.random.bits(jax.random.key(0), (200, 2), jnp.uint32),
                                           jnp.arange(10), jnp.arange(100)), np.float64)
  assert np.isfinite(noise).all()
  deviation = np.pi / np.sqrt(6)
  assert abs(noise.mean() - np.euler_gamma) < 4 * deviation / np.sqrt(noise.size)
  assert noise.std() == pytest.approx(deviation, rel=0.01)


def test_noise_is_never_infinite():
  """With these words, one token has the highest hash, which rounds to 1 in float32."""
  words = jnp.asarray([[3706836881, 1589376898]], jnp.uint32)
  noise = np.asarray(sampling.gumbel_noise(words, jnp.arange(1), jnp.arange(30_592)))
  assert noise.argmax() == 30_575 and 16 < noise.max() < 17
