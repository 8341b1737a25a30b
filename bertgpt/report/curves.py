"""Data for comparing runs: curves over steps, tokens and time, scores, configs, reports.

A reference holds the same data of earlier runs, in a small JSON file. The
references of recipes are in `references/`; a file there is all that a new one needs.
"""

import bisect
import json
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.config import ConfigDict, checks, metric_names, resuming
from bertgpt.config.derived import count_trained
from bertgpt.errors import ConfigError, UserError
from bertgpt.report import goodput
from bertgpt.runs import metrics_file, workdir

MAX_POINTS = 500       # Points of a curve on the page.
REFERENCE_POINTS = 40  # Points of a curve in a reference, a file of a few KB.
REFERENCES = pathlib.Path(__file__).with_name("references")
# Fields that say where files are. A reference has only their defaults: it does not name files.
PLACES = ("data.source", "data.corpus", "data.corpora", "init_from", "tokenizer.path")
# Fields that may change when a run resumes, but decide what is compared: the text, and the held-out
# rows and masks.
COMPARED = ("data.corpus", "data.corpora", "eval.mask_prob", "eval.max_rows", "eval.rows_by")


class Curve(NamedTuple):
  """A metric of a run: values and their positions on three axes, all of the same length.

  Attributes:
    step: steps done.
    tokens: tokens trained on until then, without padding.
    seconds: time in training steps until then.
    value: values of the metric.
  """

  step: list[Any]
  tokens: list[Any]
  seconds: list[Any]
  value: list[Any]


class Compared(NamedTuple):
  """A run or a reference, as JSON values.

  Attributes:
    name: name of the workdir, or of the reference.
    is_reference: whether it is a reference.
    steps: steps done.
    total_steps: steps of the whole run.
    scores: held-out metric -> last value.
    fields: field of the config -> value.
    curves: tag -> curve, such as 'train/mlm_loss' or 'eval/validation/mlm_loss'.
    report: text of its report; '' if it has none yet.
    time: one line about its time; '' if it has no events.
    spread: in a reference, tag -> sample standard deviation of the seeds at every point of a
      loss; empty if there is one seed.
    seeds: in a reference, the number of runs that were averaged.
    about: in a reference, a description of the text; '' if the config names the text.
  """

  name: str
  is_reference: bool
  steps: int
  total_steps: int
  scores: dict[str, float]
  fields: dict[str, Any]
  curves: dict[str, Curve]
  report: str = ""
  time: str = ""
  spread: Mapping[str, list[float]] = types.MappingProxyType({})
  seeds: int = 1
  about: str = ""


def read_run(path: pathlib.Path) -> Compared:
  """Returns the data of a run, finished or not.

  Args:
    path: its workdir.
  Raises:
    ConfigError: there is no run.
  """
  config = workdir.read_config(path, "RUN")
  found = metrics_file.read_curves(path)
  if problem := next(checks.skip_problems(config), ""):
    raise ConfigError(f"{path}/config.json: {problem}")
  place = _places(found, config.train.skip_steps)
  # The points are chosen first: a curve may have a million of them.
  curves = {tag: Curve(*map(list, zip(*((step, *place(step), value)
                                        for step, value in choose(points, MAX_POINTS)),
                                      strict=True)))
            for tag, points in found.items()}
  scores = {tag.split("/")[-1]: value for tag, value in metrics_file.last_scores(found).items()
            if tag.startswith("eval/validation/")}
  report = path / "report.md"
  text = report.read_text("utf-8", "replace") if report.is_file() else ""
  last_step = max((points[-1][0] for points in found.values()), default=0)
  return Compared(path.name, False, last_step, config_lib.total_steps(config), scores,
                  plain_fields(config), curves, text, goodput.line(path))


def _places(curves: Mapping[str, Sequence[tuple[int, float]]],
            skipped: Sequence[tuple[int, int]]):
  """Returns a function: steps done -> (tokens, seconds of training steps) until then.

  Args:
    curves: curves of a run.
    skipped: (first, last) of the steps that were left out.
  """
  count = lambda step: count_trained(skipped, 0, step)
  rates = dict(curves.get("perf/tokens_per_second", ()))
  steps, places, last = [0], [(0.0, 0.0)], 0
  for step, seconds_per_step in curves.get("perf/step_seconds", ()):
    seconds = seconds_per_step * max(count(step) - count(last), 0)
    tokens, time = places[-1]
    steps.append(step)
    places.append((tokens + seconds * rates.get(step, 0.0), time + seconds))
    last = step
  return lambda step: places[bisect.bisect_right(steps, step) - 1]


def thin(curve: Curve, most: int) -> Curve:
  """Returns a curve with fewer points, see `choose`.

  Args:
    curve: any curve.
    most: maximum number of points, at least 2.
  """
  return Curve(*(choose(values, most) for values in curve))


def choose(points: list[Any], most: int) -> list[Any]:
  """Returns fewer points, evenly chosen, including the first and the last.

  Args:
    points: any list.
    most: maximum number of points, at least 2.
  """
  n = len(points)
  return points if n <= most else [points[round(i * (n - 1) / (most - 1))] for i in range(most)]


def plain_fields(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields of a config that describe the training, as JSON values.

  Fields that may change when a run resumes are left out, except `COMPARED`, and so are those that a
  tokenizer sets.

  Args:
    config: a whole config.
  """
  left_out = (*resuming.RESUMABLE, "model.vocab_size")
  return {field: json.loads(json.dumps(value)) for field, value in config_lib.leaves(config)
          if field in COMPARED
          or not any(field == name or field.startswith(f"{name}.") for name in left_out)}


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
  """Returns the fields in which runs differ -> the value of each run; None: it lacks the field.

  A phase that some of the runs lack is one field, and its values are in words.

  Args:
    runs: the runs, in order. A reference does not say where its text is; this is no difference.
  """
  common = min(_count_phases(run.fields) for run in runs)
  shown = [_with_whole_phases(run.fields, common) for run in runs]
  fields = dict.fromkeys(field for found in shown for field in found)
  values = {field: [found.get(field) for found in shown] for field in fields}
  return {field: found for field, found in sorted(values.items())
          if len({json.dumps(value) for value in found
                  if value is not None or field not in PLACES}) > 1}


def _count_phases(fields: Mapping[str, Any]) -> int:
  return len({field.partition("]")[0] for field in fields if field.startswith("phases[")})


def _with_whole_phases(fields: Mapping[str, Any], common: int) -> dict[str, Any]:
  """Returns the fields of a config, in which every phase from a number on is one field."""
  found = dict(fields)
  for i in range(common, _count_phases(fields)):
    name = f"phases[{i}]"
    steps, rows, tokens = (fields.get(f"{name}.{field}") for field in (
        "steps", "batch_size", "seq_len"))
    found = {field: value for field, value in found.items() if not field.startswith(f"{name}.")}
    found[name] = f"{steps} steps of {rows} rows of {tokens} tokens"
  return found


# -------------------------------------------------------------- references


def reference_names() -> list[str]:
  """Returns the names of the references that come with bertgpt."""
  return sorted(path.stem for path in REFERENCES.glob("*.json"))


def read_reference(name: str) -> Compared:
  """Returns a reference.

  Args:
    name: a file, or the name of a reference that comes with bertgpt.
  Raises:
    ConfigError: there is none.
    DataError: the file is damaged.
  """
  path = files.expand(name)
  if not path.is_file() and name in reference_names():
    path = REFERENCES / f"{name}.json"
  if not path.is_file():
    raise ConfigError(f"--reference {name}: no such file or reference. Those that come with "
                      f"bertgpt: {', '.join(reference_names())}")
  stored = files.read_json(path, "Write it again with `bertgpt compare RUN --save_reference FILE`")
  try:
    stored["curves"] = {tag: _check(Curve(**curve)) for tag, curve in stored["curves"].items()}
    stored["fields"] = _defaults(stored["fields"]) | stored["fields"]
    stored["scores"] = dict(stored["scores"])
    return Compared(**stored)._replace(is_reference=True)
  except (TypeError, ValueError, KeyError, AttributeError) as e:
    raise ConfigError(f"--reference {name}: is not a reference. Write one with `bertgpt compare "
                      "RUN --save_reference FILE`") from e


def _check(curve: Curve) -> Curve:
  """Returns a curve; raises ValueError if it has no points, or too few numbers on an axis."""
  if len(set(map(len, curve))) > 1 or not curve.step or not all(
      type(x) in (int, float) for values in curve for x in values):
    raise ValueError("no curve")
  return curve


def _defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the default of every field of a config with as many phases as some fields have."""
  config = config_lib.base()
  number = _count_phases(fields)
  config.phases = tuple(config_lib.phase() for _ in range(number))
  return plain_fields(config)


def find_reference(run: Compared) -> Compared | None:
  """Returns the reference whose training has the same config as a run; None if there is none.

  Args:
    run: a run, with any seed.
  """
  for name in reference_names():
    reference = read_reference(name)
    if reference.fields | {"seed": run.fields["seed"]} == run.fields:
      return reference
  return None


def is_kept(tag: str) -> bool:
  """Returns whether a reference has this curve: losses of the training and all held-out scores."""
  return tag.startswith("eval/") or tag.startswith("train/") and metric_names.is_loss(tag)


def save_reference(mean: Compared, path: pathlib.Path, about: str = "") -> None:
  """Writes a reference: losses and scores, with few points.

  Args:
    mean: the mean of its runs, see `bands.average`.
    path: file to write, NAME.json; the reference has its name. A reference is replaced.
    about: the text of the runs, in a few words.
  Raises:
    ConfigError: there is a file at `path` that is not a reference.
    OSError: it cannot be written.
  """
  try:
    if path.exists():
      read_reference(str(path))
  except UserError as e:
    raise ConfigError(f"--save_reference {path}: is not a reference, so it is not replaced. Name "
                      "another file") from e
  kept = {tag: Curve(*map(_round, curve)) for tag, curve in mean.curves.items() if is_kept(tag)}
  defaults = _defaults(mean.fields)  # A later version may have more fields.
  fields = {field: None if field in PLACES else value for field, value in mean.fields.items()
            if value != defaults.get(field) or field.startswith("phases[")}
  stored = mean._replace(name=path.stem, is_reference=True, report="", time="", fields=fields,
                         scores=dict(zip(mean.scores, _round(mean.scores.values()), strict=True)),
                         spread={tag: _round(values, 2) for tag, values in mean.spread.items()},
                         about=about)
  content = stored._asdict() | {"curves": {tag: curve._asdict() for tag, curve in kept.items()}}
  files.write_json(path, content, indent=None)


def _round(values: Iterable[Any], digits: int = 4) -> list[Any]:
  return [float(f"{value:.{digits}g}") if isinstance(value, float) else value for value in values]
