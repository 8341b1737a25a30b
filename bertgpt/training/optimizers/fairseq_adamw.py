"""AdamW as in RoBERTa's training."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import add_decay, scale_by_adam_moments


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns AdamW with an epsilon that is added before the bias correction, as in fairseq.

  The direction is m / (sqrt(v) + epsilon) * sqrt(1 - b2^t) / (1 - b1^t). An epsilon of 1e-6 here
  equals one of 7e-6 in `adamw` at the first update with b2 = 0.98, and 1e-6 after a few hundred.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    facebookresearch/fairseq, optim/adam.py, 2019
    Kingma and Ba, Adam, 2014, https://arxiv.org/abs/1412.6980 (end of section 2)
  """
  optimizer = config.optimizer
  adam = scale_by_adam_moments(optimizer.b1, optimizer.b2, optimizer.epsilon,
                               correction_starts=(0,), corrects_epsilon=True)
  return optax.chain(adam, add_decay(config, table))
