"""Masked LM without a second task (Liu et al. 2019, RoBERTa, arXiv:1907.11692)."""

import functools

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs
from bertgpt.training.objectives import masking
from bertgpt.training.objectives.objective import Objective


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the mean over the predicted tokens.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  one_sequence = formats.has_one_sequence(config)

  def compute_sums(model, batch):
    mlm = model.predict(Inputs.of(batch, one_sequence))
    return masking.score_mlm(mlm, batch, config.objective.loss_chunk), {}

  return Objective(specs=functools.partial(formats.specs, config),
                   corrupt=masking.make_corrupt(config, vocabulary), weights=masking.weigh_mlm,
                   compute_sums=compute_sums, init_inputs=masking.init_inputs)
