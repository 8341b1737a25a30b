"""Pretraining objectives: corruption and loss. Each is a file, found by its name.

The other half of an objective, its rows, is in `bertgpt/data/batches/`.
"""

import importlib

from bertgpt.config import ConfigDict
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.training.objectives.objective import (
    Batch,
    BoundModel,
    Carry,
    Objective,
    Sums,
    keep_batch,
    make_zero_carry,
    total_loss,
)

__all__ = ["Batch", "BoundModel", "Carry", "Objective", "Sums", "keep_batch", "make_objective",
           "make_zero_carry", "total_loss"]


def make_objective(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective that a config names.

  Args:
    config: a whole config; `objective.name` is a key of `choices.OBJECTIVES`.
    vocabulary: vocabulary of the tokenizer.
  """
  module = importlib.import_module(f"{__name__}.{config.objective.name}")
  return module.make(config, vocabulary)
