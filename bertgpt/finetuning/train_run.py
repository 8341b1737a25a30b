"""One run of a fine-tuning: its steps, saves and scores, and the weights that it leaves."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from bertgpt import console
from bertgpt.config.stored import to_json
from bertgpt.devices import barrier, sharding, watchdog
from bertgpt.errors import DivergedError, Preempted
from bertgpt.finetuning import evaluation, resume
from bertgpt.finetuning import results as results_lib
from bertgpt.finetuning.initial_state import init_from_pretrained
from bertgpt.finetuning.tuning import Program, Tuning, is_end_of_epoch, iterate_batches
from bertgpt.runs import checkpoint, workdir
from bertgpt.runs.metadata import make_metadata
from bertgpt.training import steps
from bertgpt.training.metrics import LateMetrics
from bertgpt.training.step_log import StepLog, finish_step


def train_and_score(tuning: Tuning, program: Program, seed: int, should_stop: Callable[[], bool]
                    ) -> tuple[dict[str, Any], steps.TrainState | None]:
  """Trains and scores one run, and writes everything in its folder except the weights.

  Args:
    tuning: the opened fine-tuning.
    program: compiled parts, with the learning rate.
    seed: seed of the order of the rows, the dropout and the new weights.
    should_stop: whether a signal was received; all processes call it the same number of times.
  Returns:
    (row of the run in results.json, state after the last step). A run that diverged also has a row,
    because other runs may do better; its state is None.
  Raises:
    Preempted: a signal was received.
  """
  name = results_lib.run_name(program.learning_rate, seed)
  folder = tuning.path / name
  row = {"learning_rate": program.learning_rate, "seed": seed, "folder": name}
  if should_stop():
    raise Preempted(f"stopped before run {name}. The same command continues with this run")
  is_first = jax.process_index() == 0
  if is_first:
    console.print_stdout(f"learning rate {program.learning_rate!r}, seed {seed}: {folder}")
    resume.clear(folder, tuning.stamp)
  try:
    state, seconds, scores, outputs = train_run(tuning, program, seed, folder, should_stop)
  except DivergedError:
    if is_first:
      console.print_stdout(
          f"{name} diverged: loss or gradient not finite. The run is left out")
    return row | {"diverged": True}, None
  if is_first:
    evaluation.write_predictions(tuning.task, outputs, folder / "predictions")
  return row | {"steps": int(state.step), "seconds": round(seconds, 1), **scores}, state


def train_run(tuning: Tuning, program: Program, seed: int, folder: pathlib.Path,
              should_stop: Callable[[], bool]
              ) -> tuple[steps.TrainState, float, dict[str, dict[str, float]], dict[str, Any]]:
  """Trains one run and evaluates it, after its last step or after every epoch.

  Args:
    tuning, program, seed, should_stop: see `train_and_score`.
    folder: folder of the run, for the curves and the checkpoints.
  Returns:
    After the last step: (state, seconds of all starts, metrics by set, outputs by set).
  Raises:
    DivergedError: too many consecutive steps were not applied.
    Preempted: a signal was received; a checkpoint is saved.
  """
  config, start = program.setup.config, time.monotonic()
  with contextlib.ExitStack() as stack:
    stack.callback(watchdog.disarm)  # Also after an error.
    watchdog.arm_for(config.system, compiles=True)
    shapes = set()  # Shapes of batches whose program has been called.
    stack.enter_context(sharding.use_mesh(tuning.mesh, config))
    saves = stack.enter_context(resume.open_saves(folder, tuning.config))
    restored = saves.restore_latest(program.abstract)
    saves.delete_old()
    state, metadata = restored or (init_from_pretrained(tuning, program, seed), {"seconds": 0.0})
    first_step, start = int(state.step), start - metadata["seconds"]
    log = stack.enter_context(contextlib.closing(StepLog(config, folder, first_step,
                                                         is_static=False)))
    results: Any = None
    late, is_save_due = LateMetrics(), False  # A save waits until a step is applied.
    finish = functools.partial(finish_step, late, log, config)
    metadata_now = lambda: {**tuning.stamp, "seconds": time.monotonic() - start}
    if first_step:
      log.message(f"{folder}: resuming after step {first_step}")
      if is_end_of_epoch(tuning, first_step):  # The run was stopped before this evaluation.
        results = evaluate_if_due(tuning, program, log, state, should_stop)
        if results is None:
          raise describe_stop(folder, first_step)
    for step, batch in log.pace.timed(iterate_batches(tuning, seed, first_step)):
      if is_new := (shape := batch["tokens"].shape) not in shapes:
        finish()
      state, step_metrics = start_step(program, log, state, batch, is_new)
      shapes.add(shape)
      finish()  # The step before, while the devices compute this one.
      late.push(step, step_metrics)
      stop, ends_epoch = should_stop(), is_end_of_epoch(tuning, step)
      is_save_due |= saves.is_due(step)
      if stop or is_save_due or ends_epoch:
        finish()
      if is_save_due and log.is_applied and not stop:
        saves.save(step, state, metadata_now())
        is_save_due = False
      if ends_epoch and not stop:
        results = evaluate_if_due(tuning, program, log, state, should_stop)
        stop = results is None
      if stop:
        log.write_all()  # The next start cannot log these steps.
        if saves.last_step != step:
          saves.save(step, state, metadata_now(), wait=True)
        raise describe_stop(folder, step)
  return state, time.monotonic() - start, *results


def start_step(program: Program, log: StepLog, state: steps.TrainState, batch: dict[str, jax.Array],
               is_new: bool) -> tuple[steps.TrainState, dict[str, Any]]:
  """Returns the state and the metrics after a step, which may not be computed yet.

  Args:
    program: compiled parts.
    log: log of the run.
    state: state before the step.
    batch: its batch, on the devices.
    is_new: whether the step is compiled first, because no batch had this shape.
  """
  system = program.setup.config.system
  watchdog.arm_for(system, compiles=is_new)
  if is_new:
    with log.untimed():
      barrier.compile_together("the train step", system, program.step, state, batch)
  with log.pace.waiting():
    return program.step(state, batch)


def describe_stop(folder: pathlib.Path, step: int) -> Preempted:
  """Returns the error of a run that a signal stopped after its checkpoint was saved.

  Args:
    folder: folder of the run.
    step: steps done.
  """
  return Preempted(f"stopped in run {folder.name} at step {step} with a checkpoint saved. The same "
                   "command continues this run and keeps the completed ones")


def evaluate_if_due(tuning: Tuning, program: Program, log: StepLog, state: steps.TrainState,
                    should_stop: Callable[[], bool]) -> evaluation.Evaluation | None:
  """Evaluates and logs a run after the last step of an epoch, if the config says so.

  Args:
    tuning, program: see `train_and_score`.
    log: log of the run.
    state: state after the step.
    should_stop: whether a signal was received; called once per batch.
  Returns:
    (metrics by evaluation set, outputs by evaluation set); None if it was stopped.
  Raises:
    DivergedError: the last step of the run was not finite.
  """
  log.write_all()
  step = int(state.step)
  is_last = step == program.setup.config.phases[0].steps
  if is_last and int(state.bad_steps):  # Too few steps for `StepLog` to notice it.
    raise DivergedError(f"step {step}: loss or gradient not finite")
  if not (is_last or tuning.config.eval.every_epoch):
    return {}, {}
  found = evaluation.evaluate(tuning, state.params, should_stop, with_tests=is_last)
  if found is None:
    return None
  scores, outputs = found
  for name, metrics in scores.items():
    log.record(step, name, metrics)
  return scores, outputs


def save_weights(tuning: Tuning, program: Program, seed: int, state: steps.TrainState) -> None:
  """Makes the folder of a run a workdir that `runs.trained` opens, without the optimizer's state.

  Args:
    tuning, program, seed: see `train_and_score`.
    state: state after the last step.
  """
  config, pretrained = program.setup.config, tuning.pretrained
  folder = tuning.path / results_lib.run_name(program.learning_rate, seed)
  task = {"name": tuning.task.name, "kind": tuning.task.kind, "labels": tuning.task.labels,
          "texts": tuning.task.texts, "seed": seed, "init": str(tuning.init),
          "init_step": pretrained.step, "config": to_json(tuning.config)}
  metadata = make_metadata(config, pretrained.tokenizer, corpus=pretrained.corpus_identity,
                           task=task)
  with checkpoint.Checkpoints(folder, every_steps=0, every_minutes=0, keep=1) as checkpoints:
    checkpoints.save(int(state.step), dataclasses.replace(state, opt_state=()), metadata, wait=True)
  if jax.process_index() == 0:
    workdir.write_run(folder, config, pretrained.tokenizer)
