"""Replaced tokens: labels and scores by hand, and the same loss however a step is divided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt.config import choices, find_problems
from bertgpt.training.objectives import BoundModel, make_objective, rtd, total_loss

make_config = functools.partial(
    tiny.make_config, "rtd", embedding_width=16, generator_width=32, generator_num_heads=2,
    generator_mlp_dim=64, activation="gelu_erf")


def test_a_sample_that_is_the_original_token_is_not_replaced():
  batch = {"tokens": jnp.array([[2, 4, 7, 4, 4, 3]]),
           "predict_positions": jnp.array([[3, 1, 4, 5]]),
           "predict_targets": jnp.array([[8, 6, 9, 3]]),
           "predict_weights": jnp.array([[1.0, 1.0, 1.0, 0.0]])}
  tokens, is_replaced = rtd.replace(batch, jnp.array([[5, 6, 2, 11]]))
  assert tokens.tolist() == [[2, 6, 7, 5, 2, 3]]
  assert is_replaced.tolist() == [[False, False, False, True, True, False]]


def test_scores_by_hand():
  logits = jnp.array([[2.0, -1.0, 0.5, -3.0, 9.0]])
  truth = jnp.array([[True, True, False, False, True]])
  sums = rtd.score_replaced(logits, truth, jnp.array([[True] * 4 + [False]]))
  p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5, -3.0])))
  expected = -np.log([p[0], p[1], 1 - p[2], 1 - p[3]]).sum()
  assert float(sums["rtd_loss"][0]) == pytest.approx(expected, rel=1e-6)
  assert [tuple(map(float, sums[f"rtd_{name}"])) for name in ("accuracy", "precision", "recall")
          ] == [(2.0, 4.0), (1.0, 2.0), (1.0, 2.0)]
  assert sums["rtd_loss"][1] == 4


def test_the_loss_is_the_mean_over_masks_plus_fifty_times_the_mean_over_all_tokens():
  config = make_config()
  batch = tiny.make_batch(config)
  with tiny.Setup(config) as setup:
    params = setup.init().params
    _, (loss, sums) = setup.gradients()(params, batch, 0)
  means = {name: float(total / weight) for name, (total, weight) in sums.items()}
  assert sums["rtd_loss"][1] == (batch["sequence_ids"] > 0).sum()
  assert float(loss) == pytest.approx(means["mlm_loss"] + 50 * means["rtd_loss"], rel=1e-5)


def test_a_weight_above_the_tokens_of_a_batch_counts_in_full():
  """With such a weight, the divisor of the discriminator's loss is below 1."""
  config = tiny.make_config("rtd")
  batch = {"sequence_ids": jnp.ones((1, 8), jnp.int32), "predict_weights": jnp.ones((1, 2))}
  sums = {"mlm_loss": (6.0, 2.0), "rtd_loss": (4.0, 8.0)}
  for weight in (8.0, 80.0):
    config.objective.rtd_weight = weight
    objective = make_objective(config, tiny.make_vocabulary())
    loss = total_loss(sums, objective.weights(batch))
    assert float(loss) == pytest.approx(6 / 2 + weight * 4 / 8)


def test_a_term_without_targets_adds_nothing():
  zero = jnp.zeros(())
  assert float(total_loss({"mlm_loss": (zero, zero)}, {"mlm_loss": zero})) == 0


def test_replacements_depend_on_the_step_and_the_row():
  config = make_config()
  objective = make_objective(config, tiny.make_vocabulary())
  batch = tiny.make_batch(config, rows=8)
  corrupt = lambda seed, rows: np.asarray(jax.jit(objective.corrupt)(
      {name: x[rows] for name, x in batch.items()}, jax.random.key(seed), rows)["sample_key_data"])
  whole, part = corrupt(0, np.arange(8)), corrupt(0, np.arange(2, 5))
  np.testing.assert_array_equal(part, whole[2:5])
  assert len({tuple(row) for row in whole.tolist()}) == 8
  assert not (corrupt(1, np.arange(8)) == whole).all(1).any()


@functools.cache
def reference():
  return losses_and_gradients(make_config(), 1)


def losses_and_gradients(config, micro_batches):
  with tiny.Setup(config) as setup:
    params = setup.init().params
    batch = setup.put(tiny.make_batch(config))
    grads, (loss, sums) = setup.gradients(micro_batches)(params, batch, 3)
    return jax.device_get((loss, sums, grads))


@pytest.mark.parametrize("mesh, micro_batches, model", [
    ((2, 2, 2), 2, {}),
    pytest.param((1, 1, 1), 8, {"scan_unroll": 0, "remat": "dots"}, marks=pytest.mark.slow),
    pytest.param((8, 1, 1), 4, {}, marks=pytest.mark.slow),
    pytest.param((1, 1, 4), 1, {"remat": "full"}, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_the_same_however_a_step_is_divided(mesh, micro_batches, model):
  """Replaced tokens are the same too, because their counts and hits are equal."""
  loss, sums, grads = losses_and_gradients(make_config(mesh=mesh, **model), micro_batches)
  expected_loss, expected_sums, expected = reference()
  assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
  assert float(sums["rtd_recall"][1]) == float(expected_sums["rtd_recall"][1]) > 0
  for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(expected_loss))


@pytest.mark.slow
def test_the_generator_trains_as_if_it_were_alone():
  """Without shared embeddings, the generator has only gradients of the masked-LM loss."""
  grads = [losses_and_gradients(configure(weight), 1)[2] for weight in (50.0, 0.0)]
  for part in ("generator", "generator_embeddings", "mlm"):
    for one, other in zip(*(jax.tree.leaves(g[part]) for g in grads), strict=True):
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)
  assert all(not np.any(x) for x in jax.tree.leaves(grads[1]["encoder"]))


def test_tensor_parallelism_must_divide_the_generators_heads():
  config = make_config(mesh=(1, 1, 4))
  assert find_problems(config, num_devices=4) == [
      "mesh.tensor=4 does not divide model.generator_num_heads=2"]


def test_the_best_checkpoint_may_be_that_of_the_discriminator():
  config = make_config()
  config.eval.every_steps = 10
  for metric in ("rtd_loss", "rtd_accuracy", "rtd_precision", "rtd_recall", "mlm_loss"):
    config.checkpoint.keep_best = metric
    assert not find_problems(config)
  config.checkpoint.keep_best = "nsp_loss"
  (line,) = find_problems(config)
  assert "choose one of mlm_loss, mlm_accuracy, mlm_perplexity, rtd_loss" in line


def configure(weight):
  config = make_config(embedding_sharing="none")
  config.objective.rtd_weight = weight
  return config


def test_evaluation_uses_the_same_replacements_every_time():
  config = make_config()
  batch = jax.tree.map(jnp.asarray, tiny.make_batch(config, rows=8))
  with tiny.Setup(config) as setup:
    params, objective = setup.init().params, setup.objective
    evaluate = jax.jit(lambda ids: objective.compute_sums(
        BoundModel(setup.model, params), objective.corrupt(batch, jax.random.key(9), ids))[0])
    first, again = (jax.device_get(evaluate(np.arange(8))) for _ in range(2))
  assert set(choices.OBJECTIVES["rtd"].other_metrics) <= first.keys()
  assert first == again
