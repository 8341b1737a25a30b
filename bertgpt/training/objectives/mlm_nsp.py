"""Masked LM and next sentence prediction (Devlin et al. 2018, arXiv:1810.04805, 3.1)."""

from bertgpt.config import ConfigDict
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy
from bertgpt.training.objectives import masking
from bertgpt.training.objectives.objective import Objective, name_sums, predict


def make(config: ConfigDict, vocabulary: Vocabulary, specs) -> Objective:
  """Returns the objective; the loss is the mean over predicted tokens plus the mean over pairs."""

  def weights(batch):
    return masking.weigh_mlm(batch) | {"nsp_loss": batch["nsp_weights"].sum()}

  def evaluate(model, params, batch, keys):
    inputs = Inputs.of(batch)._replace(pair_positions_BP=batch["nsp_positions"])
    mlm, nsp_logits_BP2 = predict(model, params, inputs, keys)
    nsp_weights_BP = batch["nsp_weights"]
    nsp = cross_entropy.score_logits(nsp_logits_BP2, batch["nsp_labels"], nsp_weights_BP)
    return (masking.score_mlm(mlm, batch, config.objective.loss_chunk)
            | name_sums("nsp", nsp, nsp_weights_BP))

  def init_inputs(batch):
    return masking.init_inputs(batch)._replace(pair_positions_BP=batch["nsp_positions"])

  return Objective(specs, masking.make_corrupt(config, vocabulary), weights, evaluate, init_inputs)
