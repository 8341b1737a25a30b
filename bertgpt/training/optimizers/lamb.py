"""LAMB, by the paper."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import (
  add_decay,
  per_layer,
  scale_by_adam,
)


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """LAMB to the letter of the paper's Algorithm 2, with phi the identity.

  u = |p| / |r + weight_decay * p| * (r + weight_decay * p), where r is Adam's direction with
  bias correction. The algorithm scales every layer i = 1..h and leaves none out, so the trust
  ratio is on every array, biases and LayerNorm included; where |p| or the other norm is 0
  (biases at the start) it is 1. Code that leaves biases and LayerNorm out is `nvlamb`.

  References:
    You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
      2019, https://arxiv.org/abs/1904.00962
  """
  return optax.chain(scale_by_adam(config), add_decay(config, table),
                     per_layer(optax.scale_by_trust_ratio(), table))
