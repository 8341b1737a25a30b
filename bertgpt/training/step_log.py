"""The log of a run's steps."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.config.flops import flops_per_step, flops_until
from bertgpt.devices import hardware
from bertgpt.errors import DivergedError
from bertgpt.training import metrics, skipped_steps, spikes, trackers
from bertgpt.training.pace import Pace
from bertgpt.training.writer import Writer


class StepLog:
  """Logs the metrics of steps, with their times.

  Attributes:
    is_applied: whether the last step that was added has been applied, because its loss and gradient
      were finite and not a spike.
    pace: measures how long this process waits.
  """

  def __init__(self, config: ConfigDict, path: pathlib.Path, first_step: int, *,
               is_static: bool = True, name: str = "",
               on_skip: Callable[[int, dict[str, float]], None] = lambda step, scalars: None):
    """Opens the log of a run.

    Args:
      config: a whole config.
      path: workdir of the run.
      first_step: steps done before; logged steps beyond it are dropped.
      on_skip: called with a step that was not applied, its loss and its gradient norm.
      is_static: whether all rows have the length of their phase; otherwise MFU is not logged.
      name: name of the run, if several runs print their lines at the same time.
    """
    self._config, self._is_static, self._on_skip = config, is_static, on_skip
    self._flops_of_phase = [flops_per_step(config, phase) for phase in config.phases]
    is_first = jax.process_index() == 0
    self._writer = Writer(path, first_step=first_step, last_step=config_lib.total_steps(config),
                          is_evaluated=is_evaluated(config, first_step),
                          tensorboard=config.log.tensorboard, active=is_first, name=name,
                          work=functools.partial(flops_until, config),  # Phases differ.
                          trackers=trackers.start(config, path) if is_first else ())
    self._has_guard = config.train.spike_guard != "off"
    self.is_applied = True
    self.pace = Pace()
    self._restart(time.monotonic())

  def add(self, step: int, sums: Mapping[str, tuple[Any, Any]], num_runs: int = 1) -> None:
    """Logs a step that is done: with a line if one is due, or if the run has diverged.

    Args:
      step: steps done, including this one.
      sums: name -> (sum, weight), on the host.
      num_runs: number of runs that did this step together, in the time of one step.
    """
    self.is_applied = bool(sums["bad_steps"][0] == 0)
    phase_index, _ = config_lib.find_phase(self._config, step - 1)
    self._flops += num_runs * self._flops_of_phase[phase_index]
    # A NaN would spoil the sums; a step that was not applied is only counted.
    self._sums.add(sums if self.is_applied else {"tokens": sums["tokens"]})
    if not self.is_applied:
      self._note_skipped(step, {name: float(sums[name][0]) for name in spikes.WATCHED})
    self._last = step, sums
    # After the end of a run that has diverged, the next start cannot log these steps.
    if is_due(self._config.log.every_steps, step) or has_diverged(self._config, sums):
      self._write(step, sums)

  def _note_skipped(self, step: int, scalars: dict[str, float]) -> None:
    """Counts a step that was not applied, and says so if it is a spike."""
    self._skipped += 1
    if all(map(math.isfinite, scalars.values())):
      self._spikes += 1
      self.message(f"step {step}  skipped as a spike: loss {scalars['loss']:.3f}, gradient norm "
                   f"{scalars['grad_norm']:.3g}. Its data is in {skipped_steps.FILE}")
    self._on_skip(step, scalars)

  def write_all(self) -> None:
    """Logs all steps added so far, even if no line is due, for example before an evaluation."""
    if self._sums.steps:
      self._write(*self._last)

  @contextlib.contextmanager
  def untimed(self) -> Iterator[None]:
    """Excludes the time inside the context, such as that of a save, from step times."""
    begin = time.monotonic()
    try:
      yield
    finally:
      self._clock += time.monotonic() - begin

  def message(self, text: str) -> None:
    """Prints a line of its own on stderr."""
    self._writer.message(text)

  def record(self, step: int, name: str, results: dict[str, float]) -> None:
    """Logs an evaluation.

    Args:
      step: steps done.
      name: name of the set: the NAME in eval/NAME/mlm_loss.
      results: metric -> value.
    """
    self._writer.write(step, {f"eval/{name}/{metric}": value for metric, value in results.items()})
    self._writer.message(f"step {step}  {name}: "
                         + "  ".join(f"{metric} {value:.4g}" for metric, value in results.items()))
    self._restart(time.monotonic())  # The time of an evaluation does not count as step time.

  def restart_clock(self) -> None:
    """Restarts the step clock, unless a step was added since the last log line."""
    if not self._sums.steps:
      self._restart(time.monotonic())

  def end(self) -> None:
    """Tells the trackers of the run that they end. Of several logs, all end before one closes."""
    self._writer.end()

  def close(self) -> None:
    """Closes the files."""
    self.pace.close()
    self._writer.close()

  def _write(self, step: int, last: Any) -> None:
    config, sums, now = self._config, self._sums, time.monotonic()
    seconds = (now - self._clock) / sums.steps
    scalars = {f"train/{name}": mean for name, mean in sums.means().items()
               if name not in ("tokens", "bad_steps")}
    scalars |= {"train/learning_rate": float(last["learning_rate"][0]),
                "train/skipped_steps": self._skipped, **self._spike_scalars(),
                "perf/step_seconds": seconds,
                "perf/tokens_per_second": sums.total("tokens") / sums.steps / seconds,
                **self.pace.scalars(seconds, sums.steps)}
    chip = hardware.find_chip(jax.devices()[0].device_kind)
    if chip and self._is_static and not config.optimizer.freeze:  # See `flops_per_step`.
      scalars["perf/mfu"] = (self._flops / sums.steps / seconds
                             / (chip.peak_flops * jax.device_count()))
    self._writer.write(step, scalars)
    self._writer.progress(step, scalars)
    self._restart(now)  # The next step runs while this one is written.

  def _restart(self, now: float) -> None:
    self._sums, self._skipped, self._clock = metrics.RunningSums(), 0, now
    self._spikes, self._flops = 0, 0.0
    self.pace.restart()

  def _spike_scalars(self) -> dict[str, float]:
    return {"train/spikes": self._spikes} if self._has_guard else {}


@contextlib.contextmanager
def all_untimed(logs: Iterable[StepLog]) -> Iterator[None]:
  """Excludes the time inside the context from the step times of several runs.

  Args:
    logs: logs of the runs.
  """
  with contextlib.ExitStack() as stack:
    for log in logs:
      stack.enter_context(log.untimed())
    yield


def finish_step(late: metrics.LateMetrics, log: StepLog, config: ConfigDict) -> None:
  """Waits for the last step that was started, logs it, and ends a run that has diverged.

  Args:
    late: the step, if it is not finished yet.
    log: log of the run.
    config: config of the run.
  Raises:
    DivergedError: too many consecutive steps were not applied.
  """
  with log.pace.waiting():
    done = late.take()
  if done:
    log.add(*done)
    check_divergence(config, *done)


def has_diverged(config: ConfigDict, sums: Mapping[str, tuple[Any, Any]]) -> bool:
  """Returns whether too many consecutive steps were not applied.

  Args:
    config: a whole config.
    sums: metrics of the last step, name -> (sum, weight), on the host.
  """
  return bool(sums["bad_steps"][0] >= config.train.max_bad_steps)


def check_divergence(config: ConfigDict, step: int, sums: Mapping[str, tuple[Any, Any]]) -> None:
  """Raises DivergedError if a run has diverged.

  Args:
    config: a whole config.
    step: steps done.
    sums: metrics of this step, see `has_diverged`.
  """
  if has_diverged(config, sums):
    or_spikes = ", or a spike" if config.train.spike_guard != "off" else ""
    raise DivergedError(f"step {step}: {config.train.max_bad_steps} consecutive steps were not "
                        f"applied (loss or gradient not finite{or_spikes}). Lower "
                        "phases[].learning_rate, or check the data")


def is_due(every: int, step: int) -> bool:
  """Returns whether something that happens every N steps happens at a step.

  Args:
    every: N; 0: never.
    step: steps done.
  """
  return every > 0 and step % every == 0


def is_evaluated(config: ConfigDict, step: int) -> bool:
  """Returns whether the model is evaluated after a step.

  Args:
    config: a whole config.
    step: steps done.
  """
  return step > 0 and (step == config_lib.total_steps(config)
                       or is_due(config.eval.every_steps, step))
