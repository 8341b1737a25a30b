"""Adagrad."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import add_decay


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns Adagrad as in TensorFlow: g / sqrt(s), where s is an initial value plus the sum of g^2.

  There is no epsilon; with an initial value of 0, an element without a gradient stays as it is.
  Multiplying the loss by k (in bilm-tf by 20, the steps of ELMo's rows) has the same effect as
  dividing the initial value by k^2 and `clip_norm` by k.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References:
    Duchi et al., Adaptive Subgradient Methods for Online Learning and Stochastic Optimization,
      JMLR 12, 2011, https://jmlr.org/papers/v12/duchi11a.html
  """
  return optax.chain(optax.scale_by_rss(config.optimizer.initial_accumulator, eps=0.0),
                     add_decay(config, table))
