"""What is logged of the steps of a run, one step late, and what stops a run that diverges."""

import pathlib
import time
from typing import Any

import jax

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.errors import DivergedError
from bertgpt.models import attention
from bertgpt.training import metrics


class StepLog:
  """Reads the metrics of a step after the next one was started; logs; finds divergence."""

  def __init__(self, config: ConfigDict, path: pathlib.Path, first_step: int, *,
               is_static: bool = True):
    """Logs into the workdir `path`.

    Args:
      is_static: all rows are as long as their phase says; else there is no MFU.
    """
    self._config, self._is_static = config, is_static
    self._writer = metrics.Writer(path, first_step=first_step,
                                  last_step=config_lib.total_steps(config),
                                  tensorboard=config.log.tensorboard,
                                  active=jax.process_index() == 0)
    for line in attention.explain(config) if is_static else ():
      self._writer.message(line)
    self._pending: tuple[int, Any] | None = None
    self._restart()

  def add(self, step: int, step_metrics: Any) -> None:
    self.flush()
    self._pending = step, step_metrics

  def flush(self) -> bool:
    """Waits for the step added last, logs it, and says whether it was finite.

    Raises:
      DivergedError: too many steps in a row were not finite.
    """
    if self._pending is None:
      return True
    step, sums = self._pending[0], jax.device_get(self._pending[1])
    self._pending = None
    is_finite = sums["bad_steps"][0] == 0
    # A NaN would spoil the window; what was not applied is counted instead.
    self._window.add(sums if is_finite else {"tokens": sums["tokens"]})
    self._skipped += not is_finite
    limit = self._config.train.max_bad_steps
    if sums["bad_steps"][0] >= limit:
      raise DivergedError(f"step {step}: loss or gradient not finite in {limit} steps in a row; "
                          "none of them was applied. Lower phases[].learning_rate or look at "
                          "the data")
    self._last = step, sums
    if is_due(self._config.log.every_steps, step):
      self._write(step, sums)
    return is_finite

  def settle(self) -> None:
    """Logs all steps added so far, before an evaluation."""
    self.flush()
    if self._window.steps:
      self._write(*self._last)

  def message(self, text: str) -> None:
    self._writer.message(text)

  def record(self, step: int, name: str, results: dict[str, float]) -> None:
    """Logs an evaluation on the set `name`."""
    self._writer.write(step, {f"eval/{name}/{metric}": value for metric, value in results.items()})
    self._writer.message(f"step {step}  {name}: "
                         + "  ".join(f"{metric} {value:.4g}" for metric, value in results.items()))
    self._restart()  # Evaluation is no step time.

  def close(self) -> None:
    self._writer.close()

  def _write(self, step: int, last: Any) -> None:
    config, window = self._config, self._window
    seconds = (time.monotonic() - self._clock) / window.steps
    scalars = {f"train/{name}": mean for name, mean in window.means().items()
               if name not in ("tokens", "bad_steps")}
    scalars |= {"train/learning_rate": float(last["learning_rate"][0]),
                "train/skipped_steps": self._skipped, "perf/step_seconds": seconds,
                "perf/tokens_per_second": window.total("tokens") / window.steps / seconds}
    peak = metrics.peak_flops(jax.devices()[0].device_kind)
    if peak and self._is_static:
      phase = config.phases[config_lib.phase_at(config, step - 1)[0]]
      scalars["perf/mfu"] = (metrics.flops_per_step(config, phase) / seconds
                             / (peak * jax.device_count()))
    self._writer.write(step, scalars)
    self._writer.progress(step, scalars)
    self._restart()

  def _restart(self) -> None:
    self._window, self._skipped, self._clock = metrics.Window(), 0, time.monotonic()


def is_due(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
