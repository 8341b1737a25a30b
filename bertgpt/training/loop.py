"""The training loop: `steps` over the batches of a corpus, with checkpoints and evaluation."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertgpt import config as config_lib
from bertgpt import trees
from bertgpt.config import ConfigDict, recipes, unread
from bertgpt.data.batches import loader
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import frequencies
from bertgpt.devices import process, sharding
from bertgpt.errors import ConfigError, DataError, Preempted
from bertgpt.runs import checkpoint, corpora, workdir
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.metadata import make_metadata
from bertgpt.runs.trained import Trained
from bertgpt.training import evaluate, schedules, steps
from bertgpt.training.step_log import StepLog, is_due
from bertgpt.training.steps import TrainState


class Finished(NamedTuple):
  """A finished run, with everything that its report needs.

  Attributes:
    path: folder of the run, with its curves.
    trained: model with its final parameters, NumPy arrays on the host.
    train_set: documents of the training.
    held_out: documents of the evaluation.
  """

  path: pathlib.Path
  trained: Trained
  train_set: corpus_lib.Corpus
  held_out: corpus_lib.Corpus


def train(config: ConfigDict, path: pathlib.Path, allow_change: Sequence[str] = ()) -> Finished:
  """Trains the run in the directory `path`, from its newest checkpoint if it has one.

  Args:
    config: config of the run; it need not be validated.
    path: workdir of the run.
    allow_change: config fields that may differ from those the run was started with.
  Returns:
    The finished run, the same in all processes.
  Raises:
    UserError: see `errors`; `Preempted` after a signal, with a checkpoint saved.
  """
  with contextlib.ExitStack() as stack:
    run = stack.enter_context(open_run(config, path, allow_change))
    config, last_step = run.config, config_lib.total_steps(run.config)
    checkpoints = stack.enter_context(contextlib.closing(make_checkpoints(run)))
    state = restore_or_init(run, checkpoints)
    first_step = int(state.step)
    if jax.process_index() == 0:  # Written only now, so that a refused start changes nothing.
      if first_step < last_step:  # A report from before steps were added to the run.
        (path / "report.md").unlink(missing_ok=True)
      workdir.write_run(path, config, run.corpus.tokenizer)
    log = stack.enter_context(contextlib.closing(StepLog(config, path, first_step)))
    if first_step:
      log.message(f"{path}: done, {last_step} steps" if first_step == last_step else
                  f"{path}: resuming after step {first_step}")
    if 0 < first_step < last_step and is_due(config.eval.every_steps, first_step):
      # A signal or a crash may have prevented this evaluation.
      evaluate_step(run, log, first_step, state.params)
    should_stop = stack.enter_context(process.catch_signals())
    trace = stack.enter_context(process.tracer(config.profile.steps, path / "profile"))
    stack.callback(process.disarm_watchdog)
    batches = stack.enter_context(contextlib.closing(make_steps(
        run.setup, run.abstract_state, first_step, functools.partial(device_batches, run))))
    for step, train_step, batch in batches:  # `step` counts from 1: it is done below.
      process.arm_watchdog(config.system.hang_timeout_minutes)
      trace(step, log.finish_step)
      state, step_metrics = train_step(state, batch)
      log.add(step, step_metrics)
      stop = should_stop(step)
      if stop or step == last_step or checkpoints.due(step):
        is_finite = log.finish_step()  # Raises if the run has diverged, before anything is saved.
        wait = stop or step == last_step
        if wait or is_finite:  # Checkpoints of bad steps must not replace the good ones.
          checkpoints.save(step, state, run.metadata | {"step": step}, wait=wait)
      if stop and step < last_step:
        raise Preempted(f"stopped at step {step} with a checkpoint saved. "
                        "The same command resumes the run")
      if is_due(config.eval.every_steps, step) and step < last_step:
        evaluate_step(run, log, step, state.params)
    evaluate_step(run, log, last_step, state.params)
    return make_finished(run, last_step, state.params)


class Run(NamedTuple):
  """Constants of the loop.

  Attributes:
    config: resolved config of the run.
    path: workdir of the run.
    setup: constants of the training.
    corpus: documents that are trained on.
    evaluator: evaluator of the held-out documents.
    abstract_state: TrainState of ShapeDtypeStructs with their shardings.
    metadata: entries of a checkpoint in addition to the state; see `make_metadata`.
  """

  config: ConfigDict
  path: pathlib.Path
  setup: steps.Setup
  corpus: corpus_lib.Corpus
  evaluator: evaluate.Evaluator
  abstract_state: TrainState
  metadata: dict[str, Any]


@contextlib.contextmanager
def open_run(config: ConfigDict, path: pathlib.Path, allow_change: Sequence[str]) -> Iterator[Run]:
  """Checks everything that can be checked, prepares the corpus and lays out the state.

  The lock of the workdir and the mesh are held while the run is open.

  Args:
    config: a whole config.
    path: workdir of the run.
    allow_change: config fields that may differ from the start of the run.
  Raises:
    UserError: see `errors`.
  """
  config_lib.validate(config, process.count_devices(), jax.default_backend())
  process.use_compilation_cache(config.system.compilation_cache)
  with workdir.make_and_lock(path, jax.process_index() == 0):
    workdir.check_unchanged(path, config, allow_change)
    if not workdir.is_run(path):
      unread.check(config)
    train_set, held_out = open_corpus(config)
    config = corpora.resolve(config, train_set.tokenizer)
    loader.check_rows(train_set, config)
    mesh = sharding.make_mesh(config)
    with sharding.use_mesh(mesh, config):
      setup = steps.make_setup(config, mesh, train_set.vocabulary)
      evaluator = evaluate.make_evaluator(setup, held_out)
      metadata = make_metadata(config, train_set.tokenizer, corpus=train_set.identity)
      yield Run(config, path, setup, train_set, evaluator, steps.make_abstract_state(setup),
                metadata)


def open_corpus(config: ConfigDict) -> tuple[corpus_lib.Corpus, corpus_lib.Corpus]:
  """Returns the train and validation splits, and checks that all hosts have the same.

  Args:
    config: a whole config.
  """
  path = corpora.find_corpus(config)
  train_set, held_out = (corpus_lib.open_corpus(path, split) for split in corpus_lib.SPLITS)
  if jax.process_count() > 1:
    digest = np.frombuffer(bytes.fromhex(train_set.identity), np.int32)
    multihost_utils.assert_equal(digest, f"{path}: not the same corpus on every host")
  return train_set, held_out


def make_checkpoints(run: Run) -> checkpoint.Checkpoints:
  """Returns the manager of a run's checkpoints.

  Args:
    run: the opened run.
  """
  options = run.config.checkpoint
  return checkpoint.Checkpoints(run.path, every_steps=options.every_steps,
                                every_minutes=options.every_minutes, keep=options.keep)


def restore_or_init(run: Run, checkpoints: checkpoint.Checkpoints) -> TrainState:
  """Returns the state to start from.

  This is the newest good checkpoint of the run. If there is none, it is a fresh state, with the
  parameters of `config.init_from` if that is set.

  Args:
    run: the opened run.
    checkpoints: checkpoints of the run.
  Raises:
    ConfigError: the new config does not fit the steps that are done, or `init_from` does not fit.
    DataError: the checkpoint belongs to another corpus, tokenizer or order of rows.
  """
  restored = checkpoints.restore_latest(run.abstract_state)
  if restored is not None:
    state, metadata = restored
    for name in ("corpus", "tokenizer"):
      if metadata[name] != run.metadata[name]:
        raise DataError(f"{run.path}: its checkpoints were made with another {name}. "
                        f"Restore that {name}, or use another --workdir")
    order = metadata.get("data_order", 0)  # The oldest checkpoints do not say.
    if order != loader.ORDER_VERSION:
      raise DataError(f"{run.path}: its rows were read in order {order}, but this program reads "
                      f"them in order {loader.ORDER_VERSION}. Resume it with the program that "
                      "started it, or start another run with --config.init_from")
    old = recipes.from_json(metadata["config"])
    check_phases(old, run.config, int(state.step), run.path)
    change = schedules.describe_change(old, run.config, int(state.step))
    if change and jax.process_index() == 0:
      print(f"note: {change}", file=sys.stderr)
    return state
  state = steps.make_state(run.setup, run.abstract_state)
  if run.config.init_from:
    state = dataclasses.replace(state, params=load_params(run))
  elif run.config.objective.bias_init == "frequencies":
    state = dataclasses.replace(state, params=add_frequencies(
        state.params, run.corpus, run.config.model.vocab_size))
  return state


def add_frequencies(params: Any, corpus: corpus_lib.Corpus, vocab_size: int) -> Any:
  """Returns the parameters with the log frequencies of a corpus' tokens as output bias.

  Otherwise a short run spends its first steps on learning these frequencies, by about one learning
  rate per step. With a large vocabulary, it distorts the embedding table for this purpose: the
  vectors of all rare tokens become similar.

  Args:
    params: parameters of a masked LM, on the devices.
    corpus: documents that are trained on.
    vocab_size: number of ids.
  """
  found = frequencies.unigram_probabilities(corpus, vocab_size, is_causal=False)
  bias = params["mlm"]["bias"]
  whole = np.zeros(bias.shape, np.float32)
  whole[:vocab_size] = np.log(found)
  placed = jax.make_array_from_callback(whole.shape, bias.sharding, lambda index: whole[index])
  return {**params, "mlm": {**params["mlm"], "bias": placed}}


def check_phases(old: ConfigDict, new: ConfigDict, step: int, path: pathlib.Path) -> None:
  """Checks that a config only adds steps to a run: the phases that are done must be unchanged.

  Args:
    old: config of the checkpoint.
    new: config of this start.
    step: steps done at the checkpoint.
    path: workdir of the run.
  Raises:
    ConfigError: under the new config, the step would have another place in the phases.
  """
  total = config_lib.total_steps(new)
  if step > total:
    raise ConfigError(f"phases[].steps: {total} in total, but the run in {path} has already done "
                      f"{step} steps. Raise them, or use another --workdir")
  if step and config_lib.phase_at(old, step - 1) != config_lib.phase_at(new, step - 1):
    raise ConfigError(f"phases[].steps: the run in {path} has done {step} steps, so the "
                      "phases before the current one cannot change. Change the last one")


def load_params(run: Run) -> Any:
  """Returns the parameters of `config.init_from`, laid out for this run.

  Args:
    run: the opened run.
  Raises:
    ConfigError: the parameters belong to another tokenizer or model.
    DataError: there is no usable checkpoint.
  """
  source = trained_lib.load_trained(pathlib.Path(run.config.init_from).expanduser(),
                                    "--config.init_from")
  if source.tokenizer.fingerprint() != run.metadata["tokenizer"]:
    raise ConfigError(f"init_from={run.config.init_from}: trained with another tokenizer. Set "
                      f"--config.tokenizer.path={run.config.init_from}/tokenizer")
  wanted = trees.named_leaves(run.abstract_state.params)
  found = trees.named_leaves(source.params)
  wrong = [f"{path}: {found[path].shape if path in found else 'absent'}, needs {x.shape}"
           for path, x in wanted.items() if path not in found or found[path].shape != x.shape]
  if wrong:
    raise ConfigError(f"init_from={run.config.init_from}: not the parameters of this model:\n  "
                      + "\n  ".join(wrong))
  if jax.process_index() == 0:
    print(f"note: starting from the parameters of step {source.step} of {run.config.init_from}, "
          "with a fresh optimizer", file=sys.stderr)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: jax.device_put(found[trees.path_of(path)], x.sharding),
      run.abstract_state.params)


# -------------------------------------------------------- the loop's parts


def make_steps(setup: steps.Setup, abstract_state: TrainState, first_step: int,
               open_batches: Callable) -> Generator[tuple[int, Callable, Any], None, None]:
  """Yields (number of the step counted from 1, jitted step, batch on the devices).

  Phases of the same shape share one program.

  Args:
    setup: constants of the training.
    abstract_state: result of `steps.make_abstract_state`.
    first_step: steps done before.
    open_batches: (phase index, first step counted from the start of the phase) -> iterator of the
      batches of the phase, which is closed at its end.
  """
  phase_start, programs = 0, {}
  for i, phase in enumerate(setup.config.phases):
    phase_end = phase_start + phase.steps
    if first_step < phase_end:
      start = max(first_step, phase_start)
      shape = steps.shape_of(phase)
      if shape not in programs:
        programs[shape] = steps.jit_train_step(setup, phase.micro_batches, abstract_state)
      train_step = programs[shape]
      with contextlib.closing(open_batches(i, start - phase_start)) as batches:
        for step, batch in zip(range(start + 1, phase_end + 1), batches, strict=False):
          yield step, train_step, batch
    phase_start = phase_end


def device_batches(run: Run, phase_index: int, first_step: int) -> Iterator[dict[str, jax.Array]]:
  """Yields the batches of a phase, with `data.prefetch` of them on their way to the devices.

  Args:
    run: the opened run.
    phase_index: number of the phase.
    first_step: first batch, counted from the start of the phase.
  Yields:
    Name -> global array [batch size, ...].
  """
  batch_size = run.config.phases[phase_index].batch_size
  mesh = run.setup.mesh
  rows = sharding.local_rows(mesh, run.config, batch_size)
  queue: collections.deque = collections.deque()
  with contextlib.closing(loader.make_train_batches(run.corpus, run.config, phase_index, first_step,
                                                    rows)) as batches:
    for batch in batches:
      queue.append(sharding.make_global_batch(batch, mesh, run.config, batch_size))
      if len(queue) > run.config.data.prefetch:
        yield queue.popleft()
    yield from queue


def make_finished(run: Run, step: int, params: Any) -> Finished:
  """Gathers the parameters from the devices of all processes, which all call this together.

  Args:
    run: constants of the loop.
    step: last step of the run.
    params: parameters after this step, on the devices.
  """
  params = multihost_utils.process_allgather(params, tiled=True)
  trained = trained_lib.make_trained(run.config, params, run.corpus.tokenizer, step,
                                     run.corpus.identity, workdir=run.path)
  return Finished(run.path, trained, run.corpus, run.evaluator.corpus)


def evaluate_step(run: Run, log: StepLog, step: int, params: Any) -> None:
  """Evaluates and logs the held-out metrics after a step.

  Args:
    run: the opened run.
    log: log of the run.
    step: steps done.
    params: parameters, on the devices.
  """
  log.write_all()
  phase_index, _ = config_lib.phase_at(run.config, step - 1)
  results = evaluate.run(run.evaluator, params, phase_index)
  log.record(step, run.evaluator.name, results)
