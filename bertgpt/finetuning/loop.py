"""A pretrained model on a task: several rates and seeds, official metrics, predictions.

    workdir/
      config.json            of the fine-tuning
      results.json           every run, the medians, the best run; renewed after each run
      report.md              the same to read
      lr5e-05-seed0/         a run:
        metrics.jsonl
        predictions/         in the official format, of every set
        config.json, tokenizer/, checkpoints/    the weights, of the runs that `save` says

A run is a function of its config, its seed and the weights it starts from. Runs that are done are
kept when the command is given again, if weights and data are the same; one that was stopped is
begun anew. With several processes all compute, and the first one writes.
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
from bertgpt.runs.trained import Trained
from bertgpt.training import steps
from bertgpt.training.step_log import StepLog


class Setup(NamedTuple):
  """What all runs share.

  Attributes:
    config: of the fine-tuning.
    init: folder of the pretrained run.
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
    training: what is trained; its config is an ordinary one, of `finetune_config.run_config`.
    step: (state, batch) -> (state, metrics).
    predict: (params, batch) -> outputs.
  """

  training: steps.Setup
  abstract: steps.TrainState
  step: Callable
  predict: Callable


def finetune(init: pathlib.Path, config: ConfigDict, path: pathlib.Path) -> dict[str, Any]:
  """Fine-tunes the newest checkpoint of the run in `init`, once for every rate and seed.

  Returns:
    What results.json holds.
  Raises:
    DivergedError: every run did.
    UserError: see `errors`; before anything is written, where the input is wrong.
  """
  process.use_compilation_cache(config.system.compilation_cache)
  pretrained = trained_lib.load_trained(init, "--init")
  tasks.check_family(config.task.name, pretrained.config)
  check_run(config, pretrained)
  form = rows_lib.make_format(pretrained.tokenizer, pretrained.config.model, config.task)
  task = tasks.open_task(config.task, form)
  is_first = jax.process_index() == 0  # The others compute, and write nothing.
  with workdir.claim(path, is_first):
    identity = results_lib.identify(init, pretrained, task)
    results = results_lib.read_results(path, config, identity)
    check_agreement(config, identity, results)
    setup = open_setup(config, init, pretrained, task, path)
    if is_first:
      files.write_atomically(path / "config.json", recipes.to_json(config) + "\n")
      print("\n".join(describe(setup)), flush=True)
    run_missing(setup, results)
    results = results_lib.summarise(results, config)
    if is_first:
      results_lib.write_results(path, results)
    if results["best_run"] is None:
      raise DivergedError(f"--workdir {path}: every run diverged; use another --workdir with lower "
                          "learning_rates, or look at the data")
    if is_first:
      lines = results_lib.report(results, config, task)
      best = path / results["best_run"]
      lines.append(f"Its weights: {best}" if workdir.is_run(best) else "Its weights were not kept: "
                   f"it was done with save={config.save}, or before that")
      files.write_atomically(path / "report.md",
                             "\n".join([*describe(setup), "", *lines]) + "\n")
      print("\n" + "\n".join(lines))
  return results


def check_agreement(config: ConfigDict, identity: dict[str, Any], results: dict[str, Any]) -> None:
  """Raises ConfigError, in every process, where they would not do the same runs."""
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
      "the processes have different configs; give all the same command",
      "--init, task.data: the processes read different weights or rows; give all the same files",
      "--workdir: the processes find different runs in it; put it on storage that all share"),
      strict=True):
    if not same:
      raise ConfigError(line)


def run_missing(setup: Setup, results: dict[str, Any]) -> None:
  """Does the runs that are not among the results, and puts them there; keeps weights.

  Raises:
    Preempted: a signal has come.
  """
  config, kept, count = setup.config, None, itertools.count()
  with process.catch_signals() as is_time:
    # Steps are counted through all runs: by their number several processes agree where to stop.
    should_stop = lambda: is_time(next(count))
    for rate in config.learning_rates:
      done = [run["seed"] for run in results["runs"] if run["learning_rate"] == rate]
      seeds = [seed for seed in config.seeds if seed not in done]
      program = make_program(setup, rate) if seeds else None
      for seed in seeds:
        run = try_run(setup, program, rate, seed, should_stop,
                      functools.partial(should_save, config, results))
        results["runs"].append(run)
        summary = results_lib.summarise(results, config)
        if jax.process_index() == 0:
          results_lib.write_results(setup.path, summary)
          if kept and config.save == "best" and summary["best_run"] == run["folder"]:
            # Only what this start has kept: what is older may have been asked for.
            workdir.remove_run(setup.path / kept)
        if summary["best_run"] == run["folder"]:
          kept = run["folder"]


def check_run(config: ConfigDict, pretrained: Trained) -> None:
  """Raises ConfigError where no run can be made of the two; before the data is read."""
  run = make_run_config(config, pretrained, 1, config.learning_rates[0])
  finetune_config.validate_run(run, jax.device_count(), jax.default_backend())


def make_run_config(config, pretrained, steps, rate):
  size = rows_lib.vocab_size(pretrained.tokenizer, pretrained.config.model.family)
  return finetune_config.run_config(pretrained.config, config, steps=steps, learning_rate=rate,
                                    vocab_size=size)


def open_setup(config, init, pretrained, task, path) -> Setup:
  head = task_objectives.find_head(pretrained.config, task.kind)
  mesh = sharding.make_mesh(make_run_config(config, pretrained, 1, config.learning_rates[0]))
  return Setup(config, init, pretrained, task, head, mesh, path)


def describe(setup: Setup) -> list[str]:
  config, task, pretrained = setup.config, setup.task, setup.pretrained
  start = (f"random weights, the model and tokenizer of {setup.init}" if config.from_scratch
           else f"step {pretrained.step} of {setup.init}")
  counts = ", ".join(f"{len(s.rows)} {s.name}" for s in task.evals)
  pools = (families.find(pretrained.config).kind == "encoder"
           and task.kind in ("classes", "values"))
  is_fresh = pools and not config.from_scratch and "pooler" not in pretrained.params
  return [f"{task.name}: {len(task.train)} training rows, {counts}; from {start}",
          *["note: the checkpoint has no pooler; its weights are random"] * is_fresh,
          *(f"note: {note}" for note in task.notes)]


# ------------------------------------------------------------------ one run


def should_save(config: ConfigDict, results: dict[str, Any], run: dict[str, Any]) -> bool:
  """Whether the weights of `run`, which is not among the results yet, are kept."""
  if config.save != "best":
    return config.save == "all"
  results = results_lib.summarise(results | {"runs": [*results["runs"], run]}, config)
  return results["best_run"] == run["folder"]


def try_run(setup: Setup, program: Program, rate: float, seed: int,
            should_stop: Callable[[], bool], should_save: Callable[[dict], bool]
            ) -> dict[str, Any]:
  """The run's line of results.json, also where it diverges: the others may do better.

  Raises:
    Preempted: a signal has come.
  """
  name = results_lib.run_name(rate, seed)
  if should_stop():
    raise Preempted(f"stopped before run {name}; the same command goes on with it")
  if jax.process_index() == 0:
    print(f"learning rate {rate!r}, seed {seed}: {setup.path / name}", flush=True)
  try:
    return do_run(setup, program, rate, seed, should_stop, should_save)
  except DivergedError:
    if jax.process_index() == 0:
      print(f"{name} diverged: loss or gradient not finite; it is left out", flush=True)
    return {"learning_rate": rate, "seed": seed, "folder": name, "diverged": True}


def do_run(setup: Setup, program: Program, rate: float, seed: int,
           should_stop: Callable[[], bool], should_save: Callable[[dict], bool]
           ) -> dict[str, Any]:
  """Trains and scores one run, and writes its folder. Returns its line of results.json."""
  folder = setup.path / results_lib.run_name(rate, seed)
  if jax.process_index() == 0:
    if folder.exists():  # Of a start that was stopped.
      shutil.rmtree(folder)
    folder.mkdir()
  start = time.monotonic()
  with contextlib.ExitStack() as stack:
    stack.callback(process.disarm_watchdog)  # Also after an error.
    stack.enter_context(sharding.use_mesh(setup.mesh, program.training.config))
    with contextlib.closing(StepLog(program.training.config, folder, 0, is_static=False)) as log:
      state = init_state(setup, program, seed)
      scores, outputs = {}, {}
      for step, batch, is_end in make_steps(setup, seed):
        process.arm_watchdog(program.training.config.system.hang_timeout_minutes)
        state, step_metrics = program.step(state, batch)
        log.add(step, step_metrics)
        if should_stop():
          raise Preempted(f"stopped in run {folder.name}; the same command begins it again, and "
                          "keeps those that are done")
        if is_end:
          log.settle()
          is_last = step == program.training.config.phases[0].steps
          if is_last or setup.config.eval.every_epoch:
            scores, outputs = evaluate(setup, program, state.params, with_tests=is_last)
            for name, results in scores.items():
              log.record(step, name, results)
    process.disarm_watchdog()
    if jax.process_index() == 0:
      write_predictions(setup.task, outputs, folder / "predictions")
    run = {"learning_rate": rate, "seed": seed, "folder": folder.name, "steps": step,
           "seconds": round(time.monotonic() - start, 1), **scores}
    if should_save(run):
      save(setup, program.training.config, state, folder, seed)
  return run


def make_program(setup: Setup, rate: float) -> Program:
  """The same for all seeds, so compiled once for each shape of a batch."""
  config = make_run_config(setup.config, setup.pretrained, count_steps(setup), rate)
  model = setup.head.make_model(FrozenConfigDict(config.model), len(setup.task.labels))
  objective = setup.head.make_objective(config, setup.config.task.lm_weight)
  training = steps.Setup(config, setup.mesh, model, objective)
  with sharding.use_mesh(setup.mesh, config):
    abstract = steps.make_abstract_state(training)
    step = steps.jit_train_step(training, setup.config.micro_batches, abstract)
  predict = jax.jit(functools.partial(setup.head.predict, model),
                    out_shardings=NamedSharding(setup.mesh, PartitionSpec()))
  return Program(training, abstract, step, predict)


def count_steps(setup: Setup) -> int:
  return setup.config.epochs * math.ceil(len(setup.task.train) / setup.config.batch_size)


def make_steps(setup: Setup, seed: int) -> Iterator[tuple[int, dict, bool]]:
  """(number of the step counted from 1, batch on the devices, does an epoch end with it)."""
  config, train_rows = setup.config, setup.task.train
  lengths, step = train_rows.lengths, 0
  for epoch in range(config.epochs):
    order = rows_lib.order_epoch(lengths, config.batch_size, seed, epoch, config.group_by_length)
    for i, index in enumerate(order):
      step += 1
      yield (step, put_batch(setup, train_rows, index, config.batch_size, seed),
             i == len(order) - 1)


def put_batch(setup: Setup, chosen: Rows, index: np.ndarray, batch_size: int,
              seed: int = 0) -> dict[str, jax.Array]:
  batch = rows_lib.collate(chosen, index, batch_size, setup.config.task.max_length, seed)
  local = sharding.local_rows(setup.mesh, setup.config, batch_size)
  return sharding.make_global_batch({name: x[local] for name, x in batch.items()}, setup.mesh,
                                    setup.config, batch_size)


def init_state(setup: Setup, program: Program, seed: int) -> steps.TrainState:
  """The pretrained weights; random ones of the seed for the head, and a pooler that is missing.

  Raises:
    DataError: the checkpoint lacks others, or has them in another shape.
  """
  config = program.training.config.copy_and_resolve_references()
  config.seed = seed
  state = steps.make_state(program.training._replace(config=config), program.abstract)
  if setup.config.from_scratch:
    return state
  found = trees.named_leaves({"body": setup.pretrained.params})

  def choose(path, fresh):
    name = trees.path_of(path)
    if name in found:
      return put_pretrained(name, fresh, found[name], setup.pretrained.config.model.vocab_size)
    if not name.startswith(("head/", "body/pooler/")):
      raise DataError(f"{name}: is not in the checkpoint of --init {setup.init}; restore the run's "
                      "folder")
    return fresh

  return dataclasses.replace(
      state, params=jax.tree_util.tree_map_with_path(choose, state.params))


def put_pretrained(name: str, fresh: jax.Array, trained: np.ndarray,
                   vocab_size: int) -> jax.Array:
  """The trained array where the fresh one lies.

  Of a token table the trained tokens only: new ones, which lie where padding was, stay fresh.

  Args:
    vocab_size: tokens of the trained model.

  Raises:
    DataError: it is another array.
  """
  if (name.endswith("token/embedding") and fresh.shape[1:] == trained.shape[1:]
      and vocab_size <= len(trained) <= len(fresh)):
    return jax.jit(lambda new, old: new.at[:len(old)].set(old), donate_argnums=0,
                   out_shardings=fresh.sharding)(fresh, trained[:vocab_size])
  if fresh.shape != trained.shape:
    raise DataError(f"{name}: the checkpoint has {trained.shape}, its config says {fresh.shape}; "
                    "restore the run's folder")
  return jax.make_array_from_callback(trained.shape, fresh.sharding, lambda index: trained[index])


def evaluate(setup: Setup, program: Program, params: Any, *, with_tests: bool
             ) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
  """(official metrics by set, outputs by set)."""
  sets = [s for s in setup.task.evals if s.score or with_tests]
  outputs = {s.name: predict(setup, program, params, s.rows) for s in sets}
  return {s.name: s.score(outputs[s.name]) for s in sets if s.score}, outputs


def predict(setup: Setup, program: Program, params: Any, chosen: Rows) -> Any:
  """Outputs of every row, in order: [N], or a list of arrays [..., length]."""
  outputs, pending = [None] * len(chosen), None
  size = setup.config.eval.batch_size

  def collect(index, values):
    values = np.asarray(values)
    for row, i in enumerate(index):
      outputs[i] = values[row] if values.ndim == 1 else values[row, ..., :len(chosen.tokens[i])]

  for index in rows_lib.order_evaluation(chosen.lengths, size):
    process.arm_watchdog(setup.config.system.hang_timeout_minutes)
    started = index, program.predict(params, put_batch(setup, chosen, index, size))
    if pending is not None:
      collect(*pending)  # While the batch just started runs.
    pending = started
  collect(*pending)
  return np.array(outputs) if np.ndim(outputs[0]) == 0 else outputs


def write_predictions(task: Task, outputs: dict[str, Any], folder: pathlib.Path) -> None:
  folder.mkdir()
  for s in task.evals:
    s.write(outputs[s.name], folder)


def save(setup: Setup, config: ConfigDict, state: steps.TrainState, folder: pathlib.Path,
         seed: int) -> None:
  """Makes the folder a run, as `workdir` has it; the optimizer has done its work."""
  task = {"name": setup.task.name, "kind": setup.task.kind, "labels": setup.task.labels,
          "seed": seed, "init": str(setup.init), "init_step": setup.pretrained.step,
          "config": recipes.to_json(setup.config)}
  metadata = {"config": recipes.to_json(config), "corpus": setup.pretrained.corpus,
              "tokenizer": setup.pretrained.tokenizer.fingerprint(), "step": int(state.step),
              "task": task}
  with contextlib.closing(checkpoint.Checkpoints(folder, every_steps=0, every_minutes=0,
                                                 keep=1)) as checkpoints:
    state = dataclasses.replace(state, opt_state=())
    checkpoints.save(int(state.step), state, metadata, wait=True)
  if jax.process_index() == 0:
    workdir.write_run(folder, config, setup.pretrained.tokenizer)
