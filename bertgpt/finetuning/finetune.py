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

import pathlib
import re
from typing import Any

import jax

from bertgpt import console, files, trees
from bertgpt.config import ConfigDict, families, finetuning, resuming
from bertgpt.config.stored import to_json
from bertgpt.devices import agreement, compilation_cache, preemption
from bertgpt.errors import DivergedError
from bertgpt.finetuning import results as results_lib
from bertgpt.finetuning import resume, tasks, train_run
from bertgpt.finetuning.initial_state import is_drawn
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tuning import (
  Program,
  Tuning,
  check_run,
  make_program,
  open_tuning,
)
from bertgpt.hub import opening
from bertgpt.runs import folder_kinds, word_tables, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained
from bertgpt.training import optimizers, trackers


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
  agreement.check({"command": "finetune", "--init": str(init), "--workdir": str(path),
                   **resuming.shared_fields(config)})
  compilation_cache.enable(config.system.compilation_cache)
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
    resume.check_states(path, stamp, {row["folder"] for row in results["runs"]})
    tuning = open_tuning(config, init, pretrained, task, path, stamp)
    program = make_program(tuning, config.learning_rates[0])  # Checks `optimizer.freeze`.
    if is_first:
      files.write_atomically(path / "config.json", to_json(config) + "\n")
      console.print_stdout("\n".join(describe(tuning, results, program)))
    run_missing(tuning, results)
    results = results_lib.summarize(results, config)
    if is_first:
      results_lib.write_results(path, results)
    if results["best_run"] is None:
      raise DivergedError(f"--workdir {path}: every run diverged. Use another --workdir with lower "
                          "learning_rates, or look at the data")
    if is_first:
      write_report(tuning, results, program)
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

  tokenizer = word_tables.record_unknown_words(pretrained)
  task = open_with(tokenizer)
  if words := word_tables.recorded_words(tokenizer):
    pretrained = word_tables.extend_vocabulary(pretrained, words)
    task = open_with(pretrained.tokenizer)
  return pretrained, task


def write_report(tuning: Tuning, results: dict[str, Any], program: Program) -> None:
  """Writes report.md and prints its table.

  Args:
    tuning: the opened fine-tuning.
    results: summarized results; at least one run did not diverge.
    program: compiled parts of the runs with any learning rate.
  """
  lines = results_lib.report(results, tuning.config, tuning.task)
  best = tuning.path / results["best_run"]
  lines.append(f"Weights of the best run: {best}" if folder_kinds.is_run(best) else
               "The weights of the best run were not saved: either this start has "
               f"save={tuning.config.save}, or an earlier start had another value, or this run "
               "became the best one when other learning_rates or seeds were left out")
  files.write_atomically(tuning.path / "report.md",
                         "\n".join([*describe(tuning, results, program), "", *lines]) + "\n")
  console.print_stdout("\n" + "\n".join(lines))


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
  done = [(row["learning_rate"], row["seed"]) for row in results["runs"]]
  rows = identity["rows"] | results_lib.fingerprint_unlabeled(task)
  agreement.check({"weights of --init": init, "rows of task.data": rows,
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
    for row in results["runs"]:  # A start that was killed may have left the state of its last run.
      resume.remove(tuning.path / row["folder"])
  unlabeled = results_lib.fingerprint_unlabeled(tuning.task)
  with preemption.catch_signals() as should_stop:
    for rate in config.learning_rates:
      done = [row["seed"] for row in results["runs"] if row["learning_rate"] == rate]
      seeds = [seed for seed in config.seeds if seed not in done]
      program = make_program(tuning, rate) if seeds else None
      for seed in seeds:
        row, state = train_run.train_and_score(tuning, program, seed, should_stop)
        results["runs"].append(row)
        if state is not None:  # It did not diverge.
          results["predicted"][row["folder"]] = unlabeled
        summary = results_lib.summarize(results, config)
        is_best = summary["best_run"] == row["folder"]
        if state is not None and (config.save == "all" or (config.save == "best" and is_best)):
          train_run.save_weights(tuning, program, seed, state)
        del state  # The next run needs its memory.
        if jax.process_index() == 0:
          results_lib.write_results(tuning.path, summary)
          resume.remove(tuning.path / row["folder"])
          if kept and config.save == "best" and is_best:
            # Only weights that this start has saved; weights of earlier starts stay.
            workdir.remove_run(tuning.path / kept)
        if is_best:
          kept = row["folder"]


def describe(tuning: Tuning, results: dict[str, Any], program: Program) -> list[str]:
  """Returns lines about the task and the initial weights, and notes about data and weights.

  Args:
    tuning: the opened fine-tuning.
    results: content of results.json.
    program: compiled parts of the runs with any learning rate.
  """
  config, task, pretrained = tuning.config, tuning.task, tuning.pretrained
  start = (f"random weights, the model and tokenizer of {tuning.init}" if config.from_scratch
           else f"step {pretrained.step} of {tuning.init}")
  counts = ", ".join(f"{len(s.rows)} {s.name}" for s in task.evals)
  untrained = () if config.from_scratch else _untrained(tuning, program)
  return [f"{task.name}: {len(task.train)} training rows, {counts}; from {start}",
          *(f"note: {note}" for note in untrained),
          *(f"note: {note}" for note in task.notes),
          *(f"note: {note}" for note in results_lib.describe_unpredicted(results, task,
                                                                         tuning.path))]


def _untrained(tuning, program):
  """Yields what the runs read of the model that its pretraining did not train."""
  pretrained, task = tuning.pretrained, tuning.task
  frozen = trees.named_leaves(optimizers.find_frozen(program.setup.config, program.abstract.params))
  for head, name in families.HEADS.items():
    kernels = [path for path in frozen if re.fullmatch(rf"body/{head}/(.*/)?kernel", path)]
    if kernels and is_drawn(pretrained, kernels[0]):
      yield (f"the checkpoint has no {name}. Its dense layer, which the task reads, has random "
             "weights" + ", and optimizer.freeze keeps them so" * any(map(frozen.get, kernels)))
  rows = [tokens for part in (task.train, *(s.rows for s in task.evals)) for tokens in part.tokens]
  if count := trained_lib.count_untrained(pretrained, rows):
    yield (trained_lib.describe_untrained(pretrained, count, len(rows))
           + ". task.max_length makes rows shorter")
