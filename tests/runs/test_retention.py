"""bertgpt.runs.retention: which checkpoints of a run are kept."""

import contextlib
import json
import math

import jax
import jax.numpy as jnp
import pytest
from program import flip_bit

from bertgpt.runs import checkpoint, retention


@pytest.mark.parametrize("keep, every, best, old", [
    (1, 0, None, [10, 20, 30, 40]), (3, 0, None, [10, 20]), (9, 0, None, []),
    (1, 20, None, [10, 30]), (1, 0, 10, [20, 30, 40]), (2, 30, 10, [20]),
    (1, 50, None, [10, 20, 30, 40]),
])
def test_old_checkpoints(keep, every, best, old):
  manifests = {step: {} for step in (10, 20, 30, 40, 50)}
  assert retention.choose_old(manifests, keep, every, best) == old


def test_a_checkpoint_that_was_saved_late_is_kept_for_its_step():
  """The one of step 30 was due, but its step was not applied."""
  manifests = {step: {} for step in (10, 20, 31, 40, 50, 60, 70)}
  assert retention.choose_old(manifests, 1, 30, None) == [10, 20, 40, 50]


def train(workdir, scores, metric, every=10, seq_len=16, **options):
  """Saves a state at every 10th step, and evaluates it at the steps of `scores`."""
  options = {"every_steps": every, "every_minutes": 0, "keep": 1, "keep_best": metric} | options
  metadata = {"config": json.dumps({"checkpoint": {"keep_every_steps": 0} | options})}
  with contextlib.closing(checkpoint.Checkpoints(workdir, **options)) as checkpoints:
    for step in range(max(checkpoint.committed_steps(workdir), default=0) + 1, max(scores) + 1):
      state = {"params": {"w": jnp.full(4, step)}}
      if checkpoints.is_due(step):
        checkpoints.save(step, state, metadata)
      if step in scores:
        conditions = {"seq_len": seq_len}
        checkpoints.keep_if_best(step, {metric or "mlm_loss": scores[step]}, conditions, state,
                                 metadata)
  return checkpoint.committed_steps(workdir)


@pytest.mark.parametrize("metric, kept", [("mlm_loss", [20, 40]), ("mlm_accuracy", [30, 40]),
                                          ("rtd_recall", [30, 40]), ("rtd_loss", [20, 40]),
                                          ("order_f1", [30, 40]), ("mlm_perplexity", [20, 40]),
                                          ("", [40])])
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, metric, kept):
  assert train(tmp_path, {10: 3.0, 20: 2.0, 30: 4.0, 40: 2.5}, metric) == kept


def test_a_best_state_that_was_not_due_is_saved(tmp_path):
  assert train(tmp_path, {5: 2.0, 20: 3.0, 30: 4.0}, "mlm_loss") == [5, 30]


def test_scores_of_other_rows_are_not_compared(tmp_path):
  """A later phase may have longer rows, and a resumed run another share of masks."""
  train(tmp_path, {10: 2.0}, "mlm_loss")
  assert train(tmp_path, {20: 3.0, 30: 3.5}, "mlm_loss", seq_len=64) == [20, 30]


def test_a_best_step_that_is_damaged_is_kept_when_it_is_repeated(tmp_path):
  train(tmp_path, {10: 4.0, 20: 3.0, 30: 2.0}, "mlm_loss", keep=2)
  flip_bit(tmp_path / "checkpoints" / "30")
  abstract = {"params": {"w": jax.ShapeDtypeStruct(
      (4,), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}}
  with contextlib.closing(checkpoint.Checkpoints(
      tmp_path, every_steps=10, every_minutes=0, keep=1, keep_best="mlm_loss")) as checkpoints:
    checkpoints.restore_latest(abstract)
    for step, loss in ((30, 2.0), (40, 5.0), (50, 5.0)):
      state = {"params": {"w": jnp.full(4, step)}}
      checkpoints.save(step, state, {})
      checkpoints.keep_if_best(step, {"mlm_loss": loss}, {"seq_len": 16}, state, {})
  assert checkpoint.committed_steps(tmp_path) == [30, 50]


@pytest.mark.parametrize("conditions", [None, {}])
def test_conditions_that_a_record_lacks_are_not_compared(tmp_path, conditions):
  train(tmp_path, {10: 2.0}, "mlm_loss")
  path = checkpoint.checkpoints_path(tmp_path) / retention.FILE
  path.write_text(json.dumps({"metric": "mlm_loss", "step": 10, "value": 2.0,
                              "conditions": conditions}))
  assert train(tmp_path, {20: 3.0}, "mlm_loss", seq_len=64) == [10, 20]


def test_the_best_is_remembered_by_the_next_start(tmp_path):
  train(tmp_path, {10: 2.0, 20: 3.0}, "mlm_loss")
  with contextlib.closing(checkpoint.Checkpoints(
      tmp_path, every_steps=1, every_minutes=0, keep=1, keep_best="mlm_loss")) as checkpoints:
    for step, loss in ((30, 2.5), (40, 2.2)):
      checkpoints.save(step, {"params": {"w": jnp.zeros(4)}}, {})
      checkpoints.keep_if_best(step, {"mlm_loss": loss}, {"seq_len": 16},
                               {"params": {"w": jnp.zeros(4)}}, {})
  assert checkpoint.committed_steps(tmp_path) == [10, 40]


@pytest.mark.parametrize("metric", ["mlm_loss", "mlm_accuracy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best(tmp_path, metric, value):
  assert train(tmp_path, {10: value, 20: 2.0, 30: value, 40: value}, metric) == [20, 40]


@pytest.mark.parametrize("content", ["", "[]", '{"metric": "mlm_loss"}',
                                     '{"metric": "mlm_loss", "step": 10, "value": NaN}',
                                     '{"metric": "mlm_loss", "step": 1e999, "value": 0.0}',
                                     '{"metric": "mlm_loss", "step": 7, "value": 0.0}'])
def test_a_damaged_record_or_one_of_a_lost_step_is_no_best(tmp_path, content):
  (tmp_path / retention.FILE).write_text(content)
  (tmp_path / "10").mkdir()
  best = retention.Best(tmp_path, "mlm_loss")
  assert best.record() is None and best.is_beaten_by(100.0, {})


def test_a_best_is_recorded_only_when_its_checkpoint_is_complete(tmp_path):
  """Until then, the record names the previous best."""
  best = retention.Best(tmp_path, "mlm_loss")
  for step, loss in ((10, 2.0), (20, 1.0)):
    best.replace(step, loss, {})
    assert best.record() == (10 if step == 20 else None)
    assert retention.Best(tmp_path, "mlm_loss").record() == (10 if step == 20 else None)
    (tmp_path / str(step) / "params").mkdir(parents=True)
    assert best.record() == step == retention.Best(tmp_path, "mlm_loss").record()


@pytest.mark.parametrize("to, is_kept", [(10, False), (20, True), (30, True)])
def test_a_rollback_forgets_a_later_best(tmp_path, to, is_kept):
  (tmp_path / retention.FILE).write_text('{"metric": "mlm_loss", "step": 20, "value": 0.0}')
  retention.forget_after(tmp_path, to)
  assert (tmp_path / retention.FILE).exists() == is_kept


@pytest.mark.parametrize("keep_every, keep_best, count", [
    (0, "", 4), (100, "", 14), (100, "mlm_loss", 15)])
def test_the_space_that_is_needed(tmp_path, keep_every, keep_best, count):
  """States have 1 kB, and one exists already; 1e30 bytes are more than any disk has."""
  (tmp_path / "10").mkdir()
  options = {"keep": 3, "keep_every_steps": keep_every, "keep_best": keep_best}
  line = retention.describe_space(tmp_path, 1000, 1000, options)
  assert f"up to {count} checkpoints of 1 kB, 1 of them present; {count - 1} kB needed" in line
  assert "WARNING" not in line
  assert retention.describe_space(tmp_path, 10**30, 1000, options).startswith("WARNING: disk: ")


@pytest.mark.parametrize("keep, best, present, needed", [
    (1, "", 1, 1), (3, "", 3, 1), (3, "mlm_loss", 4, 1), (9, "", 6, 4)])
def test_checkpoints_that_are_not_kept_are_no_room(tmp_path, keep, best, present, needed):
  """A file cannot be written in place of one that is deleted only when the next one is complete."""
  for step in (10, 20, 30, 40, 50, 60):
    (tmp_path / str(step)).mkdir()
  (tmp_path / retention.FILE).write_text('{"metric": "mlm_loss", "step": 20, "value": 0.0}')
  options = {"keep": keep, "keep_every_steps": 0, "keep_best": best}
  line = retention.describe_space(tmp_path, 1000, 1000, options)
  assert f"1 kB, {present} of them present; {needed} kB needed" in line
  assert retention.describe_space(tmp_path, 10**30, 1000, options).startswith("WARNING: disk: ")


def test_surplus_checkpoints_are_deleted_before_the_first_save(tmp_path):
  """After a save, there may be too many of them for a full disk."""
  train(tmp_path, {50: 2.0}, "mlm_loss", keep=4)
  abstract = {"params": {"w": jax.ShapeDtypeStruct(
      (4,), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}}
  with contextlib.closing(checkpoint.Checkpoints(
      tmp_path, every_steps=10, every_minutes=0, keep=1, keep_best="")) as checkpoints:
    checkpoints.restore_latest(abstract)
    checkpoints.delete_old()
    assert checkpoint.committed_steps(tmp_path) == [50]


def test_checkpoints_of_every_n_steps_are_kept(tmp_path):
  """A later start may have another N, or forget it."""
  assert train(tmp_path, {70: 0.0}, "", keep_every_steps=20) == [20, 40, 60, 70]
  assert train(tmp_path, {140: 0.0}, "", keep_every_steps=30) == [20, 40, 60, 90, 120, 140]
  assert train(tmp_path, {160: 0.0}, "") == [20, 40, 60, 90, 120, 160]


def test_a_start_that_does_not_ask_for_the_best_keeps_it(tmp_path):
  """With another metric, it is kept until there is a best one by that."""
  train(tmp_path, {10: 2.0, 20: 3.0}, "mlm_loss")
  assert train(tmp_path, {40: 1.0}, "") == [10, 40]
  assert train(tmp_path, {60: math.nan}, "mlm_accuracy") == [10, 60]
  assert train(tmp_path, {70: 0.5, 90: 0.4}, "mlm_accuracy") == [70, 90]
  assert train(tmp_path, {110: 0.4}, "mlm_accuracy") == [70, 110]
