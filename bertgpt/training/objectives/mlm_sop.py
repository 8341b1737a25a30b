"""Masked LM and sentence order prediction (Lan et al. 2019, arXiv:1909.11942, 3.1)."""

from bertgpt.config import ConfigDict
from bertgpt.data.batches import ordered_pairs
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.training.objectives import paired
from bertgpt.training.objectives.objective import MakeSpecs, Objective


def make(config: ConfigDict, vocabulary: Vocabulary, specs: MakeSpecs) -> Objective:
  """Returns the objective; class 1 is a pair whose parts are swapped.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
    specs: phase -> what its batches hold.
  """
  return paired.make(config, vocabulary, specs, ordered_pairs.PAIR_NAME)
