"""Masked LM and next sentence prediction (Devlin et al. 2018, arXiv:1810.04805, 3.1)."""

from bertgpt.config import ConfigDict
from bertgpt.data.batches import pairs
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.training.objectives import paired
from bertgpt.training.objectives.objective import MakeSpecs, Objective


def make(config: ConfigDict, vocabulary: Vocabulary, specs: MakeSpecs) -> Objective:
  """Returns the objective; class 1 is a pair whose second part is from another document.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
    specs: phase -> what its batches hold.
  """
  return paired.make(config, vocabulary, specs, pairs.PAIR_NAME)
