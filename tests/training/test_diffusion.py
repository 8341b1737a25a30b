"""Masked diffusion: the loss is the bound of a model that reveals tokens in random order."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from differences import check_close

from bertgpt.config import unread
from bertgpt.models import Inputs
from bertgpt.training.objectives import BoundModel, diffusion, total_loss

TEXT = (17, 101, 17, 3)  # A word twice, and the [SEP] of the row.
ROWS = 6000


def make_row(config):
  """Returns a batch of one row: [CLS] and TEXT, then padding."""
  length = len(TEXT) + 1
  at = np.arange(tiny.LENGTH)[None]
  tokens = np.zeros((1, tiny.LENGTH), np.int32)
  tokens[0, :length] = (tiny.CLS, *TEXT)
  is_real = (at < length).astype(np.int32)
  return {"tokens": tokens, "sequence_ids": is_real, "positions": at.astype(np.int32) * is_real,
          "segment_ids": np.zeros_like(tokens)}


@functools.cache
def make_model():
  """Returns (config, objective, BoundModel) of a model whose guesses are far from uniform."""
  config = tiny.make_config("diffusion", init_std=0.5)
  with tiny.Setup(config) as setup:
    params = setup.init().params
  params["mlm"]["bias"] = jax.random.normal(jax.random.key(1), params["mlm"]["bias"].shape)
  return config, setup.objective, BoundModel(setup.model, params)


@functools.cache
def nats_by_masks():
  """Returns, for each set of masked places, -log p of the token at each place."""
  config, _, bound = make_model()
  row = make_row(config)
  subsets = [s for n in range(1, 5) for s in itertools.combinations(range(1, 5), n)]
  tokens = np.repeat(row["tokens"], len(subsets), 0)
  for shown, subset in zip(tokens, subsets, strict=True):
    shown[list(subset)] = tiny.MASK
  batch = {name: np.repeat(x, len(subsets), 0) for name, x in row.items()} | {"tokens": tokens}
  prediction = bound.predict(Inputs.of(batch))
  logp = np.asarray(jax.nn.log_softmax(prediction.logits()), np.float64)
  return {subset: {place: -logp[i, place, TEXT[place - 1]] for place in subset}
          for i, subset in enumerate(subsets)}


def exact_bound():
  """Returns the mean, over all orders in which 4 tokens are revealed, of -log p(row)."""
  nats, orders = nats_by_masks(), list(itertools.permutations(range(1, 5)))
  total = 0.0
  for order in orders:
    for k, place in enumerate(order):
      total += nats[tuple(sorted(order[k:]))][place]
  return total / len(orders)


def corrupt(batch, rows, seed=0, first=0):
  config, objective, _ = make_model()
  repeated = {name: jnp.repeat(jnp.asarray(x), rows, 0) for name, x in batch.items()}
  return jax.jit(objective.corrupt)(repeated, jax.random.key(seed), first + np.arange(rows))


def test_the_integral_over_all_rates_is_the_mean_over_all_orders():
  """In the papers' form, 1 / t times the loss, the integral is a Beta function for each set."""
  integral = sum(math.gamma(len(s)) * math.gamma(5 - len(s)) / math.gamma(5) * sum(nats.values())
                 for s, nats in nats_by_masks().items())
  assert integral == pytest.approx(exact_bound(), rel=1e-12)


def test_every_set_of_masks_has_its_share_and_its_weight():
  """All numbers n of masks are equally likely, and so are all sets of size n; weights are 4 / n."""
  masked = jax.device_get(corrupt(make_row(None), ROWS))
  counts = collections.Counter()
  for shown, weights in zip(masked["tokens"], masked["predict_weights"], strict=True):
    places = tuple(np.flatnonzero(shown == tiny.MASK).tolist())
    counts[places] += 1
    expected = np.where(shown == tiny.MASK, 4 / len(places), 0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
  assert counts.keys() == nats_by_masks().keys()
  for places, count in counts.items():
    share = 1 / (4 * math.comb(4, len(places)))
    assert abs(count / ROWS - share) < 4 * math.sqrt(share / ROWS), places
  np.testing.assert_array_equal(masked["predict_targets"][0], make_row(None)["tokens"][0])


def test_the_exact_mean_of_the_loss_is_the_bound():
  """The mean is over all 15 sets, with the objective's own weights and cross-entropy."""
  config, objective, bound = make_model()
  masked = corrupt(make_row(config), 256)
  found = jax.device_get(masked)
  first = {}
  for i, shown in enumerate(found["tokens"]):
    first.setdefault(tuple(np.flatnonzero(shown == tiny.MASK).tolist()), i)
  assert len(first) == 15
  mean = 0.0
  evaluate = jax.jit(lambda batch: objective.compute_sums(bound, batch)[0])
  for places, i in first.items():
    loss, weight = evaluate({name: x[i:i + 1] for name, x in masked.items()})["diffusion_loss"]
    assert float(weight) == 4  # All tokens, masked or not.
    mean += float(loss) / 4 / (4 * math.comb(4, len(places)))
  expected = exact_bound() / 4
  check_close("loss", mean, expected, atol=1e-5 * expected)


def test_the_estimate_of_many_rows_is_near_the_bound():
  _, objective, bound = make_model()
  batch = corrupt(make_row(None), ROWS)
  sums, _ = jax.jit(lambda batch: objective.compute_sums(bound, batch))(batch)
  loss, weight = map(float, sums["diffusion_loss"])
  nats = nats_by_masks()
  second = sum((sum(nats[s].values()) * 4 / len(s)) ** 2 / (4 * math.comb(4, len(s)))
               for s in nats)
  deviation = math.sqrt(second - exact_bound() ** 2) / 4 / math.sqrt(ROWS)
  assert abs(loss / weight - exact_bound() / 4) < 4 * deviation


@pytest.mark.parametrize("first", [0, 1_000_000_007])
def test_rates_of_any_consecutive_rows_are_spread_evenly(first):
  """Each quarter of the range has 16 +- 2 of 64 rows, and no two seeds have equal rates."""
  total = np.full(64, 1000, np.int32)
  draw = jax.jit(lambda seed: diffusion.draw_counts(jax.random.key(seed), first + np.arange(64),
                                                    jnp.asarray(total)))
  counts = np.stack([draw(seed) for seed in range(20)])
  assert counts.min() >= 1 and counts.max() <= 1000
  in_quarters = np.stack([np.histogram(row, 4, (0.5, 1000.5))[0] for row in counts])
  assert np.abs(in_quarters - 16).max() <= 2
  assert len({tuple(row) for row in counts.tolist()}) == 20
  assert abs(counts[:, 0].mean() - 500) < 4 * 289 / math.sqrt(20)


def test_masks_of_a_row_do_not_depend_on_the_batch_around_it():
  config, objective, _ = make_model()
  batch = tiny.make_batch(config)
  corrupt = jax.jit(objective.corrupt)
  whole = jax.device_get(corrupt(batch, jax.random.key(5), np.arange(tiny.ROWS)))
  part = jax.device_get(corrupt({name: x[8:12] for name, x in batch.items()},
                                jax.random.key(5), np.arange(8, 12)))
  for name, x in part.items():
    np.testing.assert_array_equal(x, whole[name][8:12])


def test_padding_and_the_first_token_of_a_sequence_are_never_masked():
  config, objective, _ = make_model()
  batch = tiny.make_batch(config)
  is_masked, corrupt = np.zeros((tiny.ROWS, tiny.LENGTH), bool), jax.jit(objective.corrupt)
  for seed in range(20):
    masked = corrupt(batch, jax.random.key(seed), np.arange(tiny.ROWS))
    is_masked |= np.asarray(masked["predict_weights"]) > 0
    np.testing.assert_array_equal(np.asarray(masked["tokens"]) == tiny.MASK,
                                  np.asarray(masked["predict_weights"]) > 0)
  may = (batch["sequence_ids"] > 0) & (batch["tokens"] != tiny.CLS)
  assert not is_masked[~may].any() and is_masked[may].mean() > 0.99
  weight = diffusion.weigh(batch)["diffusion_loss"]
  assert float(weight) == may.sum()


def test_an_empty_row_adds_nothing():
  _, objective, bound = make_model()
  blank = {name: np.zeros_like(x) for name, x in make_row(None).items()}
  masked = jax.jit(objective.corrupt)(blank, jax.random.key(0), np.arange(1))
  sums, _ = jax.jit(lambda masked: objective.compute_sums(bound, masked))(masked)
  assert np.asarray(masked["predict_weights"]).sum() == 0
  assert float(total_loss(sums, objective.weights(masked))) == 0


def losses_and_gradients(config, micro_batches):
  with tiny.Setup(config) as setup:
    params = setup.init().params
    grads, (loss, sums) = setup.gradients(micro_batches)(
        params, setup.put(tiny.make_batch(config)), 3)
    return jax.device_get((loss, sums, grads))


@functools.cache
def reference():
  return losses_and_gradients(tiny.make_config("diffusion"), 1)


@pytest.mark.parametrize("mesh, micro_batches, model", [
    ((2, 2, 2), 2, {"remat": "full"}),
    pytest.param((8, 1, 1), 4, {}, marks=pytest.mark.slow),
    pytest.param((1, 1, 1), 8, {"scan_unroll": 0, "remat": "dots"}, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_the_same_however_a_step_is_divided(mesh, micro_batches, model):
  loss, sums, grads = losses_and_gradients(tiny.make_config("diffusion", mesh=mesh, **model),
                                           micro_batches)
  expected_loss, expected_sums, expected = reference()
  assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
  assert float(sums["diffusion_accuracy"][1]) == pytest.approx(
      float(expected_sums["diffusion_accuracy"][1]))
  for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(expected_loss))


def test_a_share_of_masks_is_refused_because_nothing_reads_it():
  config = tiny.make_config("diffusion")
  config.objective.mask_prob = 0.3
  assert any("objective.mask_prob=0.3: objective.name='diffusion' does not read it" in line
             for line in unread.find_problems(config))


@pytest.mark.parametrize("family, fields", [
    pytest.param("modernbert", {"norm": "pre", "norm_bias": False, "use_bias": False,
                                "position": "rope", "skip_first_norm": True},
                 marks=pytest.mark.slow),
    ("albert", {"embedding_width": 16, "layer_groups": 1})])
def test_other_encoders_are_trained_by_it(family, fields):
  """Before the first step, the predictions are uniform."""
  config = tiny.make_config("diffusion", family=family, **fields)
  with tiny.Setup(config) as setup:
    bound = BoundModel(setup.model, setup.init().params)
    batch = jax.jit(setup.objective.corrupt)(tiny.make_batch(config), jax.random.key(0),
                                             np.arange(tiny.ROWS))
    sums, _ = jax.jit(lambda batch: setup.objective.compute_sums(bound, batch))(batch)
    loss = total_loss(sums, setup.objective.weights(batch))
  assert float(loss) == pytest.approx(math.log(tiny.VOCAB), rel=0.1)
