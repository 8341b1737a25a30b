"""Learning rates as functions of the step."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bertgpt.config import ConfigDict


@dataclasses.dataclass(frozen=True)
class RateCurve:
  """Learning rate over one `restart` phase and the `continuous` phases that follow it.

  Attributes:
    phase: the `restart` phase, whose peak, shape and warm-up hold for the whole curve.
    first_step: index of its first step in the run.
    steps: number of its steps.
  """

  phase: ConfigDict
  first_step: int
  steps: int

  @property
  def warmup(self) -> float:
    """Length of the warm-up in steps; a share of the curve is not rounded, as in NVIDIA's code."""
    return self.phase.warmup_steps or self.phase.warmup_fraction * self.steps


def _linear(step, curve):
  start = curve.warmup if curve.phase.warmup_rule == "before" else 0
  # The difference is taken in integers: in float32, 1 - 999_999 / 1e6 is 1% off.
  left = jnp.maximum(curve.steps - step, 0) / max(curve.steps - start, 1)
  return jnp.minimum(left, 1)


def _cosine(step, curve):
  progress = (step - curve.warmup) / max(curve.steps - curve.warmup, 1)
  return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))


def _wsd(step, curve):
  decay_steps = curve.phase.decay_fraction * curve.steps
  progress = (step - (curve.steps - decay_steps)) / max(decay_steps, 1)
  return 1 - jnp.clip(progress, 0, 1) ** curve.phase.power


# (step of the curve, curve) -> d, which falls from 1 at the peak to 0 at the end rate.
SCHEDULES: dict[str, Callable[[jax.Array, RateCurve], jax.Array]] = {
    "linear": _linear,
    "polynomial": lambda step, curve: _linear(step, curve) ** curve.phase.power,
    "cosine": _cosine,
    "constant": lambda step, curve: jnp.float32(1),
    "wsd": _wsd,
}


def make_schedule(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
  """Returns the learning rate as a function of the step, over all of `config.phases`.

  `schedule(s)` is the rate of the update with the 0-based index s, as in
  google-research/bert: with warm-up, the first update has rate 0, and the last update of a
  linear decay has peak / steps. NVIDIA counts from 1, so its rates come one update earlier.

  Warm-up is peak * step / warmup. After it, with e = `end_fraction`, the rate is
  peak * (e + (1 - e) * d), where d falls from 1 to 0:

  * linear: 1 - step / steps, or with another `warmup_rule` as below;
  * polynomial: the same to the power `power` (NVIDIA's PolyWarmUpScheduler: 0.5);
  * cosine: half a cosine from the end of the warm-up, as in nanoGPT;
  * constant: d = 1 throughout;
  * wsd: 1, and over the last `decay_fraction` of the steps 1 - t ** `power`, where t goes
    from 0 to 1: power 1 is linear, power 0.5 the "1-sqrt" shape.

  How the linear and the polynomial curve begin is the `warmup_rule`:

  * replace: they are counted from step 0, even during the warm-up, as in BERT: at the end of the
    warm-up the rate drops to peak * (1 - warmup / steps);
  * before: they are counted from the end of the warm-up, as in RoBERTa: (steps - step) / (steps -
    warmup). Only the first update differs from fairseq, whose rate is peak / warmup, not 0;
  * multiply: the rate is the product of the curve, counted from step 0, and min(1, step / warmup),
    as in ELECTRA.

  A phase with the rule `continuous` extends the curve of the previous phase, whose peak, shape
  and warm-up apply to both; a `restart` phase starts a curve at its own step 0. After the last
  step, the rate stays at the end rate, e * peak (constant: at the peak).

  Args:
    config: a whole config; `phases` is read.
  Returns:
    A traceable function from a step (int32, any shape) to the rate (float32, that shape).

  References:
    google-research/bert, optimization.py, 2018
    facebookresearch/fairseq, optim/lr_scheduler/polynomial_decay_schedule.py, 2019 (before)
    google-research/electra, model/optimization.py, 2020 (multiply)
    NVIDIA, DeepLearningExamples, PyTorch/LanguageModeling/BERT/schedulers.py, 2021
    Hu et al., MiniCPM, 2024, https://arxiv.org/abs/2404.06395 (WSD)
    Haegele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training
      Durations, 2024, https://arxiv.org/abs/2405.18392 (1-sqrt)
  """
  curves = find_rate_curves(config.phases)

  def schedule(step):
    step = jnp.asarray(step, jnp.int32)
    rate = _rate(step, curves[0])
    for curve in curves[1:]:
      rate = jnp.where(step < curve.first_step, rate, _rate(step, curve))
    return rate.astype(jnp.float32)

  return schedule


def find_rate_curves(phases: Sequence[ConfigDict]) -> tuple[RateCurve, ...]:
  """Returns the curves of a run, in order.

  Args:
    phases: `config.phases`; the first has the rule `restart`.
  """
  curves, first_step = [], 0
  for phase in phases:
    if phase.learning_rate_rule == "continuous":
      curves[-1] = dataclasses.replace(curves[-1], steps=curves[-1].steps + phase.steps)
    else:
      curves.append(RateCurve(phase, first_step, phase.steps))
    first_step += phase.steps
  return tuple(curves)


def find_long_warmups(phases: Sequence[ConfigDict]) -> list[str]:
  """Returns a line per curve that does not reach its peak, because its warm-up is too long.

  Args:
    phases: `config.phases`.
  """
  lines = []
  for curve in find_rate_curves(phases):
    decay = curve.phase.decay_fraction * curve.steps if curve.phase.schedule == "wsd" else 0
    if curve.warmup and curve.warmup > curve.steps - max(decay, 1):
      rest = f", the last {decay:,.0f} of them with decay" if decay else ""
      lines.append(f"WARNING: the learning rate never reaches {curve.phase.learning_rate:g}: "
                   f"the warm-up takes {curve.warmup:,.0f} steps, and there are {curve.steps:,} "
                   f"in all{rest}. Lower warmup_steps or warmup_fraction of the phase")
  return lines


def describe_change(old: ConfigDict, new: ConfigDict, step: int) -> str:
  """Describes how the learning rate of a resumed run jumps at this step; '' if it does not.

  Added steps stretch the curve that they belong to, so the rate may jump, usually upward.

  Args:
    old: config of the steps that are done.
    new: config of the steps that follow.
    step: steps done, at least 1.
  Returns:
    The rate of the next update, and that of the last one, in one line.
  """
  was, old_next, new_next = (float(make_schedule(config)(jnp.int32(at))) for config, at in (
      (old, step - 1), (old, step), (new, step)))
  if math.isclose(old_next, new_next, rel_tol=1e-5, abs_tol=1e-12):
    return ""
  before, after = (sum(phase.steps for phase in config.phases) for config in (old, new))
  reason = f", because the run now has {after} steps instead of {before}" * (before != after)
  return (f"the learning rate of the next step is {new_next:.4g}, that of the last step was "
          f"{was:.4g}{reason}")


def _rate(step, curve):
  phase, step = curve.phase, step - curve.first_step
  left = SCHEDULES[phase.schedule](step, curve)
  share = phase.end_fraction + (1 - phase.end_fraction) * left
  if curve.warmup:
    warm = step / curve.warmup
    multiplies = phase.warmup_rule == "multiply"
    share = jnp.where(step < curve.warmup, warm * share if multiplies else warm, share)
  return phase.learning_rate * jnp.broadcast_to(share, step.shape)
