"""StableAdamW, with which ModernBERT was trained."""

import jax
import jax.numpy as jnp
import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import DECAY_RULES, label
from bertgpt.training.schedules import find_rate_curves


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns AdamW whose step shrinks when the second moment lags behind the gradient.

  With g the gradient of a parameter array, or of one layer of it, and v its second moment, the
  direction is divided by max(1, rms(g / sqrt(v))), as in Adafactor. This replaces clipping: the
  published runs have `optimizer.clip_norm=0`. The moments have debiased decays
  (b^t - b) / (b^t - 1) instead of a bias correction. Weight decay is fully decoupled: each step
  multiplies parameters by 1 - weight_decay * rate / peak, so a decay of 1e-5 is as strong as one of
  0.0125 in `adamw` with a peak of 8e-4; the peak is that of the learning-rate curve. When the step
  shrinks, so does the decay. In `transformers`, queries, keys and values share one matrix, so the
  published rms covers three arrays at once.

  Args:
    config: a whole config; `optimizer` and `phases` are read.
    table: table of the family's parameters.
  Returns:
    A transform with the state of `optax.scale_by_adam`.

  References:
    Wortsman et al., Stable and low-precision training for large-scale vision-language models, 2023,
      https://arxiv.org/abs/2304.13013 (algorithm 2)
    AnswerDotAI/ModernBERT, src/optimizer.py, 2024
    warner-benjamin/optimi, 0.2, utils.py, 2024 (debiased decays, fully decoupled decay)
  """
  optimizer = config.optimizer
  curves = find_rate_curves(config.phases)
  decays = label(table, DECAY_RULES[optimizer.decay_rule])
  is_stacked = label(table, lambda param: param.is_stacked)

  def init(params):
    return optax.ScaleByAdamState(
        count=jnp.zeros((), jnp.int32), mu=optax.tree.zeros_like(params),
        nu=optax.tree.zeros_like(params))

  def update(updates, state, params, *, step=None, **_):
    t = (state.count + 1).astype(jnp.float32)
    b1, b2 = ((b ** t - b) / (b ** t - 1) for b in (optimizer.b1, optimizer.b2))
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g ** 2, state.nu, updates)
    decay = optimizer.weight_decay / _peak(curves, state.count if step is None else step)

    def direct(g, m, v, p, has_decay, stacked):
      u = m / (jnp.sqrt(v) + optimizer.epsilon)
      u = u + decay * p if has_decay else u
      axes = tuple(range(1 if stacked else 0, g.ndim))
      # The square of a small epsilon is 0, and so is v where no gradient has arrived.
      least = jnp.maximum(optimizer.epsilon ** 2, 1e-30)
      square = jnp.mean(g ** 2 / jnp.maximum(v, least), axes, keepdims=True)
      return u / jnp.maximum(1, jnp.sqrt(square))

    directions = jax.tree.map(direct, updates, mu, nu, params, decays(params), is_stacked(params))
    return directions, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

  return optax.GradientTransformationExtraArgs(init, update)


def _peak(curves, step):
  """Returns the peak of the learning-rate curve that a step belongs to; never 0."""
  peak = jnp.float32(curves[0].phase.learning_rate)
  for curve in curves[1:]:
    peak = jnp.where(step < curve.first_step, peak, curve.phase.learning_rate)
  return jnp.maximum(peak, 1e-30)
