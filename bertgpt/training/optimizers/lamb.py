"""LAMB as in its paper."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import (
  add_decay,
  per_layer,
  scale_by_adam,
)


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns LAMB exactly as in the paper's Algorithm 2, with phi the identity.

  u = |p| / |r + weight_decay * p| * (r + weight_decay * p), where r is Adam's direction with
  bias correction. The algorithm scales every layer i = 1..h without exception, so the trust
  ratio is applied to every array, biases and LayerNorm included; if |p| or the other norm is 0
  (biases at the start) the ratio is 1. `nvlamb` exempts biases and LayerNorm.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
      2019, https://arxiv.org/abs/1904.00962
  """
  return optax.chain(scale_by_adam(config), add_decay(config, table),
                     per_layer(optax.scale_by_trust_ratio(), table))
