"""Metrics as (sum, weight) pairs, which are added over steps and batches and divided once."""

import math
from collections.abc import Mapping
from typing import Any

import jax


class RunningSums:
  """Sums of the metrics of several steps or batches.

  Attributes:
    steps: number of steps that were added.
  """

  def __init__(self):
    self._sums: dict[str, tuple[float, float]] = {}
    self.steps = 0

  def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
    """Adds one step.

    Args:
      sums: metric -> (sum, weight).
    """
    for name, (total, weight) in sums.items():
      old_total, old_weight = self._sums.get(name, (0.0, 0.0))
      self._sums[name] = (old_total + float(total), old_weight + float(weight))
    self.steps += 1

  def total(self, name: str) -> float:
    """Returns the sum of a metric that was added."""
    return self._sums[name][0]

  def means(self) -> dict[str, float]:
    """Returns sum / weight of every metric; metrics of weight 0 are left out."""
    return {name: total / weight for name, (total, weight) in self._sums.items() if weight}


class LateMetrics:
  """Metrics of the last step, read only after the next one was started: so devices never wait."""

  def __init__(self):
    self._pending: tuple[int, Any] | None = None

  def push(self, step: int, step_metrics: Any) -> None:
    """Stores the metrics of a step, after those of the step before were taken.

    Args:
      step: steps done, including this one.
      step_metrics: name -> (sum, weight), arrays that may not be computed yet.
    """
    self._pending = step, step_metrics

  def take(self) -> tuple[int, Any] | None:
    """Waits for the stored step, and returns it with its metrics on the host; None if none is."""
    pending, self._pending = self._pending, None
    return pending and (pending[0], jax.device_get(pending[1]))


def with_perplexity(means: Mapping[str, float], loss: str) -> dict[str, float]:
  """Returns the means and the perplexity exp(loss), such as 'mlm_perplexity' for 'mlm_loss'.

  Args:
    means: metric -> value, losses in nats.
    loss: name of the metric; if it is not among the means, no perplexity is added.
  """
  if loss not in means:
    return dict(means)
  name = loss.removesuffix("_loss") + "_perplexity"
  return {**means, name: perplexity(means[loss])}


def perplexity(loss: float) -> float:
  """Returns exp(loss); beyond a loss of 700 nats, where floats end, exp(700).

  Args:
    loss: mean loss per token, in nats.
  """
  return math.exp(min(loss, 700.0))
