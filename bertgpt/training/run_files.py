"""The checkpoints, the log and the first files of a run, opened before its first step."""

import functools
import math
from typing import Any

import jax

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.devices import guard, timeline
from bertgpt.runs import checkpoint, folder_kinds, former, history, metrics_file, retention, workdir
from bertgpt.training import skipped_steps, steps
from bertgpt.training.open_run import Run
from bertgpt.training.step_log import StepLog


def open_checkpoints(run: Run) -> checkpoint.Checkpoints:
  """Returns the checkpoints of a run. Its history notes the first one."""
  return checkpoint.Checkpoints(run.path, **run.config.checkpoint,
                                on_save=functools.partial(history.note_checkpoint, run.path))


def make_log(run: Run, first_step: int, **shared: Any) -> StepLog:
  """Returns the log of a run, which also writes down the steps that are not applied.

  Args:
    run: the opened run.
    first_step: steps done before.
    **shared: arguments of `StepLog` for a run that is trained together with others.
  """
  skipped = skipped_steps.SkippedSteps(run.path, first_step, run.corpus, run.config,
                                       run.others)
  return StepLog(run.config, run.path, first_step, on_skip=skipped.write, **shared)


def announce(run: Run, log: StepLog, first_step: int) -> None:
  """Prints what disk space the checkpoints need, and where the run resumes.

  Args:
    run: the opened run.
    log: log of the run.
    first_step: steps done before.
  """
  last_step = config_lib.total_steps(run.config)
  if first_step < last_step:
    log.message(retention.describe_space(run.path / "checkpoints", count_bytes(run.abstract_state),
                                         last_step, run.config.checkpoint))
  if first_step:
    log.message(f"{run.path}: done, {last_step} steps" if first_step == last_step else
                f"{run.path}: resuming after step {first_step}")


def count_bytes(state: steps.TrainState) -> int:
  """Returns the bytes of a state, of arrays or ShapeDtypeStructs."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def write_first_files(run: Run, first_step: int) -> None:
  """Writes, in process 0, the files that make a folder a run, and removes an old report.

  With several processes, each of them also starts its log.

  Args:
    run: the opened run.
    first_step: steps done before.
  """
  if not files.is_remote(run.path):  # A bucket has no files that grow.
    guard.keep_log(run.path / "logs" / f"process-{jax.process_index()}.log")
  if jax.process_index():
    return
  # The report of an earlier start: steps may have been added, and an evaluation is made again.
  for name in ("report.md", "report.html"):
    (run.path / name).unlink(missing_ok=True)
  if not first_step:
    workdir.forget_id(run.path)  # Of an attempt that was killed before its first checkpoint, too.
  if not first_step and not folder_kinds.is_run(run.path):
    history.add(run.path, "start")
    for file in (run.path / timeline.FILE, run.path / skipped_steps.FILE):
      if file.is_file():  # Of another run, which began here before config.json was deleted.
        metrics_file.set_aside(file)
  former.note(run.path)
  workdir.write_run(run.path, run.config, run.corpus.tokenizer)
