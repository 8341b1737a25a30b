"""Muon."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import (
  add_decay,
  label,
  orthogonalize,
  scale_by_adam,
)


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns Muon for the hidden matrices, and AdamW for all other parameters.

  Nesterov momentum, B = momentum * B + G and G + momentum * B, then `orthogonalize`.
  `optax.contrib.scale_by_muon` would bias-correct the two terms separately, which the source does
  not do and which changes their weights in the first steps.

  Args:
    config: a whole config; `optimizer` is read.
    table: table of the family's parameters.

  References: see `orthogonalize`.
  """
  matrices = optax.chain(
      optax.trace(config.optimizer.momentum, nesterov=True), orthogonalize())
  return optax.chain(
      optax.partition({"muon": matrices, "adamw": scale_by_adam(config)},
                      label(table, lambda param: "muon" if param.is_matrix else "adamw")),
      add_decay(config, table))
