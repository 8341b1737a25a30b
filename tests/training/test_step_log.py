"""bertgpt.training.step_log: a step that was not applied is counted, not averaged."""

import json
import time
import types

import jax
import numpy as np
import pytest
import tiny

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.config.flops import flops_per_step
from bertgpt.devices import barrier, hardware
from bertgpt.errors import DivergedError
from bertgpt.training import metrics, step_log, writer

SUMS = {"loss": (1, 1), "grad_norm": (1, 1), "learning_rate": (0.1, 1), "tokens": (100, 1),
        "bad_steps": (0, 1)}


def test_a_skipped_step_is_counted_and_does_not_spoil_the_mean_around_it(tmp_path):
  config = tiny.make_config()
  config.log.every_steps, config.log.tensorboard = 3, False
  log = step_log.StepLog(config, tmp_path, 0)
  for step, loss in enumerate((2.0, np.nan, 4.0, 5.0), 1):
    log.add(step, {"loss": (loss, 1), "grad_norm": (loss, 1), "learning_rate": (0.1, 1),
                   "tokens": (100, 1), "bad_steps": (int(np.isnan(loss)), 1)})
  log.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  scalars = json.loads(line, parse_constant=pytest.fail)
  assert (scalars["step"], scalars["train/loss"], scalars["train/skipped_steps"]) == (3, 3.0, 1)


@pytest.mark.parametrize("losses, mean", [((2.0, 4.0, np.nan, np.nan, np.nan), 3.0),
                                          ((np.nan, np.nan, np.nan), None)])
def test_the_last_steps_of_a_run_that_diverges_are_logged(tmp_path, losses, mean):
  """No line was due, and the next start cannot log them."""
  config = tiny.make_config()
  config.log.every_steps, config.log.tensorboard, config.train.max_bad_steps = 100, False, 3
  log, bad = step_log.StepLog(config, tmp_path, 0), 0
  with pytest.raises(DivergedError, match=f"step {len(losses)}: 3 consecutive steps"):
    for step, loss in enumerate(losses, 1):
      bad += int(np.isnan(loss))
      sums = {"loss": (loss, 1), "grad_norm": (loss, 1), "learning_rate": (0.1, 1),
              "tokens": (100, 1), "bad_steps": (bad, 1)}
      log.add(step, sums)
      step_log.check_divergence(config, step, sums)
  log.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  scalars = json.loads(line, parse_constant=pytest.fail)
  assert (scalars["step"], scalars["train/skipped_steps"]) == (len(losses), 3)
  assert scalars.get("train/loss") == mean and scalars["perf/step_seconds"] > 0


def test_a_compilation_is_not_the_time_of_steps(recipe, tmp_path, monkeypatch):
  """With a clock that a compilation moves on by a year."""
  year, compiled = 3e7, []
  compile_together = barrier.compile_together

  def compile_for_long(*arguments):
    compile_together(*arguments)
    compiled.append(arguments)

  monkeypatch.setattr(barrier, "compile_together", compile_for_long)
  moved = types.SimpleNamespace(monotonic=lambda: time.monotonic() + year * len(compiled))
  monkeypatch.setattr(step_log, "time", moved)  # Not that of the watchdog.
  assert cli.main(["train", f"--config={recipe}:causal", f"--workdir={tmp_path}",
                   "--config.phases[0].steps=4"]) == 0
  scalars = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  times = [values["perf/step_seconds"] for values in scalars if "perf/step_seconds" in values]
  assert compiled and times and 0 < max(times) < year / 2


def test_a_step_that_ran_while_another_was_logged_took_the_time_of_both(tmp_path, monkeypatch):
  config = tiny.make_config()
  config.log.every_steps, config.log.tensorboard = 1, False
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(step_log, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
  log = step_log.StepLog(config, tmp_path, 0)
  write = log._writer.write
  monkeypatch.setattr(log._writer, "write", lambda *arguments: (
      write(*arguments), setattr(clock, "now", clock.now + 5)))
  late = metrics.LateMetrics()
  for step in (1, 2, 3):
    step_log.finish_step(late, log, config)
    late.push(step, {"loss": (2.0, 1), "grad_norm": (1.0, 1), "learning_rate": (0.1, 1),
                     "tokens": (100, 1), "bad_steps": (0, 1)})
    clock.now += 1
  step_log.finish_step(late, log, config)
  log.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["perf/step_seconds"] for line in lines] == [1, 6, 6]


def test_the_mfu_of_an_interval_counts_the_flops_of_both_phases(tmp_path, monkeypatch):
  config = tiny.make_config()
  config.phases = tuple(config_lib.phase(steps=10, batch_size=8, seq_len=n) for n in (8, 32))
  config.log.every_steps, config.log.tensorboard = 15, False
  chip = hardware.CHIPS["v5e"]
  monkeypatch.setattr(hardware, "find_chip", lambda kind: chip)
  log = step_log.StepLog(config, tmp_path, 0)
  for step in range(1, 16):
    log.add(step, {"loss": (1, 1), "grad_norm": (1, 1), "learning_rate": (0.1, 1),
                   "tokens": (100, 1), "bad_steps": (0, 1)})
  log.close()
  (scalars,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  short, long = (flops_per_step(config, p) for p in config.phases)
  peak = chip.peak_flops * jax.device_count()
  assert scalars["perf/mfu"] * scalars["perf/step_seconds"] * peak == pytest.approx(
      (10 * short + 5 * long) / 15)


def test_the_mfu_counts_the_steps_of_an_interval_without_a_gap(tmp_path, monkeypatch):
  """The gap is where the second phase begins: there are ten short steps and two long ones."""
  config = tiny.make_config()
  config.phases = tuple(config_lib.phase(steps=10, batch_size=8, seq_len=n) for n in (8, 32))
  config.train.skip_steps = ((11, 13),)
  config.log.every_steps, config.log.tensorboard = 15, False
  monkeypatch.setattr(hardware, "find_chip", lambda kind: hardware.CHIPS["v5e"])
  log = step_log.StepLog(config, tmp_path, 0)
  for step in (*range(1, 11), 14, 15):
    log.add(step, SUMS)
  log.close()
  (scalars,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  short, long = (flops_per_step(config, p) for p in config.phases)
  peak = hardware.CHIPS["v5e"].peak_flops * jax.device_count()
  assert scalars["perf/mfu"] * scalars["perf/step_seconds"] * peak == pytest.approx(
      (10 * short + 2 * long) / 12)


def test_the_mfu_counts_the_runs_that_share_each_step(tmp_path, monkeypatch):
  """Of three runs that are trained together, one ends after the fourth of ten steps."""
  config = tiny.make_config()
  config.log.every_steps, config.log.tensorboard = 10, False
  monkeypatch.setattr(hardware, "find_chip", lambda kind: hardware.CHIPS["v5e"])
  log = step_log.StepLog(config, tmp_path, 0)
  for step in range(1, 11):
    log.add(step, SUMS, num_runs=3 if step <= 4 else 2)
  log.close()
  (scalars,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  peak = hardware.CHIPS["v5e"].peak_flops * jax.device_count()
  assert scalars["perf/mfu"] * scalars["perf/step_seconds"] * peak == pytest.approx(
      2.4 * flops_per_step(config, config.phases[0]))


def test_steps_that_are_left_out_take_no_time(tmp_path, monkeypatch, capsys):
  config = tiny.make_config()
  config.phases[0].steps = 20
  config.train.skip_steps = ((3, 5), (11, 19))
  config.log.every_steps, config.log.tensorboard = 1, False
  now = 0.0
  monkeypatch.setattr(writer.time, "monotonic", lambda: now)
  log = step_log.StepLog(config, tmp_path, 0)
  for step in (1, 2, 6):
    now += 100
    log.add(step, SUMS)
  log.close()
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
  assert [line.split("ETA ")[1] for line in lines[1:]] == ["0:10:00", "0:08:20"]


def test_the_time_that_is_left_counts_the_longer_rows_of_later_phases(tmp_path, monkeypatch,
                                                                      capsys):
  config = tiny.make_config()
  config.phases = tuple(config_lib.phase(steps=10, batch_size=8, seq_len=n) for n in (8, 32))
  config.log.every_steps, config.log.tensorboard = 1, False
  short, long = (flops_per_step(config, p) for p in config.phases)
  assert long > 4 * short
  now = 0.0
  monkeypatch.setattr(writer.time, "monotonic", lambda: now)
  log = step_log.StepLog(config, tmp_path, 0)
  for step in range(1, 21):
    now += 100 if step <= 10 else 100 * long / short
    log.add(step, {"loss": (1, 1), "grad_norm": (1, 1), "learning_rate": (0.1, 1),
                   "tokens": (100, 1), "bad_steps": (0, 1)})
  log.close()
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
  at_6, at_18 = lines[5].split("ETA ")[1], lines[17].split("ETA ")[1]
  seconds = lambda text: sum(int(n) * 60**i for i, n in enumerate(text.split(":")[::-1]))
  assert seconds(at_6) == pytest.approx(400 + 1000 * long / short, abs=1)
  assert seconds(at_18) == pytest.approx(200 * long / short, abs=1)
