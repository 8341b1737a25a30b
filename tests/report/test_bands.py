"""bertgpt.report.bands: the mean of seeds, its band, and whether a run is on course."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bertgpt import cli
from bertgpt.config import base, phase
from bertgpt.config.stored import to_json
from bertgpt.errors import ConfigError
from bertgpt.report import bands, curves
from bertgpt.report.curves import Compared, Curve
from bertgpt.runs import metrics_file

STEPS = np.arange(10, 1010, 10)
TAGS = ("train/mlm_loss", "eval/validation/mlm_loss")
LONG = 900  # Seconds; only a hang takes so long.


def a_run(seed=0, losses=None, steps=STEPS, name="run") -> Compared:
  """A run whose curves are `losses` at `steps`; default: a falling loss with offset and noise."""
  rng = np.random.default_rng(seed)
  if losses is None:
    losses = (3 + 7 * np.exp(-steps / 200)) * (1 + 0.01 * rng.normal()
                                               + 0.02 * rng.normal(size=len(steps)))
  values = [float(value) for value in losses]
  curve = Curve([int(step) for step in steps], [0.0] * len(steps), [0.0] * len(steps), values)
  return Compared(name, False, int(steps[-1]), 1000, {"mlm_loss": values[-1]},
                  {"seed": seed, "optimizer.b2": 0.95}, dict.fromkeys(TAGS, curve))


def of_seeds(*seeds) -> Compared:
  return bands.average([a_run(seed) for seed in seeds])._replace(name="it", is_reference=True)


def times(run: Compared, factor: float) -> Compared:
  """A run with all losses multiplied by a factor."""
  return run._replace(curves={tag: curve._replace(value=[factor * v for v in curve.value])
                              for tag, curve in run.curves.items()})


def test_the_mean_and_the_deviation_are_those_of_numpy():
  runs = [a_run(seed) for seed in range(3)]
  mean = bands.average(runs)
  for tag in TAGS:
    curve = mean.curves[tag]
    assert len(curve.step) == curves.REFERENCE_POINTS
    assert curve.step[0] == STEPS[0] and curve.step[-1] == STEPS[-1]
    nearest = np.abs(STEPS[:, None] - np.array(curve.step)).argmin(1)
    if tag.startswith("eval/"):  # A score is one of its step.
      nearest = np.where(np.isin(STEPS, curve.step), nearest, -1)
    expected = np.array([[np.mean(np.array(run.curves[tag].value)[nearest == i])
                          for i in range(len(curve.step))] for run in runs])
    np.testing.assert_allclose(curve.value, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(mean.spread[tag], expected.std(0, ddof=1), rtol=1e-9)
  assert (mean.seeds, mean.steps, mean.fields["seed"]) == (3, 1000, 0)
  assert mean.scores["mlm_loss"] == pytest.approx(np.mean([r.scores["mlm_loss"] for r in runs]))


def test_a_run_that_is_longer_than_its_reference_is_compared_up_to_its_end():
  def falling(last):
    steps = np.arange(10, last + 10, 10)
    return a_run(0, 10 - steps / 500, steps)

  reference = bands.average([falling(500)])._replace(name="it", is_reference=True)
  assert bands.course(falling(500), reference).is_on
  assert bands.course(falling(3000), reference).is_on
  tag, steps = TAGS[0], reference.curves[TAGS[0]].step
  for length in (500, 3000):
    np.testing.assert_allclose(bands.means_near(falling(length).curves[tag], steps),
                               reference.curves[tag].value, rtol=1e-12)


def test_an_unfinished_seed_ends_the_curves_and_scores_of_all():
  steps, short = np.arange(10, 3010, 10), np.arange(10, 510, 10)
  loss = lambda steps: 10 - steps / 500
  runs = [a_run(0, loss(steps), steps), a_run(1, loss(steps), steps), a_run(2, loss(short), short)]
  mean = bands.average(runs)
  assert mean.steps == 500 and mean.scores == {"mlm_loss": pytest.approx(9.0)}
  for tag in TAGS:
    assert mean.curves[tag].step[-1] == 500
    np.testing.assert_allclose(mean.spread[tag], 0, atol=1e-12)
    np.testing.assert_allclose(mean.curves[tag].value[-1], 9.0, atol=0.05)


def test_the_scores_of_runs_of_several_lengths_are_those_of_one_evaluation():
  """At step 500, the longer run found no token to call replaced, so it had no precision."""
  short, long = a_run(0, steps=np.arange(10, 510, 10)), a_run(1, steps=np.arange(10, 1010, 10))
  short = short._replace(scores=short.scores | {"precision": 0.6})
  precision = Curve([400, 1000], [0.0] * 2, [0.0] * 2, [0.5, 0.7])
  long = long._replace(curves=long.curves | {"eval/validation/precision": precision},
                       scores=long.scores | {"precision": 0.7})
  assert bands.average([short, long]).scores.keys() == {"mlm_loss"}


def test_points_that_are_not_finite_in_a_run_are_left_out():
  """Otherwise, the reference would not be JSON."""
  first, second = a_run(0, [3.0, 2.0, 1.0], [10, 20, 30]), a_run(1, [1.0, 1.0, 1.0], [10, 20, 30])
  second.curves[TAGS[0]].value[1] = math.nan
  second.scores["mlm_loss"] = math.inf
  mean = bands.average([first, second])
  assert (mean.curves[TAGS[0]].step, mean.curves[TAGS[0]].value) == ([10, 30], [2.0, 1.0])
  assert mean.scores == {}


def test_curves_that_a_run_has_not_reached_are_left_out():
  first, second = a_run(0, [3.0], [100]), a_run(1, [1.0, 1.0], [10, 20])
  for run in (first, second):
    run.curves["train/other_loss"] = Curve([10], [10], [1.0], [2.0])
  assert bands.average([first, second]).curves.keys() == {"train/other_loss"}


def test_runs_without_a_common_loss_make_no_reference():
  """Nothing could ever be compared with it."""
  first, second = a_run(0, [3.0], [100]), a_run(1, [1.0, 1.0], [10, 20])
  with pytest.raises(ConfigError, match="no finite loss in common. Give runs that are trained"):
    bands.average([first, second])


def test_means_do_not_depend_on_how_often_a_run_logs():
  """On a straight line, the mean of the points around a step is the value at the step."""
  line = lambda steps: Curve(list(steps), [0] * len(steps), [0] * len(steps),
                             [2.0 * step for step in steps])
  grid = [100, 200, 300]
  for every in (2, 10, 20):
    curve = line(range(every, 402, every))
    assert bands.means_near(curve, grid)[1] == pytest.approx(400.0, abs=2 * every)
  assert bands.means_near(line(range(50, 152, 2)), grid)[0] == pytest.approx(200.0)


def every(run: Compared, log: int, evaluation: int) -> Compared:
  """A run that logs the means of `log` steps, and evaluates every `evaluation` steps."""
  train, scores = (run.curves[tag] for tag in TAGS)
  means = [(step, float(np.mean([v for s, v in zip(train.step, train.value, strict=True)
                                 if step - log < s <= step])))
           for step in train.step if step % log == 0]
  chosen = [(s, v) for s, v in zip(scores.step, scores.value, strict=True) if s % evaluation == 0]
  return run._replace(curves={tag: Curve([s for s, _ in points], [0] * len(points),
                                         [0] * len(points), [v for _, v in points])
                              for tag, points in zip(TAGS, (means, chosen), strict=True)})


@pytest.mark.parametrize("log, evaluation", [(10, 50), (20, 100), (50, 250), (100, 10), (200, 200),
                                             (500, 500), (10, 20)])
def test_a_run_may_log_and_evaluate_at_other_steps_than_its_reference(log, evaluation):
  reference = bands.average([every(a_run(seed), 10, 100) for seed in range(3)])._replace(
      name="it", is_reference=True)
  found = bands.course(every(a_run(7), log, evaluation), reference)
  assert found.is_on and "held-out" in found.line
  assert not bands.course(times(every(a_run(7), log, evaluation), 1.3), reference).is_on


def test_points_that_stand_for_more_steps_than_those_of_a_reference_are_left_out():
  curve = Curve([100, 200], [0] * 2, [0] * 2, [3.0, 1.0])
  assert bands.means_near(curve, [10, 20, 30, 200]) == [None, None, None, 1.0]
  assert bands.scores_at(curve, [50, 99, 100, 203, 300]) == [None, 3.0, 3.0, 1.0, None]


def test_points_that_a_run_has_not_reached_are_not_compared():
  found = bands.means_near(Curve([10, 20, 24], [0] * 3, [0] * 3, [1.0, 2.0, 3.0]), [10, 20, 30])
  assert found == [1.0, None, None]
  reference = of_seeds(0, 1, 2)
  found = bands.course(a_run(7, steps=STEPS[:50]), reference)
  last = max(step for step in reference.curves[TAGS[1]].step if step <= 500)
  assert found.is_on and f"up to step {last}; " in found.line


def test_new_seeds_are_on_course_and_other_losses_are_not():
  """None of the 200 seeds is in a reference; there are enough to show a false alarm in ten."""
  references = [of_seeds(3 * i, 3 * i + 1, 3 * i + 2) for i in range(20)]
  new = [a_run(1000 + seed) for seed in range(200)]
  alarms = [not bands.course(run, references[i % 20]).is_on for i, run in enumerate(new)]
  assert np.mean(alarms) < 0.05
  for i, run in enumerate(new[:40]):
    above, below = (bands.course(times(run, factor), references[i % 20]) for factor in (1.2, 0.8))
    assert above.is_on is False and "OFF COURSE" in above.line and " above " in above.line
    assert below.is_on is False and " below " in below.line


def test_the_band_has_a_least_width():
  """One seed gives twice the width of several: 10% of a loss of 4 nats, 0.24 nats for 0.6."""
  for value, several, one in ((4.0, 0.2, 0.4), (0.6, 0.12, 0.24)):
    runs = [a_run(seed, np.full(len(STEPS), value)) for seed in range(2)]
    for used, width in ((runs[:1], one), (runs, several)):
      low, high = bands.limits(bands.average(used), TAGS[0])
      np.testing.assert_allclose(high, value + width, rtol=1e-6)
      np.testing.assert_allclose(low, value - width, rtol=1e-6)


def test_a_loss_that_leaves_the_band_late_is_found_where_it_does():
  reference = of_seeds(0, 1, 2)
  losses = np.array(a_run(5).curves[TAGS[0]].value)
  losses[STEPS > 700] += 2.0
  found = bands.course(a_run(5, losses), reference)
  assert found.is_on is False
  step = int(found.line.split("at step ")[1].split(":")[0])
  assert 690 <= step <= 740


def test_a_loss_that_is_not_a_number_is_off_course():
  losses = np.array(a_run(5).curves[TAGS[0]].value)
  losses[30:] = np.nan
  found = bands.course(a_run(5, losses), of_seeds(0, 1, 2))
  assert found.is_on is False and "nan" in found.line


def test_one_loss_that_is_not_a_number_is_enough():
  losses = np.array(a_run(5).curves[TAGS[0]].value)
  losses[-1] = np.inf
  assert bands.course(a_run(5, losses), of_seeds(0, 1, 2)).is_on is False


def test_a_run_that_has_just_begun_is_not_compared():
  begun = a_run(0)._replace(curves={})
  found = bands.course(begun, of_seeds(0, 1, 2))
  assert found.is_on is None and found.line.startswith("not compared: ")


@pytest.mark.parametrize("change, fragment", [
    ({"optimizer.b2": 0.5, "seed": 1}, "in optimizer.b2"), ({}, "the same seed")])
def test_runs_that_are_no_seeds_of_each_other_are_refused(change, fragment):
  first = a_run(0)
  with pytest.raises(ConfigError, match=fragment):
    bands.average([first, first._replace(fields=first.fields | change)])


# ------------------------------------------------------------ the program


def write_run(path: pathlib.Path, seed: int, factor: float = 1.0) -> None:
  """Writes the files of `a_run`, with the text in a folder of the user."""
  path.mkdir()
  config = base()
  config.phases = (phase(steps=1000, seq_len=32, batch_size=8, learning_rate=1e-3),)
  config.seed, config.data.source = seed, "text:/home/me/*.txt"
  (path / "config.json").write_text(to_json(config))
  curve = a_run(seed).curves[TAGS[0]]
  (path / "metrics.jsonl").write_text("".join(
      json.dumps({"step": step, **dict.fromkeys(TAGS, factor * value)}) + "\n"
      for step, value in zip(curve.step, curve.value, strict=True)))


def test_three_seeds_become_a_reference_that_a_fourth_follows(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for seed in range(4):
    write_run(tmp_path / str(seed), seed)
  write_run(tmp_path / "worse", 4, 1.2)
  assert cli.main(["compare", "0", "1", "2", "--save_reference", "mine.json", "--about",
                   "cats & dogs"]) == 0
  stored = json.loads((tmp_path / "mine.json").read_text())
  assert stored["seeds"] == 3 and set(stored["spread"]) == set(stored["curves"]) == set(TAGS)
  assert "/home/me" not in json.dumps(stored) and stored["fields"]["data.source"] is None
  capsys.readouterr()
  assert cli.main(["compare", "3", "worse", "--reference", "mine.json"]) == 0
  printed = capsys.readouterr().out
  assert ("\non course: 3 is in the band of reference mine (3 seeds) up to step 1000; "
          "held-out mlm_loss ") in printed
  assert "\nOFF COURSE: worse leaves the band of reference mine (3 seeds) at step 10: " in printed
  assert "reference mine: cats & dogs" in printed and "data.source" not in printed
  page = (tmp_path / "compare.html").read_text()
  assert "<p class=course>on course: 3 is in" in page and "cats &amp; dogs" in page


@pytest.mark.parametrize("name", curves.reference_names())
@pytest.mark.parametrize("factor, is_on", [(1.0, True), (1.2, False), (0.8, False)])
def test_losses_a_fifth_off_are_out_of_the_band_of_a_reference(name, factor, is_on):
  reference = curves.read_reference(name)
  run = times(reference, factor)._replace(is_reference=False)
  found = bands.course(run, reference)
  assert found.is_on is is_on, found.line


@pytest.mark.slow
def test_the_first_steps_of_the_demo_are_on_course(tmp_path, capsys):
  """Trains the unchanged recipe on this machine's packages, for 300 of its 3,300 steps."""
  workdir = tmp_path / "demo"
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
  process = subprocess.Popen(
      [sys.executable, "-m", "bertgpt", "train", "--config", "demo", f"--workdir={workdir}",
       f"--config.data.cache_dir={tmp_path / 'cache'}"],
      env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  try:
    deadline = time.monotonic() + LONG
    while (metrics_file.last_step(workdir) < 300 and process.poll() is None
           and time.monotonic() < deadline):
      time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LONG)
  finally:
    process.kill()
  assert process.returncode == 75, errors.decode()
  assert cli.main(["compare", str(workdir), "--reference", "demo",
                   f"--out={tmp_path / 'page.html'}"]) == 0
  assert "on course: demo is in the band of reference demo" in capsys.readouterr().out
