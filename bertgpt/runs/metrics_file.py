"""metrics.jsonl, the file with the curves of a run: it is read, cut and repaired.

Every line has the scalars of one step:

    {"step": 10, "train/loss": 6.31, "perf/mfu": 0.41}
    {"step": 10, "eval/validation/mlm_loss": 6.25}

Lines that a crash has damaged are left out.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bertgpt import console, files

FILE = "metrics.jsonl"
BEFORE_ROLLBACK = "before-rollback"  # Part of the names of files that a rollback sets aside.


def read_curves(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
  """Returns the curves of a run: tag -> [(step, value), ...]; empty if there is no file.

  Args:
    workdir: folder of the run.
  """
  curves: dict[str, list[tuple[int, float]]] = {}
  for _, point in _read_points(workdir / FILE):
    step = point.pop("step")
    for tag, value in point.items():
      curves.setdefault(tag, []).append((step, value))
  return curves


def last_scores(curves: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, float]:
  """Returns the results of the last evaluation, by tag; one that it did not have is left out.

  Args:
    curves: result of `read_curves`.
  """
  lasts = {tag: points[-1] for tag, points in curves.items() if tag.startswith("eval/")}
  last = max((step for step, _ in lasts.values()), default=0)
  return {tag: value for tag, (step, value) in lasts.items() if step == last}


def last_step(workdir: pathlib.Path) -> int:
  """Returns the last step of the curves of a run; 0 if there is none.

  Args:
    workdir: folder of the run.
  """
  return max((point["step"] for _, point in _read_points(workdir / FILE)), default=0)


def prepare(workdir: pathlib.Path, first_step: int, is_evaluated: bool = False) -> None:
  """Makes the file ready for the points of a start, so that every curve has each step once.

  At step 0, the curves of an earlier start are set aside under another name.

  Args:
    workdir: folder of the run.
    first_step: steps done before.
    is_evaluated: whether the model will be evaluated at this step; see `keep_lines`.
  Raises:
    OSError: the file cannot be changed.
  """
  path = workdir / FILE
  if first_step:
    keep_lines(workdir, first_step, is_evaluated)
  elif path.is_file() and path.stat().st_size:
    target = set_aside(path)
    console.say(f"note: {path} holds the curves of an earlier start without a checkpoint. They are "
                f"set aside as {target.name}")


def set_aside(path: pathlib.Path, suffix: str = "before") -> pathlib.Path:
  """Renames a file of earlier steps, as NAME-before-1.jsonl or the next free number.

  Args:
    path: the file.
    suffix: what follows NAME.
  Raises:
    OSError: it cannot be renamed.
  """
  return path.rename(_free_name(path, suffix))


def keep_lines(workdir: pathlib.Path, last_step: int, is_evaluated: bool = False) -> None:
  """Drops the lines beyond a step, and lines damaged by a crash.

  Args:
    workdir: folder of the run.
    last_step: last step that is kept.
    is_evaluated: whether the model will be evaluated at this step again, so that the evaluations
      at the step are dropped too.
  """
  path = workdir / FILE
  if not path.exists():
    return
  kept = [line for line, point in _read_points(path) if point["step"] < last_step
          or point["step"] == last_step and not (is_evaluated and '"eval/' in line)]
  files.write_atomically(path, "".join(line + "\n" for line in kept))


def cut(workdir: pathlib.Path, last_step: int) -> list[str]:
  """Drops lines as `keep_lines` does, and keeps a copy of the whole file.

  Args:
    workdir: folder of the run.
    last_step: last step that is kept.
  Returns:
    The name of the copy, in a list; [] if no line was dropped.
  """
  path = workdir / FILE
  if all(point["step"] <= last_step for _, point in _read_points(path)):
    return []
  target = _free_name(path, BEFORE_ROLLBACK)
  files.write_atomically(target, path.read_bytes())
  keep_lines(workdir, last_step)
  return [target.name]


def _free_name(path: pathlib.Path, suffix: str) -> pathlib.Path:
  """Returns the first of metrics-SUFFIX-1.jsonl, metrics-SUFFIX-2.jsonl, ... that is free."""
  names = (path.with_name(f"{path.stem}-{suffix}-{n}{path.suffix}") for n in itertools.count(1))
  return next(name for name in names if not name.exists())


def _read_points(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (line, its content) for every line that is not damaged; nothing if there is no file."""
  for line, point in files.read_json_lines(path):
    if (isinstance(point, dict) and type(point.get("step")) is int
        and {int, float}.issuperset(map(type, point.values()))):
      yield line, point
