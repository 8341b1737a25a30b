"""LAMB as in ALBERT's training."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import (
  add_decay,
  per_layer,
  scale_by_adam_moments,
  weights_mask,
)


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns LAMB without bias correction; biases and LayerNorm have neither decay nor trust ratio.

  Parameters that layers share are one array, with one trust ratio.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    google-research/albert, lamb_optimizer.py and optimization.py, 2019
    You et al., Large Batch Optimization for Deep Learning, 2019, https://arxiv.org/abs/1904.00962
  """
  optimizer = config.optimizer
  return optax.chain(
      scale_by_adam_moments(optimizer.b1, optimizer.b2, optimizer.epsilon, correction_starts=None),
      add_decay(config, table),
      optax.masked(per_layer(optax.scale_by_trust_ratio(), table), weights_mask(table)))
