"""AdamW as in BERT's training."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import add_decay, scale_by_adam_moments


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns AdamW as in BERT's training: without bias correction.

  The directions are those of `adamw` times (1 - b1^t) / sqrt(1 - b2^t): 3.2 at the first update,
  6.6 at the twelfth, 1.3 at the thousandth. BERT's warm-up is tuned to that factor.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    google-research/bert, optimization.py, AdamWeightDecayOptimizer, 2018
  """
  optimizer = config.optimizer
  adam = scale_by_adam_moments(optimizer.b1, optimizer.b2, optimizer.epsilon,
                               correction_starts=None)
  return optax.chain(adam, add_decay(config, table))
