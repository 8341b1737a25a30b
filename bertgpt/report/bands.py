"""References from several seeds: their mean, its band, and whether a run is on course.

A point of a training loss in a reference is a mean: it stands for all points of a curve that are
nearer to its step than to the step of any other point. Such a mean is compared with a run that logs
at least as often. A held-out score is one of a step, and is compared with that of the same step. So
a run may log or evaluate at other steps than the reference; what cannot be compared is left out.
"""

import bisect
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bertgpt.config import metric_names
from bertgpt.errors import ConfigError
from bertgpt.report import curves
from bertgpt.report.curves import Compared, Curve
from bertgpt.runs import metrics_file

# Half the width of the band, in sample standard deviations of the seeds. With three seeds, a new
# seed is outside at one point in thirteen (Student's t with 2 degrees of freedom, beyond
# 4 / sqrt(1 + 1/3)). The deviation used is the largest of neighboring points, so it is rarer.
DEVIATIONS = 4.0
NEIGHBORS = 2
# Half the width is at least this share of the loss, and this many nats, because texts differ: that
# of a demo is the documentation of the installed packages. With other packages, the demo ended with
# a loss 2% higher and a next-sentence loss 0.09 nats lower.
LEAST_SHARE, LEAST_NATS = 0.05, 0.12
SAME_STEP = 0.02  # An evaluation is that of a step if it is not further away than this share of it.
ONE_SEED = 2.0  # Factor on these least widths if the deviation is not known.
OUTSIDE = 0.1  # Share of a curve's points that may be outside the band.


class Course(NamedTuple):
  """Where a run is, compared with a reference.

  Attributes:
    is_on: whether it is on course; None if there are no points to compare.
    line: one line that says so.
  """

  is_on: bool | None
  line: str


def average(runs: Sequence[Compared]) -> Compared:
  """Returns the mean of runs that differ only in their seed, with the deviations of its points.

  Args:
    runs: one run or more, finished or not; the curves end where the shortest one ends, and leave
      out points that are not finite in a run.
  Raises:
    ConfigError: two configs differ in another field than `seed`, or have the same seed; or no loss
      was logged at a step that all runs have done.
  """
  first = runs[0]
  if others := [field for field in curves.differences(runs) if field != "seed"]:
    raise ConfigError("--save_reference: the runs differ in more than their seed, in "
                      f"{', '.join(others)}. Give only runs of one recipe")
  if len({run.fields["seed"] for run in runs}) < len(runs):
    raise ConfigError("--save_reference: two runs have the same seed. Give runs with different "
                      "--config.seed")
  means, spread = {}, {}
  for tag, curve in first.curves.items():
    if not curves.is_kept(tag) or any(tag not in run.curves for run in runs):
      continue
    last = min(run.curves[tag].step[-1] for run in runs)
    grid = curves.thin(_until(curve, last), curves.REFERENCE_POINTS)
    points = list(zip(*(values_at(run.curves[tag], grid.step, tag) for run in runs), strict=True))
    kept = [i for i, point in enumerate(points) if _are_finite(point)]
    if not kept:
      continue
    step, tokens, seconds, _ = ([values[i] for i in kept] for values in grid)
    means[tag] = Curve(step, tokens, seconds, [math.fsum(points[i]) / len(runs) for i in kept])
    if len(runs) > 1 and metric_names.is_loss(tag):
      spread[tag] = [statistics.stdev(points[i]) for i in kept]
  if not any(map(metric_names.is_loss, means)):
    raise ConfigError("--save_reference: the runs have no finite loss in common. Give runs that "
                      "are trained further")
  found = {name: [_score(run, name, min(run.steps for run in runs)) for run in runs]
           for name in first.scores}
  scores = {name: math.fsum(values) / len(runs) for name, values in found.items()
            if _are_finite(values)}
  return first._replace(steps=min(run.steps for run in runs), scores=scores, curves=means,
                        fields=first.fields | {"seed": min(run.fields["seed"] for run in runs)},
                        spread=spread, seeds=len(runs))


def _until(curve: Curve, last: int) -> Curve:
  """Returns the points of a curve up to a step."""
  return Curve(*(values[:bisect.bisect_right(curve.step, last)] for values in curve))


def _score(run: Compared, name: str, last: int) -> float | None:
  """Returns a held-out metric of a run as it was after a step, or None if it was not evaluated."""
  if run.steps <= last:
    return run.scores.get(name)
  found = {tag: _until(curve, last) for tag, curve in run.curves.items()
           if tag.startswith("eval/validation/")}
  points = {tag: list(zip(curve.step, curve.value, strict=True))
            for tag, curve in found.items() if curve.step}
  return metrics_file.last_scores(points).get(f"eval/validation/{name}")


def _are_finite(values: Sequence[float | None]) -> bool:
  return all(value is not None and math.isfinite(value) for value in values)


def values_at(curve: Curve, steps: Sequence[int], tag: str) -> list[float | None]:
  """Returns the values of a curve at steps; None where it has none.

  Args:
    curve: curve with increasing steps.
    steps: increasing steps.
    tag: tag of the curve: scores are taken as they are, values of the training as means.
  """
  return scores_at(curve, steps) if tag.startswith("eval/") else means_near(curve, steps)


def scores_at(curve: Curve, steps: Sequence[int]) -> list[float | None]:
  """Returns for every step the value of the nearest point; None if it is not near, see `SAME_STEP`.

  Args:
    curve: curve with increasing steps.
    steps: increasing steps.
  """
  values: list[float | None] = []
  for step in steps:
    i = bisect.bisect_left(curve.step, step)
    nearest = min(range(max(i - 1, 0), min(i + 1, len(curve.step))),
                  key=lambda k: abs(curve.step[k] - step))
    is_near = abs(curve.step[nearest] - step) <= SAME_STEP * step
    values.append(curve.value[nearest] if is_near else None)
  return values


def means_near(curve: Curve, steps: Sequence[int]) -> list[float | None]:
  """Returns for every step the mean of the points that are nearer to it than to any other step.

  A point is itself the mean since the point before it, so points that are further apart than the
  steps say nothing about a single step. Points beyond the last step belong to none.

  Args:
    curve: curve with increasing steps.
    steps: increasing steps.
  Returns:
    The means; None for a step without points or with a point that stands for more steps than it,
    and for the last steps, if the curve ends before all of their points.
  """
  edges = [(left + right) / 2 for left, right in zip(steps[:-1], steps[1:], strict=True)]
  edges += steps[-1:]
  means: list[float | None] = []
  begin = 0
  spans = [right - left for left, right in itertools.pairwise((0, *curve.step))]
  for step, edge, before in zip(steps, edges, (0, *steps), strict=False):
    end = bisect.bisect_right(curve.step, edge)
    values = curve.value[begin:end] if curve.step[-1] >= edge else []
    is_fine = all(span <= step - before for span in spans[begin:end])
    means.append(math.fsum(values) / len(values) if values and is_fine else None)
    begin = end
  return means


def limits(reference: Compared, tag: str) -> tuple[list[float], list[float]]:
  """Returns the band of a loss: its lower and its upper edge at every point of the reference.

  Args:
    reference: a reference.
    tag: tag of one of its losses, which are in nats.
  """
  values, spread = reference.curves[tag].value, reference.spread.get(tag, ())
  factor = 1.0 if spread else ONE_SEED
  low, high = [], []
  for i, value in enumerate(values):
    near = spread[max(i - NEIGHBORS, 0):i + NEIGHBORS + 1]
    width = max(factor * LEAST_SHARE * abs(value), factor * LEAST_NATS,
                DEVIATIONS * max(near, default=0.0))
    low.append(value - width)
    high.append(value + width)
  return low, high


def course(run: Compared, reference: Compared) -> Course:
  """Returns whether the losses of a run, in training and held out, are those of a reference.

  A run is on course if at least nine of ten points of each of its losses are in the band, and if
  none is NaN or infinite.

  Args:
    run: a run, finished or not.
    reference: a reference.
  """
  seeds = "1 seed" if reference.seeds == 1 else f"{reference.seeds} seeds"
  name = f"the band of reference {reference.name} ({seeds})"
  tags = [tag for tag in reference.curves if metric_names.is_loss(tag) and tag in run.curves]
  last, summary, left = 0, "", []
  for tag in sorted(tags):  # Held-out losses come first.
    steps = reference.curves[tag].step
    points = [point for point in zip(steps, values_at(run.curves[tag], steps, tag),
                                     *limits(reference, tag), strict=True)
              if point[1] is not None]
    outside = [point for point in points if not point[2] <= point[1] <= point[3]]
    if len(outside) > OUTSIDE * len(points) or not all(math.isfinite(p[1]) for p in outside):
      left.append((tag, outside, len(points)))
    if points:
      step, value, low, high = points[-1]
      last = max(last, step)
      summary = summary or f"{_words(tag)} {value:.3g}, band {low:.3g} to {high:.3g}"
  if left:
    tag, outside, number = min(left, key=lambda item: item[1][0][0])
    step, value, low, high = outside[0]
    side = "below" if value < low else "above" if value > high else "not within"
    return Course(False, f"OFF COURSE: {run.name} leaves {name} at step {step}: {_words(tag)} "
                         f"{value:.3g} is {side} {low:.3g} to {high:.3g}; {len(outside)} of "
                         f"{number} points are outside")
  if not summary:
    when = "" if run.steps >= run.total_steps else " yet"
    return Course(None, f"not compared: {run.name} and {name} have no point in common{when}")
  return Course(True, f"on course: {run.name} is in {name} up to step {last}; {summary}")


def courses(runs: Sequence[Compared]) -> list[str]:
  """Returns a line for each run and reference: whether the run is on course.

  Args:
    runs: runs and references.
  """
  return [course(run, reference).line for run in runs if not run.is_reference
          for reference in runs if reference.is_reference]


def _words(tag: str) -> str:
  return f"{'held-out' if tag.startswith('eval/') else 'training'} {tag.split('/')[-1]}"
