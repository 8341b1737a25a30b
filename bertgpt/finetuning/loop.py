"""Fine-tuning of a pretrained model: runs for learning rates and seeds, official metrics, outputs.

    workdir/
      config.json            fine-tuning config
      results.json           every run, the medians and the best run; rewritten after each run
      report.md              the same as a table
      lr5e-05-seed0/         one run:
        metrics.jsonl
        predictions/         predictions on every evaluation set, in the official format
        config.json, tokenizer/, checkpoints/    weights, if `save` selects this run

A run is a function of its config, its seed and the weights it starts from. When the command is
given again, it keeps the completed runs if weights and data are the same, and continues a run that
was stopped from its last checkpoint; see `finetuning.resume`. With several processes, all of them
compute, and process 0 writes.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from bertgpt import console, files, models, trees
from bertgpt.config import ConfigDict, finetuning, resuming
from bertgpt.config.stored import to_json
from bertgpt.devices import peers, process, sharding, watchdog
from bertgpt.errors import DivergedError, Preempted
from bertgpt.finetuning import evaluation, resume, tasks
from bertgpt.finetuning import results as results_lib
from bertgpt.finetuning.start import init_from_pretrained
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tuning import (
    Program,
    Tuning,
    check_run,
    is_end_of_epoch,
    iterate_batches,
    make_program,
    open_tuning,
)
from bertgpt.hub import opening
from bertgpt.runs import checkpoint, spellings, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metadata import make_metadata
from bertgpt.runs.trained import Trained
from bertgpt.training import steps, trackers
from bertgpt.training.saving import SavePolicy
from bertgpt.training.step_log import StepLog


def finetune(init: pathlib.Path, config: ConfigDict, path: pathlib.Path) -> dict[str, Any]:
  """Fine-tunes the newest checkpoint of a run, once for every learning rate and seed.

  Args:
    init: folder of the pretrained run, or of a model of `transformers`.
    config: fine-tuning config, made by `config.finetuning.base`.
    path: fine-tuning workdir; completed runs in it are kept.
  Returns:
    The content of results.json.
  Raises:
    DivergedError: every run diverged.
    Preempted: a signal was received. Completed runs are kept, and so is a checkpoint of the run
      that was stopped.
    UserError: see `errors`; raised before anything is written if the input is wrong.
  """
  peers.check_agreement({"command": "finetune", "--init": str(init), "--workdir": str(path),
                         **resuming.shared_fields(config)})
  process.use_compilation_cache(config.system.compilation_cache)
  pretrained = opening.open_model(init, "--init", dtype="")
  tasks.check_family(config.task.name, pretrained.config)
  if not results_lib.has_work(path):  # Earlier versions accepted such fields.
    readers = {name: entry.reads for name, entry in tasks.TASKS.items()}
    finetuning.check_read(config, readers, pretrained.config)
  check_run(config, pretrained)
  is_first = jax.process_index() == 0  # The other processes compute and write nothing.
  if is_first:
    trackers.check(config)
  opened = pretrained
  pretrained, task = open_task(config, opened)
  with workdir.make_and_lock(path, is_first):
    identity = results_lib.identify(init, opened, task)
    results = results_lib.read_results(path, config, identity)
    check_agreement(identity, task, results)
    stamp = resume.make_stamp(identity, pretrained.tokenizer, config)
    resume.check_states(path, stamp, {run["folder"] for run in results["runs"]})
    tuning = open_tuning(config, init, pretrained, task, path, stamp)
    make_program(tuning, config.learning_rates[0])  # Checks `optimizer.freeze`.
    if is_first:
      files.write_atomically(path / "config.json", to_json(config) + "\n")
      console.print_progress("\n".join(describe(tuning, results)))
    run_missing(tuning, results)
    results = results_lib.summarize(results, config)
    if is_first:
      results_lib.write_results(path, results)
    if results["best_run"] is None:
      raise DivergedError(f"--workdir {path}: every run diverged. Use another --workdir with lower "
                          "learning_rates, or look at the data")
    if is_first:
      write_report(tuning, results)
  return results


def open_task(config: ConfigDict, pretrained: Trained) -> tuple[Trained, rows_lib.Task]:
  """Returns the task and the model; a model that reads whole words has learned those of the task.

  Args:
    config: fine-tuning config.
    pretrained: the pretrained model.
  """
  def open_with(tokenizer):
    return tasks.open_task(config.task, rows_lib.make_text_format(
        tokenizer, pretrained.config.model, config.task))

  tokenizer = spellings.record_unknown_words(pretrained)
  task = open_with(tokenizer)
  if words := spellings.recorded_words(tokenizer):
    pretrained = spellings.learn_words(pretrained, words)
    task = open_with(pretrained.tokenizer)
  return pretrained, task


def write_report(tuning: Tuning, results: dict[str, Any]) -> None:
  """Writes report.md and prints its table.

  Args:
    tuning: the opened fine-tuning.
    results: summarized results; at least one run did not diverge.
  """
  lines = results_lib.report(results, tuning.config, tuning.task)
  best = tuning.path / results["best_run"]
  lines.append(f"Its weights: {best}" if workdir.is_run(best) else "Its weights were not saved, "
               f"because of save={tuning.config.save} in this start, another value in an earlier "
               "start, or a run of other learning_rates or seeds that was better")
  files.write_atomically(tuning.path / "report.md",
                         "\n".join([*describe(tuning, results), "", *lines]) + "\n")
  console.print_progress("\n" + "\n".join(lines))


def check_agreement(identity: dict[str, Any], task: rows_lib.Task,
                    results: dict[str, Any]) -> None:
  """Checks that all processes would do the same runs. All processes call it at the same time.

  Args:
    identity: result of `results.identify`.
    task: task with its rows.
    results: completed runs that this process has found.
  Raises:
    ConfigError: the processes differ; raised in every process.
  """
  init = {name: value for name, value in identity["init"].items() if name != "workdir"}
  done = [(run["learning_rate"], run["seed"]) for run in results["runs"]]
  rows = identity["rows"] | results_lib.fingerprint_unlabeled(task)
  peers.check_agreement({"weights of --init": init, "rows of task.data": rows,
                         "labels of task.data": identity["gold"],
                         "completed runs in --workdir": done})


def run_missing(tuning: Tuning, results: dict[str, Any]) -> None:
  """Does the runs that `results` lacks, and keeps the weights that `config.save` selects.

  Args:
    tuning: the opened fine-tuning.
    results: content of results.json; every run adds its row, and the file is rewritten.
  Raises:
    Preempted: a signal was received.
  """
  config, kept = tuning.config, None
  if jax.process_index() == 0:
    for run in results["runs"]:  # A start that was killed may have left the state of its last run.
      resume.remove(tuning.path / run["folder"])
  unlabeled = results_lib.fingerprint_unlabeled(tuning.task)
  with process.catch_signals() as should_stop:
    for rate in config.learning_rates:
      done = [run["seed"] for run in results["runs"] if run["learning_rate"] == rate]
      seeds = [seed for seed in config.seeds if seed not in done]
      program = make_program(tuning, rate) if seeds else None
      for seed in seeds:
        run, state = train_and_score(tuning, program, seed, should_stop)
        results["runs"].append(run)
        if state is not None:  # It did not diverge.
          results["predicted"][run["folder"]] = unlabeled
        summary = results_lib.summarize(results, config)
        is_best = summary["best_run"] == run["folder"]
        if state is not None and (config.save == "all" or (config.save == "best" and is_best)):
          save_weights(tuning, program, seed, state)
        del state  # The next run needs its memory.
        if jax.process_index() == 0:
          results_lib.write_results(tuning.path, summary)
          resume.remove(tuning.path / run["folder"])
          if kept and config.save == "best" and is_best:
            # Only weights that this start has saved; weights of earlier starts stay.
            workdir.remove_run(tuning.path / kept)
        if is_best:
          kept = run["folder"]


def describe(tuning: Tuning, results: dict[str, Any]) -> list[str]:
  """Returns lines about the task and the initial weights, and notes about data and weights.

  Args:
    tuning: the opened fine-tuning.
    results: content of results.json.
  """
  config, task, pretrained = tuning.config, tuning.task, tuning.pretrained
  start = (f"random weights, the model and tokenizer of {tuning.init}" if config.from_scratch
           else f"step {pretrained.step} of {tuning.init}")
  counts = ", ".join(f"{len(s.rows)} {s.name}" for s in task.evals)
  return [f"{task.name}: {len(task.train)} training rows, {counts}; from {start}",
          *([] if config.from_scratch else [f"note: {note}" for note in _untrained(tuning)]),
          *(f"note: {note}" for note in task.notes),
          *(f"note: {note}" for note in results_lib.describe_unpredicted(results, task,
                                                                         tuning.path))]


def _untrained(tuning):
  """Yields what the runs read of the model that its pretraining did not train."""
  pretrained, task = tuning.pretrained, tuning.task
  paths = trees.named_leaves(pretrained.params)
  is_fresh = "pooler" in pretrained.fresh or "pooler/kernel" not in paths
  if (is_fresh and task.kind in ("classes", "values")
      and models.has_parameter(pretrained.config, "pooler/kernel")):
    yield "the checkpoint has no pooler; its weights are random"
  rows = [tokens for part in (task.train, *(s.rows for s in task.evals)) for tokens in part.tokens]
  if count := trained_lib.count_untrained(pretrained, rows):
    yield (trained_lib.describe_untrained(pretrained, count, len(rows))
           + ". task.max_length makes rows shorter")


# ------------------------------------------------------------------ one run


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
    console.print_progress(f"learning rate {program.learning_rate!r}, seed {seed}: {folder}")
    resume.clear(folder, tuning.stamp)
  try:
    state, seconds, scores, outputs = train_run(tuning, program, seed, folder, should_stop)
  except DivergedError:
    if is_first:
      console.print_progress(
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
    state, metadata = restored or (init_from_pretrained(tuning, program, seed), {"seconds": 0.0})
    first_step, start = int(state.step), start - metadata["seconds"]
    log = stack.enter_context(contextlib.closing(StepLog(config, folder, first_step,
                                                         is_static=False)))
    results: Any = None
    saving = SavePolicy(log)

    def save(step: int, wait: bool) -> None:
      saves.save(step, state, {**tuning.stamp, "seconds": time.monotonic() - start}, wait=wait)

    if first_step:
      log.message(f"{folder}: resuming after step {first_step}")
      if is_end_of_epoch(tuning, first_step):  # The run was stopped before this evaluation.
        results = evaluate_if_due(tuning, program, log, state, should_stop)
        if results is None:
          raise describe_stop(folder, first_step)
    for step, batch in log.pace.timed(iterate_batches(tuning, seed, first_step)):
      shape = batch["tokens"].shape
      watchdog.arm_for(config.system, compiles=shape not in shapes)
      if shape not in shapes:
        with log.untimed():
          peers.compile_together("the train step", config.system, program.step, state, batch)
      with log.pace.waiting():
        state, step_metrics = program.step(state, batch)
      shapes.add(shape)
      log.add(step, step_metrics)
      stop = should_stop()
      if is_saved := saving.should_save(saves.is_due(step), is_last=False, is_stopping=stop):
        save(step, wait=stop)
      if not stop and is_end_of_epoch(tuning, step):
        results = evaluate_if_due(tuning, program, log, state, should_stop)
        stop = results is None
      if stop:
        if not is_saved:
          save(step, wait=True)
        raise describe_stop(folder, step)
  return state, time.monotonic() - start, *results


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
  found = evaluation.evaluate(tuning, program, state.params, should_stop, with_tests=is_last)
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
          "seed": seed, "init": str(tuning.init), "init_step": pretrained.step,
          "config": to_json(tuning.config)}
  metadata = make_metadata(config, pretrained.tokenizer, corpus=pretrained.corpus, task=task)
  with checkpoint.Checkpoints(folder, every_steps=0, every_minutes=0, keep=1) as checkpoints:
    checkpoints.save(int(state.step), dataclasses.replace(state, opt_state=()), metadata, wait=True)
  if jax.process_index() == 0:
    workdir.write_run(folder, config, pretrained.tokenizer)
