"""Which checkpoints of a run are kept: the newest, those of every N steps, and the best."""

import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

from bertgpt import files
from bertgpt.config import metric_names
from bertgpt.devices import agreement
from bertgpt.runs import step_folders

FILE = "best.json"  # In the folder of the checkpoints: the fields of _Record, and "metric".


def choose_old(manifests: Mapping[int, Mapping[str, Any]], keep: int, keep_every: int,
               best: int | None) -> list[int]:
  """Returns the steps whose checkpoints can be deleted.

  Args:
    manifests: manifest of every step with a good checkpoint, by ascending step.
    keep: number of newest checkpoints that are kept.
    keep_every: the first one at or after every N steps is kept too; 0: none. A checkpoint is saved
      later if its step was not applied. A checkpoint saved under another N is kept by that N.
    best: step that is kept too; None: none.
  """
  is_first = lambda step, before, every: every > 0 and step // every > before // every
  steps = list(manifests)
  return [step for step, before in zip(steps[:-keep], [0, *steps], strict=False)
          if step != best and not is_first(step, before, keep_every)
          and not is_first(step, before, _interval_of(manifests[step]))]


def _interval_of(manifest: Mapping[str, Any]) -> int:
  """Returns `checkpoint.keep_every_steps` of the run when it saved a step; 0 if it is not known."""
  try:
    config = files.parse_json(manifest["metadata"]["config"])
    return int(config["checkpoint"]["keep_every_steps"])
  except (ValueError, KeyError, TypeError):
    return 0


def describe_space(root: pathlib.Path, state_bytes: int, total_steps: int,
                   options: Mapping[str, Any]) -> str:
  """Returns a line about the disk space that the checkpoints of a run need, and what is free.

  Args:
    root: folder of the checkpoints, which exists.
    state_bytes: bytes of a state.
    total_steps: steps of the run.
    options: `config.checkpoint`.
  """
  count = options["keep"] + 1 + bool(options["keep_best"])  # One more is being written.
  if options["keep_every_steps"]:
    count += total_steps // options["keep_every_steps"]
  if files.is_remote(root):
    return f"bucket: up to {count} checkpoints of {_show(state_bytes)}"
  # Others, which an earlier start kept or that are left over, are not replaced by new ones.
  steps = {int(path.name): {} for path in step_folders.named_like_steps(root)}
  present = len(steps) - len(choose_old(steps, options["keep"], options["keep_every_steps"],
                                        _read_step(root) if options["keep_best"] else None))
  needed, free = max(0, count - present) * state_bytes, shutil.disk_usage(root).free
  line = (f"disk: up to {count} checkpoints of {_show(state_bytes)}, {present} of them present; "
          f"{_show(needed)} needed, {_show(free)} free")
  return line if needed <= free else (
      f"WARNING: {line}. Free space in {root}, or lower checkpoint.keep")


def _show(size: float) -> str:
  for unit in ("B", "kB", "MB", "GB"):
    if size < 1000:
      return f"{size:.3g} {unit}"
    size /= 1000
  return f"{size:.3g} TB"


class _Record(NamedTuple):
  """An evaluation of a checkpoint; the first of all has no step.

  Attributes:
    step: steps done; None: there was no evaluation.
    value: the metric at this step.
    conditions: see `training.evaluate.conditions`; None: written by a version that noted none.
  """

  step: int | None = None
  value: float | None = None
  conditions: Mapping[str, Any] | None = None


class Best:
  """The best checkpoint of a run by a held-out metric, the same in all processes."""

  def __init__(self, root: pathlib.Path, metric: str):
    """Reads which checkpoint was the best so far.

    Args:
      root: folder of the checkpoints.
      metric: name of the metric, such as 'mlm_loss'; '': none is chosen. Those that are shares, see
        `metric_names`, should be high, losses and perplexities low.
    """
    self._path, self.metric = root / FILE, metric
    known, *fields = json.loads(agreement.broadcast_text(json.dumps(self._read())))
    # Without a metric, or until there is a best one by another metric, the former best is kept.
    self._recorded = _Record(*fields)
    self._best = self._recorded if known == metric else _Record()

  def _read(self) -> tuple[str, *tuple[Any, ...]]:
    """Returns the metric of the file and the fields of its record."""
    try:
      found = files.parse_json(self._path.read_bytes())
      step, value = int(found["step"]), float(found["value"])
      if math.isfinite(value) and self._is_saved(step):
        return str(found["metric"]), step, value, found.get("conditions")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as e:
      files.raise_if_unanswered(e)
      # There is no record, or it is not readable: the next evaluation is the best so far.
    return "", *_Record()

  def _is_saved(self, step: int) -> bool:
    return step_folders.is_saved(self._path.with_name(str(step)))

  def is_beaten_by(self, value: float, conditions: Mapping[str, Any]) -> bool:
    """Returns whether a value of the metric is better than the best one so far.

    A value that is not finite never is; it could not be beaten either. Values under other
    conditions cannot be compared with it, so the newer one counts as the better one.

    Args:
      value: the metric.
      conditions: JSON values, see `training.evaluate.conditions`.
    """
    if not self.metric or not math.isfinite(value):
      return False
    sign = -1 if metric_names.is_share(self.metric) else 1
    best = self._best
    # A record of an earlier version may lack some conditions.
    is_other = any(conditions.get(name) != x for name, x in (best.conditions or {}).items())
    return best.value is None or is_other or sign * value < sign * best.value

  def replace(self, step: int, value: float, conditions: Mapping[str, Any]) -> None:
    """Makes a checkpoint the best one.

    Args:
      step: step of the checkpoint, whose save may still be running: see `record`.
      value: the metric at this step.
      conditions: see `is_beaten_by`.
    """
    self._best = _Record(step, value, conditions)

  def record(self) -> int | None:
    """Writes the best checkpoint to the file once it is complete; for process 0.

    Returns:
      The step that the file names, whose checkpoint must be kept; None: none.
    """
    best = self._best
    if best.step is not None and best != self._recorded and self._is_saved(best.step):
      files.write_json(self._path, {"metric": self.metric, **best._asdict()})
      self._recorded = best
    return self._recorded.step


def _read_step(root: pathlib.Path) -> int | None:
  """Returns the step of the record of the best checkpoint; None if it is absent or not readable."""
  try:
    return int(files.parse_json((root / FILE).read_bytes())["step"])
  except (OSError, ValueError, KeyError, TypeError, OverflowError):
    return None


def forget_after(root: pathlib.Path, step: int) -> None:
  """Removes the record of the best checkpoint if it is later than a step, or not readable.

  Args:
    root: folder of the checkpoints.
    step: last step that counts.
  """
  found = _read_step(root)
  if found is None or found > step:
    (root / FILE).unlink(missing_ok=True)
