"""AdamW."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import add_decay, scale_by_adam


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns Adam with bias correction and decoupled weight decay.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017,
      https://arxiv.org/abs/1711.05101
  """
  return optax.chain(scale_by_adam(config), add_decay(config, table))
