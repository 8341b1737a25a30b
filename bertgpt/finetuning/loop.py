"""Fine-tuning of a pretrained model: runs for learning rates and seeds, official metrics, outputs.

    workdir/
      config.json            config of the fine-tuning
      results.json           every run, the medians and the best run; rewritten after each run
      report.md              the same as a table
      lr5e-05-seed0/         one run:
        metrics.jsonl
        predictions/         predictions on every evaluation set, in the official format
        config.json, tokenizer/, checkpoints/    weights, if `save` asks for those of this run

A run is a function of its config, its seed and the weights it starts from. When the command is
given again, it keeps the completed runs if weights and data are the same, and restarts a run that
was stopped. With several processes, all of them compute, and process 0 writes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from bertgpt import files, trees
from bertgpt.config import ConfigDict, families, recipes
from bertgpt.config import finetuning as finetune_config
from bertgpt.devices import process, sharding
from bertgpt.errors import ConfigError, DataError, DivergedError, Preempted
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.finetuning import results as results_lib
from bertgpt.finetuning import tasks
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows, Task
from bertgpt.runs import checkpoint, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metadata import make_metadata
from bertgpt.runs.trained import Trained
from bertgpt.training import steps
from bertgpt.training.step_log import StepLog


class Tuning(NamedTuple):
  """Everything that all runs of a fine-tuning share.

  Attributes:
    config: config of the fine-tuning.
    init: folder of the pretrained run.
    pretrained: the model in that folder.
    task: rows, labels and metrics.
    head: output layer, loss and predictions for the kind of the task.
    mesh: mesh over the devices of all processes.
    path: workdir of the fine-tuning.
  """

  config: ConfigDict
  init: pathlib.Path
  pretrained: Trained
  task: Task
  head: task_objectives.Head
  mesh: Mesh
  path: pathlib.Path


class Program(NamedTuple):
  """The compiled parts of the runs with one learning rate.

  Attributes:
    learning_rate: peak learning rate.
    training: model, objective and mesh, with an ordinary config from `make_run_config`.
    abstract: TrainState of ShapeDtypeStructs with their shardings.
    step: (state, batch) -> (state, metrics); the old state is donated.
    predict: (params, batch) -> outputs, replicated over the devices.
  """

  learning_rate: float
  training: steps.Setup
  abstract: steps.TrainState
  step: Callable
  predict: Callable


def finetune(init: pathlib.Path, config: ConfigDict, path: pathlib.Path) -> dict[str, Any]:
  """Fine-tunes the newest checkpoint of a run, once for every learning rate and seed.

  Args:
    init: folder of the pretrained or imported run.
    config: config of the fine-tuning, made by `config.finetuning.base`.
    path: workdir of the fine-tuning; completed runs in it are kept.
  Returns:
    The content of results.json.
  Raises:
    DivergedError: every run diverged.
    Preempted: a signal was received. Completed runs are kept.
    UserError: see `errors`; raised before anything is written if the input is wrong.
  """
  process.use_compilation_cache(config.system.compilation_cache)
  pretrained = trained_lib.load_trained(init, "--init")
  tasks.check_family(config.task.name, pretrained.config)
  check_run(config, pretrained)
  text_format = rows_lib.make_text_format(pretrained.tokenizer, pretrained.config.model,
                                          config.task)
  task = tasks.open_task(config.task, text_format)
  is_first = jax.process_index() == 0  # The other processes compute and write nothing.
  with workdir.make_and_lock(path, is_first):
    identity = results_lib.identify(init, pretrained, task)
    results = results_lib.read_results(path, config, identity)
    check_agreement(config, identity, results)
    tuning = open_tuning(config, init, pretrained, task, path)
    if is_first:
      files.write_atomically(path / "config.json", recipes.to_json(config) + "\n")
      print("\n".join(describe(tuning)), flush=True)
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


def write_report(tuning: Tuning, results: dict[str, Any]) -> None:
  """Writes report.md and prints its table.

  Args:
    results: summarized results, at least one run of which did not diverge.
  """
  lines = results_lib.report(results, tuning.config, tuning.task)
  best = tuning.path / results["best_run"]
  lines.append(f"Its weights: {best}" if workdir.is_run(best) else "Its weights were not kept: the "
               f"run was done with save={tuning.config.save}, or with that of an earlier start")
  files.write_atomically(tuning.path / "report.md",
                         "\n".join([*describe(tuning), "", *lines]) + "\n")
  print("\n" + "\n".join(lines))


def check_agreement(config: ConfigDict, identity: dict[str, Any], results: dict[str, Any]) -> None:
  """Checks that all processes would do the same runs. All processes call it at the same time.

  Args:
    config: config of the fine-tuning in this process.
    identity: what the runs start from and learn, from `results.identify`.
    results: completed runs that this process has found.
  Raises:
    ConfigError: the processes differ; raised in every process.
  """
  if jax.process_count() == 1:
    return
  init = {name: value for name, value in identity["init"].items() if name != "workdir"}
  done = [(run["learning_rate"], run["seed"]) for run in results["runs"]]
  digests = multihost_utils.process_allgather(np.stack([
      np.frombuffer(hashlib.sha256(part.encode()).digest(), np.int32)
      for part in (recipes.to_json(config), json.dumps([init, identity["rows"]]),
                   json.dumps(done))]))
  is_same = (digests == digests[0]).all(axis=(0, 2))
  for same, line in zip(is_same, (
      "the processes have different configs. Give all of them the same command",
      "--init, task.data: the processes read different weights or rows. Give all of them the same "
      "files",
      "--workdir: the processes find different completed runs in it. Put it on storage that all "
      "processes share"),
      strict=True):
    if not same:
      raise ConfigError(line)


def run_missing(tuning: Tuning, results: dict[str, Any]) -> None:
  """Does the runs that `results` lacks, and keeps the weights that `config.save` asks for.

  Args:
    results: content of results.json; every run adds its row, and the file is rewritten.
  Raises:
    Preempted: a signal was received.
  """
  config, kept, count = tuning.config, None, itertools.count()
  with process.catch_signals() as is_time:
    # Several processes agree on the number of a step to stop at, so all runs count as one.
    should_stop = lambda: is_time(next(count))
    for rate in config.learning_rates:
      done = [run["seed"] for run in results["runs"] if run["learning_rate"] == rate]
      seeds = [seed for seed in config.seeds if seed not in done]
      program = make_program(tuning, rate) if seeds else None
      for seed in seeds:
        run, state = do_run(tuning, program, seed, should_stop)
        results["runs"].append(run)
        summary = results_lib.summarize(results, config)
        is_best = summary["best_run"] == run["folder"]
        if state is not None and (config.save == "all" or (config.save == "best" and is_best)):
          save_weights(tuning, program, seed, state)
        del state  # The next run needs its memory.
        if jax.process_index() == 0:
          results_lib.write_results(tuning.path, summary)
          if kept and config.save == "best" and is_best:
            # Only weights that this start has kept: earlier ones may have been asked for.
            workdir.remove_run(tuning.path / kept)
        if is_best:
          kept = run["folder"]


def check_run(config: ConfigDict, pretrained: Trained) -> None:
  """Checks that a pretrained model can be fine-tuned under a config, before the data is read.

  Args:
    config: config of the fine-tuning.
    pretrained: model that the runs start from.
  Raises:
    ConfigError: model, config and devices do not fit together; one line per problem.
  """
  run = make_run_config(config, pretrained, 1, config.learning_rates[0])
  finetune_config.validate_run(run, jax.device_count(), jax.default_backend())


def make_run_config(config: ConfigDict, pretrained: Trained, num_steps: int,
                    learning_rate: float) -> ConfigDict:
  """Returns the config of a run, as the train step reads it.

  Args:
    config: config of the fine-tuning.
    pretrained: model that the run starts from.
    num_steps: steps of the run.
    learning_rate: peak learning rate.
  """
  size = rows_lib.vocab_size(pretrained.tokenizer, pretrained.config.model.family)
  return finetune_config.run_config(pretrained.config, config, steps=num_steps,
                                    learning_rate=learning_rate, vocab_size=size)


def open_tuning(config: ConfigDict, init: pathlib.Path, pretrained: Trained, task: Task,
                path: pathlib.Path) -> Tuning:
  """Returns the parts of a fine-tuning, with the head of its task and a mesh over all devices.

  Args:
    config, init, pretrained, task, path: as in `Tuning`.
  """
  head = task_objectives.find_head(pretrained.config, task.kind)
  mesh = sharding.make_mesh(make_run_config(config, pretrained, 1, config.learning_rates[0]))
  return Tuning(config, init, pretrained, task, head, mesh, path)


def describe(tuning: Tuning) -> list[str]:
  """Returns what is learned from what, and notes about data and weights, one line each."""
  config, task, pretrained = tuning.config, tuning.task, tuning.pretrained
  start = (f"random weights, the model and tokenizer of {tuning.init}" if config.from_scratch
           else f"step {pretrained.step} of {tuning.init}")
  counts = ", ".join(f"{len(s.rows)} {s.name}" for s in task.evals)
  pools = (families.find(pretrained.config).kind == "encoder"
           and task.kind in ("classes", "values"))
  is_fresh = pools and not config.from_scratch and "pooler" not in pretrained.params
  return [f"{task.name}: {len(task.train)} training rows, {counts}; from {start}",
          *["note: the checkpoint has no pooler; its weights are random"] * is_fresh,
          *(f"note: {note}" for note in task.notes)]


# ------------------------------------------------------------------ one run


def do_run(tuning: Tuning, program: Program, seed: int, should_stop: Callable[[], bool]
           ) -> tuple[dict[str, Any], steps.TrainState | None]:
  """Trains and scores one run, and writes everything in its folder except the weights.

  Args:
    program: compiled parts, with the learning rate.
    seed: seed of the order of the rows, the dropout and the new weights.
    should_stop: whether a signal was received; all processes call it equally often.
  Returns:
    (row of the run in results.json, state after the last step). A run that diverged has a row,
    because other runs may do better, and None for its state.
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
    print(f"learning rate {program.learning_rate!r}, seed {seed}: {folder}", flush=True)
    if folder.exists():  # Left by a start that was stopped in this run.
      shutil.rmtree(folder)
    folder.mkdir()
  start = time.monotonic()
  try:
    state, scores, outputs = learn(tuning, program, seed, folder, should_stop)
  except DivergedError:
    if is_first:
      print(f"{name} diverged: loss or gradient not finite. The run is left out", flush=True)
    return row | {"diverged": True}, None
  if is_first:
    write_predictions(tuning.task, outputs, folder / "predictions")
  return row | {"steps": int(state.step), "seconds": round(time.monotonic() - start, 1),
                **scores}, state


def learn(tuning: Tuning, program: Program, seed: int, folder: pathlib.Path,
          should_stop: Callable[[], bool]
          ) -> tuple[steps.TrainState, dict[str, dict[str, float]], dict[str, Any]]:
  """Trains one run and evaluates it, after its last step or after every epoch.

  Args:
    program, seed, should_stop: as in `do_run`.
    folder: folder of the run, for the curves.
  Returns:
    (state, metrics by evaluation set, outputs by evaluation set), all after the last step.
  Raises:
    DivergedError: loss or gradients were not finite in many steps in a row.
    Preempted: a signal was received.
  """
  config = program.training.config
  with contextlib.ExitStack() as stack:
    stack.callback(process.disarm_watchdog)  # Also after an error.
    stack.enter_context(sharding.use_mesh(tuning.mesh, config))
    log = stack.enter_context(contextlib.closing(StepLog(config, folder, 0, is_static=False)))
    state = init_from_pretrained(tuning, program, seed)
    scores, outputs = {}, {}
    for step, batch, is_end in iterate_batches(tuning, seed):
      process.arm_watchdog(config.system.hang_timeout_minutes)
      state, step_metrics = program.step(state, batch)
      log.add(step, step_metrics)
      if should_stop():
        raise Preempted(f"stopped in run {folder.name}. The same command restarts this run and "
                        "keeps the completed ones")
      if is_end:
        log.write_all()
        is_last = step == config.phases[0].steps
        if is_last or tuning.config.eval.every_epoch:
          scores, outputs = evaluate(tuning, program, state.params, with_tests=is_last)
          for name, metrics in scores.items():
            log.record(step, name, metrics)
  return state, scores, outputs


def make_program(tuning: Tuning, learning_rate: float) -> Program:
  """Returns the compiled parts of the runs with one learning rate.

  They are the same for all seeds, so every shape of a batch is compiled once per learning rate.

  Args:
    tuning: fine-tuning of the runs.
    learning_rate: peak learning rate.
  """
  config = make_run_config(tuning.config, tuning.pretrained, count_steps(tuning), learning_rate)
  model = tuning.head.make_model(FrozenConfigDict(config.model), len(tuning.task.labels))
  objective = tuning.head.make_objective(config, tuning.config.task.lm_weight)
  training = steps.Setup(config, tuning.mesh, model, objective)
  with sharding.use_mesh(tuning.mesh, config):
    abstract = steps.make_abstract_state(training)
    step = steps.jit_train_step(training, tuning.config.micro_batches, abstract)
  predict = jax.jit(functools.partial(tuning.head.predict, model),
                    out_shardings=NamedSharding(tuning.mesh, PartitionSpec()))
  return Program(learning_rate, training, abstract, step, predict)


def count_steps(tuning: Tuning) -> int:
  """Returns the number of steps of a run; the last batch of an epoch may be short."""
  return tuning.config.epochs * math.ceil(len(tuning.task.train) / tuning.config.batch_size)


def iterate_batches(tuning: Tuning, seed: int) -> Iterator[tuple[int, dict[str, jax.Array], bool]]:
  """Yields the batches of a run, on the devices.

  Args:
    tuning: fine-tuning of the run.
    seed: seed of the order of the rows.
  Yields:
    (number of the step, from 1; batch; whether the batch is the last one of an epoch).
  """
  config, train_rows = tuning.config, tuning.task.train
  lengths, step = train_rows.lengths, 0
  for epoch in range(config.epochs):
    order = rows_lib.order_epoch(lengths, config.batch_size, seed, epoch, config.group_by_length)
    for i, index in enumerate(order):
      step += 1
      yield (step, put_batch(tuning, train_rows, index, config.batch_size, seed),
             i == len(order) - 1)


def put_batch(tuning: Tuning, chosen: Rows, index: np.ndarray, batch_size: int,
              seed: int = 0) -> dict[str, jax.Array]:
  """Returns a global batch of some rows; this process puts its own part on its devices.

  Args:
    chosen: rows of a set.
    index: numbers of the rows of the batch, int [N] with N <= batch_size.
    batch_size: rows of the global batch; empty rows fill it up.
    seed: seed of the run, for the dropout.
  """
  batch = rows_lib.collate(chosen, index, batch_size, tuning.config.task.max_length, seed)
  local = sharding.local_rows(tuning.mesh, tuning.config, batch_size)
  return sharding.make_global_batch({name: x[local] for name, x in batch.items()}, tuning.mesh,
                                    tuning.config, batch_size)


def init_from_pretrained(tuning: Tuning, program: Program, seed: int) -> steps.TrainState:
  """Returns the state at step 0, with the pretrained weights unless `config.from_scratch` is set.

  The head, and a pooler that the checkpoint lacks, have random weights.

  Args:
    tuning: fine-tuning of the run.
    program: compiled parts of the run.
    seed: seed of the random weights.
  Raises:
    DataError: the checkpoint lacks another parameter, or has it with another shape.
  """
  config = program.training.config.copy_and_resolve_references()
  config.seed = seed
  state = steps.make_state(program.training._replace(config=config), program.abstract)
  if tuning.config.from_scratch:
    return state
  found = trees.named_leaves({"body": tuning.pretrained.params})

  def choose(path, fresh):
    name = trees.path_of(path)
    if name in found:
      return put_pretrained(name, fresh, found[name], tuning.pretrained.config.model.vocab_size)
    if not name.startswith(("head/", "body/pooler/")):
      raise DataError(f"{name}: is not in the checkpoint of --init {tuning.init}. Restore the "
                      "folder of that run")
    return fresh

  return dataclasses.replace(
      state, params=jax.tree_util.tree_map_with_path(choose, state.params))


def put_pretrained(name: str, fresh: jax.Array, trained: np.ndarray,
                   vocab_size: int) -> jax.Array:
  """Returns a trained parameter with the sharding of the fresh one.

  In a token table, only the rows of trained tokens are replaced. New tokens take the place of the
  padding after them and keep their fresh rows.

  Args:
    name: path of the parameter.
    fresh: parameter with its random values.
    trained: parameter in the checkpoint.
    vocab_size: number of tokens of the pretrained model.
  Raises:
    DataError: the two have different shapes.
  """
  if (name.endswith("token/embedding") and fresh.shape[1:] == trained.shape[1:]
      and vocab_size <= len(trained) <= len(fresh)):
    return jax.jit(lambda new, old: new.at[:len(old)].set(old), donate_argnums=0,
                   out_shardings=fresh.sharding)(fresh, trained[:vocab_size])
  if fresh.shape != trained.shape:
    raise DataError(f"{name}: the checkpoint has {trained.shape}, its config says {fresh.shape}. "
                    "Restore the folder of the run")
  return jax.make_array_from_callback(trained.shape, fresh.sharding, lambda index: trained[index])


def evaluate(tuning: Tuning, program: Program, params: Any, *, with_tests: bool
             ) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
  """Predicts the evaluation sets and scores those with labels.

  Args:
    params: parameters of the run, on the devices.
    with_tests: predict the sets without labels too.
  Returns:
    (official metrics by set, outputs by set).
  """
  sets = [s for s in tuning.task.evals if s.score or with_tests]
  outputs = {s.name: predict(tuning, program, params, s.rows) for s in sets}
  return {s.name: s.score(outputs[s.name]) for s in sets if s.score}, outputs


def predict(tuning: Tuning, program: Program, params: Any,
            chosen: Rows) -> np.ndarray | list[np.ndarray]:
  """Returns the outputs for all rows, in order: [N], or a list of N arrays [..., length].

  Args:
    params: parameters of the run, on the devices.
    chosen: rows of a set, at least one.
  """
  outputs: list[Any] = [None] * len(chosen)
  pending = None
  size = tuning.config.eval.batch_size

  def collect(index, values):
    values = np.asarray(values)
    for row, i in enumerate(index):
      outputs[i] = values[row] if values.ndim == 1 else values[row, ..., :len(chosen.tokens[i])]

  for index in rows_lib.order_evaluation(chosen.lengths, size):
    process.arm_watchdog(tuning.config.system.hang_timeout_minutes)
    started = index, program.predict(params, put_batch(tuning, chosen, index, size))
    if pending is not None:
      collect(*pending)  # While the devices compute the batch that was just started.
    pending = started
  collect(*pending)
  return np.array(outputs) if np.ndim(outputs[0]) == 0 else outputs


def write_predictions(task: Task, outputs: dict[str, Any], folder: pathlib.Path) -> None:
  """Writes the predictions of every evaluation set in the official format.

  Args:
    outputs: outputs by set, for all sets of the task.
    folder: folder that is made for them.
  """
  folder.mkdir()
  for s in task.evals:
    s.write(outputs[s.name], folder)


def save_weights(tuning: Tuning, program: Program, seed: int, state: steps.TrainState) -> None:
  """Makes the folder of a run a workdir that `runs.trained` opens, without the optimizer's state.

  Args:
    state: state after the last step.
  """
  config, pretrained = program.training.config, tuning.pretrained
  folder = tuning.path / results_lib.run_name(program.learning_rate, seed)
  task = {"name": tuning.task.name, "kind": tuning.task.kind, "labels": tuning.task.labels,
          "seed": seed, "init": str(tuning.init), "init_step": pretrained.step,
          "config": recipes.to_json(tuning.config)}
  step = int(state.step)
  metadata = make_metadata(config, pretrained.tokenizer, corpus=pretrained.corpus, step=step,
                           task=task)
  with contextlib.closing(checkpoint.Checkpoints(folder, every_steps=0, every_minutes=0,
                                                 keep=1)) as checkpoints:
    checkpoints.save(step, dataclasses.replace(state, opt_state=()), metadata, wait=True)
  if jax.process_index() == 0:
    workdir.write_run(folder, config, pretrained.tokenizer)
