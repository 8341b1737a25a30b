"""The training loop: train steps over the batches of a corpus, with checkpoints and evaluation."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.devices import barrier, preemption, profiler, timeline, watchdog
from bertgpt.errors import Preempted
from bertgpt.runs import checkpoint
from bertgpt.training import evaluate, feed, run_files, steps
from bertgpt.training.explain import explain
from bertgpt.training.finished import Finished, make_finished
from bertgpt.training.initial_state import restore_or_init
from bertgpt.training.metrics import LateMetrics
from bertgpt.training.open_run import Run, open_run
from bertgpt.training.step_log import StepLog, finish_step, is_evaluated


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
  with timeline.recording(), open_run(config, path, allow_change) as run, open_loop(run) as loop:
    loop.evaluate_if_due()  # A signal or a crash may have prevented it.
    loop.stop_if_asked()
    with contextlib.closing(loop.remaining_steps()) as remaining:
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
               state: steps.TrainState, trace: Callable[[int, Callable], None],
               should_stop: Callable[[], bool]):
    """Prepares the loop.

    Args:
      run: the opened run.
      checkpoints: its checkpoints.
      log: its log.
      state: restored or new state, on the devices.
      trace: called before every step, see `profiler.trace_steps`.
      should_stop: whether a signal was received; all processes call it the same number of times.
    """
    self._run, self._checkpoints, self._log = run, checkpoints, log
    self._trace, self._should_stop = trace, should_stop
    self._last_step = config_lib.total_steps(run.config)
    self._program: Callable | None = None  # The jitted step of the last step.
    self._late = LateMetrics()
    self._is_save_due = False  # A save waits until a step is applied.
    self.step, self.state, self.is_stopping = int(state.step), state, False
    self.scores: dict[str, float] = {}

  def remaining_steps(self) -> Generator[tuple[int, Callable, Any], None, None]:
    """Yields the remaining steps, see `feed.make_steps`."""
    run = self._run
    watchdog.arm_for(run.config.system, compiles=True)
    with contextlib.closing(feed.make_steps(
        run.config, self.step, functools.partial(jit_phase, run),
        functools.partial(feed.device_batches, run))) as remaining:
      yield from self._log.pace.timed(timeline.timed("input", remaining))

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
    timeline.begin_step(step, compiles=is_new)
    watchdog.arm_for(system, compiles=is_new)
    self._trace(step, self._finish_step)
    if step > self.step + 1:  # The steps between are skipped.
      self.state = steps.move_to(self.state, step - 1)
    if is_new:
      self._finish_step()
      with self._log.untimed():
        barrier.compile_together("the train step", system, train_step, self.state, batch)
    with self._log.pace.waiting():
      self.state, step_metrics = train_step(self.state, batch)
    self.step = step
    self._finish_step()  # The one before, while the devices compute this one.
    self._late.push(step, step_metrics)
    self.is_stopping = self._should_stop()

  def save_if_due(self) -> None:
    """Saves a checkpoint at the end and when one is due, unless a signal was received.

    A save that is due is postponed while steps are not applied: such a checkpoint must not replace
    earlier ones, so a run that diverges ends with good checkpoints.

    Raises:
      DivergedError: too many consecutive steps were not applied.
      StorageError: it cannot be saved.
    """
    self._is_save_due |= self._checkpoints.is_due(self.step)
    is_last = self.step == self._last_step
    if not self.is_stopping and (is_last or self._is_save_due):
      self._finish_step()
      if is_last or self._log.is_applied:
        self._save(wait=is_last)

  def evaluate_if_due(self) -> None:
    """Evaluates the model if it is due, unless a signal was received."""
    if not self.is_stopping and is_evaluated(self._run.config, self.step):
      self._finish_step()
      scores = evaluate_step(self._run, self._log, self._checkpoints, self.step, self.state,
                             self._should_stop)
      self.scores, self.is_stopping = scores or {}, scores is None

  def stop_if_asked(self) -> None:
    """Ends the loop if a signal was received.

    Raises:
      Preempted: a signal was received; a checkpoint of this step is saved.
    """
    if self.is_stopping:
      self._finish_step()
      self._log.write_all()  # The next start cannot log these steps.
      if self._checkpoints.last_step != self.step:
        self._save(wait=True)
      raise Preempted(f"stopped at step {self.step} with a checkpoint saved. "
                      "The same command resumes the run")

  def finish(self) -> Finished:
    """Returns the finished run, with its parameters on the host."""
    watchdog.arm_for(self._run.config.system, compiles=True)
    return make_finished(self._run, self._last_step, self.state.params, self.scores)

  def _finish_step(self) -> None:
    finish_step(self._late, self._log, self._run.config)

  @timeline.during("saving")
  def _save(self, wait: bool) -> None:
    self._is_save_due = False
    with self._log.untimed():
      self._checkpoints.save(self.step, self.state, self._run.metadata, wait=wait)


@contextlib.contextmanager
def open_loop(run: Run) -> Iterator[Loop]:
  """Restores or makes the state of a run, writes its first files, and yields its loop.

  While it is open, signals stop the loop.

  Args:
    run: the opened run.
  """
  with run_files.open_checkpoints(run) as checkpoints:
    state = restore_or_init(run, checkpoints)
    first_step = int(state.step)
    run_files.write_first_files(run, first_step)  # Only now: a refused start changes nothing.
    checkpoints.delete_old()
    if jax.process_index() == 0:
      timeline.open_in(first_step, run.path)
    with contextlib.closing(run_files.make_log(run, first_step)) as log:
      for line in explain(run.config):
        log.message(line)
      run_files.announce(run, log, first_step)
      with (preemption.catch_signals() as should_stop,
            profiler.trace_steps(run.config.profile.steps, run.path / "profile") as trace):
        yield Loop(run, checkpoints, log, state, trace, should_stop)


def jit_phase(run: Run, phase_index: int) -> Callable:
  """Returns the jitted step of a phase.

  Args:
    run: the opened run.
    phase_index: index of the phase.
  """
  return steps.jit_train_step(steps.at_phase(run.setup, phase_index), run.abstract_state)


@timeline.during("evaluation")
def evaluate_step(run: Run, log: StepLog, checkpoints: checkpoint.Checkpoints, step: int,
                  state: steps.TrainState, should_stop: Callable[[], bool]
                  ) -> dict[str, float] | None:
  """Evaluates and logs the held-out metrics after a step, and keeps the checkpoint of the best one.

  With `eval.corpora`, other corpora are scored too; their metrics are only logged.

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
  evaluator, found = run.evaluator, {}
  for name, one in {evaluator.corpus.split: evaluator, **evaluator.others}.items():
    scores = evaluate.evaluate_corpus(one, state.params, phase_index, should_stop)
    if scores is None:
      return None
    found[name] = scores
  for name, scores in found.items():
    log.record(step, name, scores)
  results = found[evaluator.corpus.split]
  if log.is_applied:
    with log.untimed(), timeline.during("saving"):
      checkpoints.keep_if_best(step, results, evaluate.conditions(run.config, phase_index), state,
                               run.metadata)
  return results
