"""AdamW as BERT was trained with."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import add_decay, scale_by_restarted_adam


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """AdamW as BERT was trained with: no bias correction.

  The directions are those of `adamw` times (1 - b1^t) / sqrt(1 - b2^t): 3.2 at the first
  update, 6.6 at the twelfth, 1.3 at the thousandth. The warm-up is tuned to that.

  References:
    google-research/bert, optimization.py, AdamWeightDecayOptimizer, 2018
  """
  optimizer = config.optimizer
  adam = scale_by_restarted_adam(optimizer.b1, optimizer.b2, optimizer.epsilon, restarts=())
  return optax.chain(adam, add_decay(config, table))
