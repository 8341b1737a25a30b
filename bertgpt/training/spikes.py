"""A guard against loss spikes: a step that is far above the running median is not applied.

The guard is a part of the train step. It looks at the loss and at the norm of the gradient, and
compares each with the median of its most recent values. Values of steps that were not applied, and
values that are not finite, never enter the window: they would raise the median or make it
meaningless. Neither do those of steps without a gradient: the streams of an ELMo may end with
batches without text, and with a median of 0, every later step would be a spike.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bertgpt.config import ConfigDict

WATCHED = ("loss", "grad_norm")
WARM_SHARE = 4  # The guard becomes active when 1 / 4 of its window is filled.


def init_guard(config: ConfigDict) -> Any:
  """Returns the state of the guard at step 0; () without a guard.

  Args:
    config: a whole config.
  Returns:
    "values": float32 [2, W], the most recent values of loss and gradient norm in any order;
    "count": int32 scalar, the number of values so far.
  """
  if config.train.spike_guard == "off":
    return ()
  return {"values": jnp.zeros((len(WATCHED), config.train.spike_window), jnp.float32),
          "count": jnp.zeros((), jnp.int32)}


def judge(config: ConfigDict, guard: Any, step: jax.Array, loss: jax.Array,
          grad_norm: jax.Array) -> tuple[jax.Array, Any]:
  """Returns whether a step is applied, a bool scalar, and the state of the guard after the step.

  A step is not applied if its loss or its gradient is not finite or, with a guard, a spike.

  Args:
    config: a whole config.
    guard: state of the guard after the previous step; () without one.
    step: int32 scalar, steps done before this one.
    loss, grad_norm: float scalars of the step.
  """
  is_applied = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  if not guard:
    return is_applied, guard
  values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
  guard = _restart(config, guard, step)
  is_applied &= ~_is_spike(config, guard, values)
  return is_applied, _add_values(guard, values, is_applied)


def _restart(config, guard, step):
  """Returns the state of the guard for a step: empty if a phase begins.

  The gradients of a phase with other batches or rows may be larger by more than a spike, and
  skipped steps would never change the median.
  """
  starts = _find_starts(config)
  if not starts:
    return guard
  return guard | {"count": jnp.where(jnp.isin(step, jnp.array(starts)), 0, guard["count"])}


def _find_starts(config):
  """Returns for every phase but the first the steps done when its first step begins.

  Steps that `train.skip_steps` leaves out begin no phase.
  """
  starts, first = [], 0
  for p in config.phases[:-1]:
    first += p.steps
    start = first
    for low, high in sorted(config.train.skip_steps):
      if low <= start + 1 <= high:
        start = high
    starts.append(start)
  return starts


def _is_spike(config, guard, values):
  """Returns whether a step with these values, float32 [2], is a spike: a bool scalar."""
  size = config.train.spike_window
  filled = jnp.minimum(guard["count"], size)
  # Empty places sort last. The lower median is used, because it is one of the values.
  ordered = jnp.sort(jnp.where(jnp.arange(size) < filled, guard["values"], jnp.inf), axis=-1)
  median = jnp.take(ordered, jnp.maximum(filled - 1, 0) // 2, axis=-1)
  is_warm = filled >= max(1, size // WARM_SHARE)
  return is_warm & (values > config.train.spike_factor * median).any()


def _add_values(guard, values, is_applied):
  """Returns the state of the guard after a step."""
  is_added = is_applied & (values[WATCHED.index("grad_norm")] > 0)
  place = guard["count"] % guard["values"].shape[1]
  added = guard["values"].at[:, place].set(values)
  return {"values": jnp.where(is_added, added, guard["values"]),
          "count": guard["count"] + is_added}
