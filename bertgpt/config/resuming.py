"""Fields that may change when a run is resumed, and those that all its processes have in common."""

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from bertgpt.config import ConfigDict, find_phase, leaves, total_steps

# Fields that may differ when a run is resumed, because they change neither the batches, nor the
# model, nor the update. The number of steps may change too; the remaining steps then have the
# learning rates of the longer curve.
RESUMABLE = ("checkpoint", "eval", "log", "mesh", "profile", "system",
             "data.cache_dir", "data.corpus", "data.corpora", "data.prepare_workers",
             "data.reader_workers", "data.prefetch", "train.max_bad_steps", "train.skip_steps",
             "model.attention", "model.remat", "model.scan_unroll", "objective.loss_chunk")

# Fields of the host, which change neither what is computed nor how: they may differ between the
# processes of a run.
HOST_FIELDS = ("data.cache_dir", "data.corpus", "data.corpora", "data.prepare_workers",
               "data.reader_workers", "data.prefetch", "system.compilation_cache")


def find_phase_problem(old: ConfigDict, new: ConfigDict, step: int, path: pathlib.Path) -> str:
  """Returns why a config does more to a run than add steps; '' if it only adds steps.

  Args:
    old: config of the run.
    new: config of this start.
    step: steps done.
    path: workdir of the run.
  """
  if step > (total := total_steps(new)):
    return (f"phases[].steps: {total} in total, but the run in {path} has already done {step} "
            "steps. Raise them, or use another --workdir")
  if not step:
    return ""
  current, _ = find_phase(old, step - 1)
  finished, wanted = ([p.steps for p in config.phases[:current]] for config in (old, new))
  if finished != wanted or find_phase(new, step - 1)[0] != current:
    return (f"phases[].steps: the run in {path} has done {step} steps, so the phases before the "
            "current one cannot change. Change the last one, or use another --workdir")
  return ""


def differences(old: ConfigDict, new: ConfigDict, allowed: Sequence[str] = ()) -> list[str]:
  """Returns lines 'field: old -> new' for changed fields that must not change on resume.

  A phase that only one of the configs has is one line.

  Args:
    old: config that the run was started with.
    new: config that it is resumed with.
    allowed: fields or groups of fields that may change in addition to `RESUMABLE`.
  """
  old_leaves, new_leaves = dict(leaves(old)), dict(leaves(new))
  lines = [f"{field}: {old_leaves[field]!r} -> {new_leaves[field]!r}"
           for field in sorted(old_leaves.keys() & new_leaves.keys())
           if old_leaves[field] != new_leaves[field]
           and not _may_change(field, (*RESUMABLE, *allowed))]
  # All other fields are in both, so what is left are phases.
  phases = itertools.zip_longest(old.get("phases", ()), new.get("phases", ()))
  return lines + [f"phases[{i}]: {_describe(before)} -> {_describe(after)}"
                  for i, (before, after) in enumerate(phases)
                  if None in (before, after) and not _may_change(f"phases[{i}]", allowed)]


def _describe(p: ConfigDict | None) -> str:
  if not p:
    return "no such phase"
  return (f"{p.steps} steps of {p.batch_size} rows of {p.seq_len} tokens"
          + f" from {p.mixture}" * bool(p.mixture))


def shared_fields(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields that all processes of a run must have in common, with their values."""
  return {field: value for field, value in leaves(config) if not _may_change(field, HOST_FIELDS)
          or field.startswith("phases[")}


def is_field(config: ConfigDict, name: str) -> bool:
  """Returns whether a config has a field or a group of fields.

  Args:
    config: whole config.
    name: path of a field, such as 'optimizer.name', or of a group, such as 'optimizer'. A phase
      'phases[N]' counts for any N, because the config may leave out phases of the run.
  """
  return bool(re.fullmatch(r"phases\[\d+\]", name)) or any(
      _is_within(field, name) for field, _ in leaves(config))


def _may_change(field: str, allowed: Sequence[str]) -> bool:
  if field.startswith("phases[") and field.endswith("].steps"):
    return True
  return any(_is_within(field, name) for name in allowed)


def _is_within(field: str, name: str) -> bool:
  return field == name or field.startswith((f"{name}.", f"{name}["))
