"""Next-token prediction (Radford et al. 2018, 2019)."""

import functools

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy
from bertgpt.training.objectives.objective import Objective, keep_batch, name_sums


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the mean over all tokens that are not padding.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  del vocabulary
  one_sequence = formats.has_one_sequence(config)

  def weights(batch):
    return {"lm_loss": batch["loss_weights"].sum()}

  def compute_sums(model, batch):
    prediction = model.predict(Inputs.of(batch, one_sequence))
    weights_BL = batch["loss_weights"]
    scores = cross_entropy.score(prediction, batch["targets"], weights_BL,
                                 config.objective.loss_chunk)
    return name_sums("lm", scores, weights_BL), {}

  return Objective(specs=functools.partial(formats.specs, config), corrupt=keep_batch,
                   weights=weights, compute_sums=compute_sums, init_inputs=Inputs.of)
