"""Masked LM combined with any question about the two parts of every sequence."""

import functools

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy
from bertgpt.training.objectives import masking
from bertgpt.training.objectives.objective import Objective, name_sums


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the mean over predicted tokens plus the mean over pairs.

  The arrays of labels and the metrics begin with the `pair_name` of the rows.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  name = formats.find(config).pair_name
  positions, labels, weighted = f"{name}_positions", f"{name}_labels", f"{name}_weights"
  one_sequence = formats.has_one_sequence(config)

  def weights(batch):
    return masking.weigh_mlm(batch) | {f"{name}_loss": batch[weighted].sum()}

  def compute_sums(model, batch):
    inputs = Inputs.of(batch, one_sequence)._replace(pair_positions_BP=batch[positions])
    mlm, pair_logits_BP2 = model.call("predict_pairs", inputs)
    pairs = cross_entropy.score_logits(pair_logits_BP2, batch[labels], batch[weighted])
    return (masking.score_mlm(mlm, batch, config.objective.loss_chunk)
            | name_sums(name, pairs, batch[weighted])), {}

  def init_inputs(batch):
    return masking.init_inputs(batch)._replace(pair_positions_BP=batch[positions])

  return Objective(specs=functools.partial(formats.specs, config),
                   corrupt=masking.make_corrupt(config, vocabulary), weights=weights,
                   compute_sums=compute_sums, init_inputs=init_inputs)
