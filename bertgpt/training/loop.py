"""The training loop: train steps over the batches of a corpus, with checkpoints and evaluation."""

import collections
import contextlib
import functools
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.config.derived import ranges_to_train
from bertgpt.data.batches import loader
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.devices import events, peers, preemption, profiler, sharding, watchdog
from bertgpt.errors import Preempted
from bertgpt.runs import checkpoint
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained
from bertgpt.training import evaluate, opening, steps
from bertgpt.training.explain import explain
from bertgpt.training.run import Run, open_run
from bertgpt.training.saving import SavePolicy
from bertgpt.training.start import restore_or_init
from bertgpt.training.step_log import StepLog, is_evaluated

T = TypeVar("T")
GATHERED_BYTES = 2**28  # Of a parameter, of which every device holds a copy when it is gathered.


class Finished(NamedTuple):
  """A finished run, with everything that its report needs.

  Attributes:
    path: folder of the run, with its curves.
    trained: model with its final parameters, NumPy arrays on the host.
    train_set: documents of the training.
    held_out: documents of the evaluation.
    scores: held-out metric -> value, at the end.
  """

  path: pathlib.Path
  trained: Trained
  train_set: Corpus
  held_out: Corpus
  scores: dict[str, float]


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
  with events.recording(), open_run(config, path, allow_change) as run, open_loop(run) as loop:
    loop.evaluate_if_due()  # A signal or a crash may have prevented it.
    with loop.open_steps() as remaining:
      for step, train_step, batch in remaining:
        loop.run_step(step, train_step, batch)
        loop.save_if_due()
        loop.evaluate_if_due()
        loop.stop_if_asked()
      return loop.finish()


class Loop:
  """The training loop of one run: its steps, saves, evaluations and stop.

  Attributes:
    step: steps done.
    state: state after them, on the devices.
    scores: held-out metric -> value, of the last evaluation.
    is_stopping: whether a signal was received.
  """

  def __init__(self, run: Run, checkpoints: checkpoint.Checkpoints, log: StepLog,
               state: steps.TrainState):
    """Prepares the loop.

    Args:
      run: the opened run.
      checkpoints: its checkpoints.
      log: its log.
      state: restored or new state, on the devices.
    """
    self._run, self._checkpoints, self._log = run, checkpoints, log
    self._last_step = config_lib.total_steps(run.config)
    self._program: Callable | None = None  # The jitted step of the last step.
    self._saving = SavePolicy(log)
    # Until `open_steps`, nothing is traced and no signal is caught.
    self._trace: Callable = lambda step, wait: None
    self._should_stop: Callable[[], bool] = lambda: False
    self.step, self.state, self.is_stopping = int(state.step), state, False
    self.scores: dict[str, float] = {}

  @contextlib.contextmanager
  def open_steps(self) -> Iterator[Iterator[tuple[int, Callable, Any]]]:
    """Yields the remaining steps, see `make_steps`; until it is closed, signals stop the loop."""
    run = self._run
    with (preemption.catch_signals() as self._should_stop,
          profiler.trace_steps(run.config.profile.steps, run.path / "profile") as self._trace):
      watchdog.arm_for(run.config.system, compiles=True)
      with contextlib.closing(make_steps(
          run.config, self.step, functools.partial(jit_phase, run),
          functools.partial(device_batches, run))) as remaining:
        yield self._log.pace.timed(events.timed("input", remaining))

  def run_step(self, step: int, train_step: Callable, batch: dict[str, jax.Array]) -> None:
    """Starts a step, logs the one before, and asks whether a signal was received.

    Args:
      step: the step, counted from 1.
      train_step: jitted step of its phase.
      batch: name -> global array [batch size, ...].
    Raises:
      DivergedError: too many consecutive steps were not applied.
    """
    system = self._run.config.system
    is_new, self._program = train_step is not self._program, train_step
    events.begin_step(step, compiles=is_new)
    watchdog.arm_for(system, compiles=is_new)
    self._trace(step, self._log.finish_step)
    if step > self.step + 1:  # The steps between are skipped.
      self.state = steps.move_to(self.state, step - 1)
    if is_new:
      with self._log.untimed():
        peers.compile_together("the train step", system, train_step, self.state, batch)
    with self._log.pace.waiting():
      self.state, step_metrics = train_step(self.state, batch)
    self.step = step
    self._log.add(step, step_metrics)
    self.is_stopping = self._should_stop()

  def save_if_due(self) -> None:
    """Saves a checkpoint at the end, after a signal, and when one is due.

    Raises:
      DivergedError: too many consecutive steps were not applied.
      StorageError: it cannot be saved.
    """
    is_last = self.step == self._last_step
    if self._saving.should_save(self._checkpoints.is_due(self.step), is_last, self.is_stopping):
      self._save(wait=is_last or self.is_stopping)

  def evaluate_if_due(self) -> None:
    """Evaluates the model if it is due, unless a signal was received."""
    if not self.is_stopping and is_evaluated(self._run.config, self.step):
      scores = evaluate_step(self._run, self._log, self._checkpoints, self.step, self.state,
                             self._should_stop)
      self.scores, self.is_stopping = scores or {}, scores is None

  def stop_if_asked(self) -> None:
    """Ends the loop if a signal was received.

    Raises:
      Preempted: a signal was received; a checkpoint of this step is saved.
    """
    if self.is_stopping:
      self._log.write_all()
      if self._checkpoints.last_step != self.step:
        self._save(wait=True)
      raise Preempted(f"stopped at step {self.step} with a checkpoint saved. "
                      "The same command resumes the run")

  def finish(self) -> Finished:
    """Returns the finished run, with its parameters on the host."""
    watchdog.arm_for(self._run.config.system, compiles=True)
    return make_finished(self._run, self._last_step, self.state.params, self.scores)

  @events.during("saving")
  def _save(self, wait: bool) -> None:
    with self._log.untimed():
      self._checkpoints.save(self.step, self.state, self._run.metadata, wait=wait)


@contextlib.contextmanager
def open_loop(run: Run) -> Iterator[Loop]:
  """Restores or makes the state of a run, writes its first files, and yields its loop.

  Args:
    run: the opened run.
  """
  with opening.open_checkpoints(run) as checkpoints:
    state = restore_or_init(run, checkpoints)
    first_step = int(state.step)
    opening.write_first_files(run, first_step)  # Only now: a refused start changes nothing.
    if jax.process_index() == 0:
      events.open_in(first_step, run.path)
    with contextlib.closing(opening.make_log(run, first_step)) as log:
      for line in explain(run.config):
        log.message(line)
      opening.announce(run, log, first_step)
      yield Loop(run, checkpoints, log, state)


def jit_phase(run: Run, phase_index: int) -> Callable:
  """Returns the jitted step of a phase.

  Args:
    run: the opened run.
    phase_index: index of the phase.
  """
  return steps.jit_train_step(steps.at_phase(run.setup, phase_index), run.abstract_state)


def make_steps(config: ConfigDict, first_step: int, jit: Callable[[int], Callable],
               read: Callable[[int, int], Generator[Any, None, None]]
               ) -> Generator[tuple[int, Callable, Any], None, None]:
  """Yields (index of the step counted from 1, jitted step, batch on the devices).

  Phases with the same `steps.program_key` share one program. The steps of
  `config.train.skip_steps` are left out.

  Args:
    config: config of the run.
    first_step: steps done before.
    jit: index of a phase -> its jitted step.
    read: (index of a phase, first batch counted from the start of the phase) -> its batches.
  """
  phase_start, programs = 0, {}
  for i, phase in enumerate(config.phases):
    phase_end = phase_start + phase.steps
    if first_step < phase_end:
      start = max(first_step, phase_start)
      key = steps.program_key(config, i)
      if key not in programs:
        programs[key] = jit(i)
      train_step = programs[key]
      for begin, end in ranges_to_train(config.train.skip_steps, start, phase_end):
        with contextlib.closing(read(i, begin - phase_start)) as batches:
          for step, batch in zip(range(begin + 1, end + 1), batches, strict=False):
            yield step, train_step, batch
    phase_start = phase_end


def device_batches(run: Run, phase_index: int,
                   first_step: int) -> Generator[dict[str, jax.Array], None, None]:
  """Yields the batches of a phase; `data.prefetch` of them are on their way to the devices.

  Args:
    run: the opened run.
    phase_index: index of the phase.
    first_step: first batch, counted from the start of the phase.
  Yields:
    Name -> global array [batch size, ...].
  """
  batch_size = run.config.phases[phase_index].batch_size
  layout = sharding.batch_sharding(run.setup.mesh, run.config)
  rows = sharding.local_rows(layout, batch_size)
  with contextlib.closing(loader.make_train_batches(run.corpus, run.config, phase_index, first_step,
                                                    rows)) as batches:
    yield from prefetch((sharding.make_global_batch(batch, layout, batch_size)
                         for batch in batches), run.config.data.prefetch)


def prefetch(batches: Iterable[T], ahead: int) -> Iterator[T]:
  """Yields batches; when one is yielded, the next ones are on their way to the devices.

  Args:
    batches: begins to transfer a batch when it is asked for the batch.
    ahead: number of batches on their way.
  """
  queue: collections.deque = collections.deque()
  for batch in batches:
    queue.append(batch)
    if len(queue) > ahead:
      yield queue.popleft()
  yield from queue


def gather(x: jax.Array) -> np.ndarray:
  """Returns an array whose parts are on the devices of all processes, which all call this together.

  It is gathered in pieces, because every device holds the whole piece meanwhile. They are cut along
  an axis that is not split over devices, if there is one: XLA would gather all of another axis.

  Args:
    x: any array of the train state.
  """
  if jax.process_count() == 1:
    return jax.device_get(x)
  if not x.ndim or x.nbytes <= GATHERED_BYTES:
    return multihost_utils.process_allgather(x, tiled=True)
  local = x.sharding.shard_shape(x.shape)
  axis = max(range(x.ndim), key=lambda a: (local[a] == x.shape[a], x.shape[a]))
  size = max(1, GATHERED_BYTES * x.shape[axis] // x.nbytes)
  pieces = (jax.lax.slice_in_dim(x, i, min(i + size, x.shape[axis]), axis=axis)
            for i in range(0, x.shape[axis], size))
  return np.concatenate([multihost_utils.process_allgather(piece, tiled=True)
                         for piece in pieces], axis=axis)


@events.during("report")
def make_finished(run: Run, step: int, params: Any, scores: dict[str, float]) -> Finished:
  """Gathers the parameters from the devices of all processes, which all call this together.

  Args:
    run: the opened run.
    step: last step of the run.
    params: parameters after this step, on the devices.
    scores: held-out metric -> value after this step.
  """
  params = jax.tree.map(gather, params)
  trained = trained_lib.make_trained(run.config, params, run.corpus.tokenizer, step,
                                     run.corpus.identity, workdir=run.path)
  return Finished(run.path, trained, run.corpus, run.evaluator.corpus, scores)


@events.during("evaluation")
def evaluate_step(run: Run, log: StepLog, checkpoints: checkpoint.Checkpoints, step: int,
                  state: steps.TrainState, should_stop: Callable[[], bool] = lambda: False
                  ) -> dict[str, float] | None:
  """Evaluates and logs the held-out metrics after a step, and keeps the checkpoint of the best one.

  Args:
    run: the opened run.
    log: log of the run.
    checkpoints: checkpoints of the run.
    step: steps done.
    state: state after the step, on the devices.
    should_stop: whether a signal was received; called once per batch.
  Returns:
    Held-out metric -> value; None if it was stopped, in which case nothing is logged or kept.
  """
  log.write_all()
  phase_index, _ = config_lib.find_phase(run.config, step - 1)
  results = evaluate.evaluate_corpus(run.evaluator, state.params, phase_index, should_stop)
  if results is None:
    return None
  log.record(step, run.evaluator.corpus.split, results)
  if log.is_applied:
    checkpoints.keep_if_best(step, results, evaluate.conditions(run.config, phase_index), state,
                             run.metadata)
  return results
