"""Mapped sweeps: one program trains runs that differ only in numbers of the train step.

Each run has its own folder, with the checkpoints, curves and report of a run that was trained
alone, so `bertgpt train` can continue it. The program is in `training.stacked_runs`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.devices import barrier, preemption, profiler, sharding, timeline, watchdog
from bertgpt.errors import ConfigError, DivergedError, Preempted
from bertgpt.runs import checkpoint
from bertgpt.training import feed, run_files, schedules, step_log
from bertgpt.training.explain import explain
from bertgpt.training.finished import Finished, make_finished
from bertgpt.training.initial_state import restore_or_init
from bertgpt.training.loop import evaluate_step
from bertgpt.training.metrics import LateMetrics
from bertgpt.training.open_run import Run, open_run
from bertgpt.training.stacked_runs import StackedRuns
from bertgpt.training.step_log import StepLog
from bertgpt.training.steps import TrainState


@dataclasses.dataclass(eq=False)
class Member:
  """One run among those that are trained together.

  Attributes:
    run: the opened run.
    checkpoints: its checkpoints.
    log: its log.
    step: steps done.
    scores: held-out metric -> value, of the last evaluation.
    error: why it has ended before its last step.
    is_save_due: whether a save waits until a step is applied, see `Loop.save_if_due`.
  """

  run: Run
  checkpoints: checkpoint.Checkpoints
  log: StepLog
  step: int
  scores: dict[str, float] = dataclasses.field(default_factory=dict)
  error: DivergedError | None = None
  is_save_due: bool = False


def train(configs: Sequence[ConfigDict], paths: Sequence[pathlib.Path],
          report: Callable[[Finished], None]) -> None:
  """Trains runs together, each from its newest checkpoint if it has one.

  Runs that have done more steps than others wait for them. A run that diverges ends, and the others
  continue.

  Args:
    configs: configs of the runs, in which only `mapped_fields.FIELDS` differ.
    paths: workdirs of the runs.
    report: called with every finished run.
  Raises:
    ConfigError: the runs need different programs.
    DivergedError: a run has diverged; raised when the others are finished.
    UserError: see `errors`; `Preempted` after a signal, with checkpoints saved.
  """
  with timeline.recording():
    finished, errors = _train(configs, paths)
    for run in finished:
      with timeline.during("report"):
        report(run)
      timeline.end_runs([run.path])
    if errors:
      raise errors[0]


def _train(configs: Sequence[ConfigDict], paths: Sequence[pathlib.Path]
           ) -> tuple[list[Finished], list[DivergedError]]:
  if jax.process_count() > 1:
    raise ConfigError("--mapped: runs are mapped in one process. Start one process per host")
  with contextlib.ExitStack() as stack:
    runs = [stack.enter_context(open_run(config, path, ()))
            for config, path in zip(configs, paths, strict=True)]
    check_same_corpus(runs)
    stacked = StackedRuns(runs)
    stacked.check()  # Before anything is written.
    states, members = stack.enter_context(_open_members(stacked))
    stack.enter_context(sharding.use_mesh(stacked.mesh, runs[0].config))
    loop_of_steps = MappedLoop(stacked, members, states)
    loop_of_steps.run()
    good = [member for member in members if not member.error]
    finished = [make_finished(member.run, member.step, loop_of_steps.state_of(member).params,
                              member.scores) for member in good]
    return finished, [DivergedError(f"{member.run.path}: {member.error}") for member in members
                      if member.error]


def check_same_corpus(runs: Sequence[Run]) -> None:
  """Raises ConfigError if runs, which would share batches, began with different corpora."""
  found = [(run.metadata["corpus"], run.metadata.get("corpora")) for run in runs]
  for run, identities in zip(runs, found, strict=True):
    if identities != found[0]:
      raise ConfigError(f"--mapped: {run.path} began with another corpus than {runs[0].path}, "
                        "because the text or the tokenizer has changed. Leave out --mapped")


@contextlib.contextmanager
def _open_members(stacked: StackedRuns) -> Iterator[tuple[TrainState, list[Member]]]:
  """Restores or makes the state of every run, and writes its first files.

  Args:
    stacked: the runs.
  Yields:
    The states of all runs, on the devices; the runs with their checkpoints and logs.
  """
  states, opened, members = stacked.make_states(), [], []
  with contextlib.ExitStack() as stack:
    for i, run in enumerate(stacked.runs):
      checkpoints = stack.enter_context(run_files.open_checkpoints(run))
      state = restore_or_init(run, checkpoints)
      opened.append((run, checkpoints, int(state.step)))
      states = stacked.put(states, state, i)
    del state  # It would stay on the devices while the runs are open.
    for run, checkpoints, step in opened:
      run_files.write_first_files(run, step)  # Only now: a refused start changes nothing.
      checkpoints.delete_old()
      log = stack.enter_context(contextlib.closing(
          run_files.make_log(run, step, name=run.path.name)))
      warnings = schedules.find_long_warmups(run.config.phases)
      for line in warnings if members else explain(run.config):  # The rest is the same for all.
        log.message(line)
      run_files.announce(run, log, step)
      members.append(Member(run, checkpoints, log, step))
    for member in members:  # Before any log is closed, so all trackers end at the same time.
      stack.callback(member.log.end)
    timeline.open_in(min(member.step for member in members), *(run.path for run in stacked.runs))
    yield states, members


class MappedLoop:
  """The loop over the steps of all runs, as `loop.Loop` is that of one."""

  def __init__(self, stacked: StackedRuns, members: Sequence[Member], states: TrainState):
    """Prepares the loop.

    Args:
      stacked: the runs.
      members: their logs and checkpoints.
      states: their states, on the devices.
    """
    self._stacked, self._members, self._states = stacked, members, states
    self._config = stacked.runs[0].config
    self._last_step = config_lib.total_steps(self._config)
    self._late, self._active = LateMetrics(), list[Member]()  # The last step, and its runs.

  def state_of(self, member: Member) -> TrainState:
    """Returns the state of a run."""
    return self._stacked.take(self._states, self._members.index(member))

  def run(self) -> None:
    """Trains all runs to their end.

    Raises:
      Preempted: a signal was received; checkpoints are saved.
    """
    config = self._config
    with contextlib.ExitStack() as stack:
      should_stop = stack.enter_context(preemption.catch_signals())
      trace = stack.enter_context(profiler.trace_steps(
          config.profile.steps, self._stacked.runs[0].path / "profile"))
      # A signal or a crash may have prevented the last evaluation of a run.
      waiting = [m for m in self._members if step_log.is_evaluated(config, m.step)]
      if not self._evaluate(waiting, should_stop):
        raise Preempted("stopped in an evaluation. The same command resumes the runs")
      watchdog.arm_for(config.system, compiles=True)
      program = None  # That of the last step.
      for step, train_step, batches, active in stack.enter_context(
          contextlib.closing(self._active_steps(should_stop))):
        is_new, program = train_step is not program, train_step
        timeline.begin_step(step, compiles=is_new)
        watchdog.arm_for(config.system, compiles=is_new)
        trace(step, self._finish_step)
        if is_new:
          self._finish_step()
          with step_log.all_untimed(member.log for member in self._members):
            barrier.compile_together("the train step", config.system, train_step, self._states,
                                     batches, np.zeros(len(self._members), bool))
        self._do_step(step, train_step, batches, active)
        self._save_and_evaluate(step, active, should_stop)
      watchdog.arm_for(config.system, compiles=True)

  def _active_steps(self, should_stop: Callable[[], bool]
                    ) -> Generator[tuple[int, Callable, Any, list[Member]], None, None]:
    """Yields the steps of `feed.make_steps` that runs still need, with these runs."""
    with contextlib.closing(feed.make_steps(
        self._config, min(member.step for member in self._members), self._stacked.jit_train_step,
        self._stacked.read)) as steps_of_all:
      steps_in_time = timeline.timed("input", steps_of_all)
      for member in self._members:  # Each of them waits for the batches of all.
        steps_in_time = member.log.pace.timed(steps_in_time)
      for step, train_step, batches in steps_in_time:
        if all(m.error for m in self._members):
          return
        if active := [m for m in self._members if m.step < step and not m.error]:
          yield step, train_step, batches, active
          continue
        watchdog.renew()  # Those that are behind have diverged, and the others are ahead.
        for member in self._members:
          member.log.restart_clock()
        if should_stop():
          raise Preempted("stopped. The same command resumes the runs")

  def _do_step(self, step: int, train_step: Callable, batches: Any,
               active: list[Member]) -> None:
    """Starts a step, and logs the one before."""
    is_active = np.array([member in active for member in self._members])
    if any(member.step < step - 1 for member in active):  # The steps between are skipped.
      done = np.array([step - 1 if m in active else m.step for m in self._members], np.int32)
      self._states = dataclasses.replace(
          self._states, step=jax.device_put(done, self._states.step.sharding))
    self._states, step_metrics = train_step(self._states, batches, is_active)
    self._finish_step()
    self._late.push(step, step_metrics)
    self._active = active
    for member in active:
      member.step = step

  def _finish_step(self) -> None:
    """Waits for the last step that was started, and logs it in every run."""
    done = self._late.take()
    if done is None:
      return
    step, step_metrics = done
    num_runs = sum(not member.error for member in self._active)
    for i, member in enumerate(self._members):
      if member not in self._active:
        member.log.restart_clock()  # It has waited for the others.
        continue
      if member.error:  # Found only after this step had been started.
        continue
      sums = {name: (x[i], weight[i]) for name, (x, weight) in step_metrics.items()}
      member.log.add(step, sums, num_runs)
      try:
        step_log.check_divergence(self._config, step, sums)
      except DivergedError as e:
        member.error = e
        member.log.message(f"{e}. The other runs continue")
        member.log.close()  # While the error is being handled: trackers read the exit code from it.
        timeline.end_runs([member.run.path], e)  # The work of the other runs is not its own.

  def _save_and_evaluate(self, step: int, active: Sequence[Member],
                         should_stop: Callable[[], bool]) -> None:
    """Does what is due after a step, and ends the loop after a signal.

    Raises:
      Preempted: a signal was received; checkpoints are saved.
    """
    stop = should_stop()
    is_due = any([member.checkpoints.is_due(step) for member in active])  # All of them are asked.
    is_last = step == self._last_step
    for member in active:
      member.is_save_due |= is_due
    if not stop and (is_last or any(member.is_save_due for member in active)):
      self._finish_step()
      self._save(step, [m for m in active if not m.error and (
          is_last or (m.is_save_due and m.log.is_applied))], wait=is_last)
    if not stop and step_log.is_evaluated(self._config, step):
      self._finish_step()
      for member in active:
        if not member.error:
          member.log.write_all()  # The time of the evaluations is not that of these steps.
      stop = not self._evaluate([m for m in active if not m.error], should_stop)
    if stop:
      self._finish_step()
      left = [m for m in active if not m.error]
      for member in left:
        member.log.write_all()  # The next start cannot log these steps.
      self._save(step, [m for m in left if m.checkpoints.last_step != step], wait=True)
      raise Preempted(f"stopped at step {step} with checkpoints saved. The same command resumes "
                      "the runs")

  @timeline.during("saving")
  def _save(self, step: int, members: Sequence[Member], wait: bool) -> None:
    with step_log.all_untimed(member.log for member in self._members):  # All wait for it.
      for member in members:
        member.is_save_due = False
        member.checkpoints.save(step, self.state_of(member), member.run.metadata, wait=wait)

  def _evaluate(self, members: Sequence[Member], should_stop: Callable[[], bool]) -> bool:
    """Evaluates runs after their last step; returns False if a signal was received."""
    for member in members:
      # One program serves all: no evaluation depends on a field that differs between the runs.
      run = member.run._replace(evaluator=self._stacked.runs[0].evaluator)
      scores = evaluate_step(run, member.log, member.checkpoints, member.step,
                             self.state_of(member), should_stop)
      if scores is None:
        return False
      member.scores = scores
    for member in self._members:  # All have waited for the evaluations of all.
      member.log.restart_clock()
    return True
