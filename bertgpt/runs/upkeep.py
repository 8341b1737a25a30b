"""Upkeep of a run that is not training: its checkpoints are verified, or later steps set aside."""

import pathlib
from collections.abc import Iterator

from bertgpt import files
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.runs import (
  checkpoint,
  folder_kinds,
  history,
  manifest,
  metrics_file,
  retention,
  step_folders,
  workdir,
)

REPORTS = ("report.md", "report.html", "loss.png")
DAMAGED_CODE = DataError.exit_code  # Exit code of `bertgpt verify`, if a checkpoint is damaged.


def verify(path: pathlib.Path) -> Iterator[tuple[str, bool]]:
  """Checks the checkpoints of a run: files, their hashes, and the fingerprints of all arrays.

  Nothing is changed.

  Args:
    path: workdir of a run, or a fine-tuning workdir, whose runs are checked.
  Yields:
    (line about a checkpoint, or about something that is named like one; whether it is good).
  Raises:
    ConfigError: there is no run.
    DataError: a run holds no checkpoint.
  """
  folder_kinds.require_run(path, "Give the --workdir of a `bertgpt train` or `bertgpt finetune`")
  roots = [root for pattern in ("checkpoints", "*/checkpoints", "*/unfinished/checkpoints")
           for root in sorted(path.glob(pattern)) if checkpoint.find_steps(root)]
  if not roots:
    raise DataError(f"--workdir {path}: holds no checkpoint. Restore one from a backup")
  for root in roots:
    for step in checkpoint.find_steps(root):
      name = (root / str(step)).relative_to(path)
      try:
        content = checkpoint.verify(root / str(step))
      except manifest.Damaged as e:
        if step in checkpoint.find_steps(root):  # A run that is training deletes old ones.
          yield f"{name}: DAMAGED: {e}", False
        continue
      size = sum(entry[0] for entry in content["files"].values())
      yield (f"{name}: good, {len(content['leaves'])} arrays, {len(content['files'])} files, "
             f"{size:,} bytes"), True


def roll_back(path: pathlib.Path, step: int) -> list[str]:
  """Sets checkpoints, curves and reports after a step aside, and records that in the history.

  If the program is killed meanwhile, the same rollback finishes the work.

  Args:
    path: workdir of a run.
    step: checkpoint that becomes the newest one.
  Returns:
    Names of what was set aside.
  Raises:
    ConfigError: there is no such run or checkpoint, the run is being trained, or it is one of a
      fine-tuning.
    DataError: the checkpoint is damaged.
    StorageError: a checkpoint cannot be renamed.
  """
  workdir.read_config(path)
  if folder_kinds.is_in_tuning(path):
    raise ConfigError(f"--workdir {path}: is a run of a fine-tuning, which does not continue from "
                      "an earlier step. Fine-tune again in another --workdir")
  with workdir.lock(path):
    root = path / "checkpoints"
    found = checkpoint.find_steps(root)
    if not found:
      raise DataError(f"--workdir {path}: holds no checkpoint. Restore one from a backup")
    if step not in found:
      raise ConfigError(f"--to {step}: is not a checkpoint in {root}. Choose one of "
                        f"{', '.join(map(str, found))}")
    try:
      checkpoint.verify(root / str(step))
    except manifest.Damaged as e:
      raise DataError(f"--to {step}: {root / str(step)} is damaged: {e}. Choose another "
                      "checkpoint; `bertgpt verify` lists them") from e
    later = [number for number in reversed(found) if number > step]
    names = []
    if later or metrics_file.last_step(path) > step:  # Reports first: a rollback may be killed.
      names += [metrics_file.set_aside(file, metrics_file.BEFORE_ROLLBACK).name
                for name in REPORTS if (file := path / name).is_file()]
    names += [_set_aside(root / str(number)) for number in later]
    retention.forget_after(root, step)
    names += metrics_file.cut(path, step)
    workdir.forget_id(path)
    history.add(path, "rollback", to=step, checkpoints=later)
  return names


def _set_aside(path: pathlib.Path) -> str:
  try:
    target = step_folders.rename_aside(path, "rolled-back")
    if not files.is_remote(path):
      files.sync(path.parent)
  except OSError as e:
    raise StorageError(
        f"{path}: cannot be renamed ({e.strerror}). Run the same command again") from e
  return target.name
