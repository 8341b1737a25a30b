"""Adafactor."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import add_decay, per_layer


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns Adafactor without momentum and without relative steps.

  The second moment of a matrix is the product of its row and column means, its decay is
  1 - t^-0.8, and a direction whose root mean square exceeds 1 is scaled down to 1. The learning
  rate is that of the schedule, not a multiple of the parameter's size. Matrices with a side
  below 128 keep a full second moment, because factoring them saves little.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    Shazeer and Stern, Adafactor, 2018, https://arxiv.org/abs/1804.04235 (Algorithm 4)
  """
  moments = optax.chain(
      optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128, epsilon=1e-30),
      optax.clip_by_block_rms(1.0))
  return optax.chain(per_layer(moments, table), add_decay(config, table))
