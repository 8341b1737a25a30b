"""Permutation language modeling with memory: a row sees the features of the row that it continues.

Yang et al. 2019, arXiv:1906.08237, 2.4. The memory of a layer is its inputs at the last tokens
before the row; no gradient passes through it. It starts empty: a place that holds no token yet is
not seen. In the published code, it starts as zeros, which are seen like features.

Axes: B rows, L length, Y layers, M tokens of memory, D width.
"""

import jax.numpy as jnp

from bertgpt.config import ConfigDict
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs
from bertgpt.training.objectives import masking, plm
from bertgpt.training.objectives.objective import Objective


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the mean over the predicted tokens.

  Its carry is the memory, [B, Y, M, D] in the compute dtype, and which of its places hold a token,
  bool [B, M].

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  length, reuse = config.objective.memory, config.objective.permutation_block
  shape = (config.model.num_layers, length, config.model.width)

  def compute_sums(model, batch):
    is_memory_BM = model.carry["is_memory"]
    inputs = Inputs.of(batch)._replace(memory_YBMD=jnp.moveaxis(model.carry["memory"], 1, 0),
                                       is_memory_BM=is_memory_BM)
    prediction, memory_YBMD = model.call("predict_and_remember", inputs, reuse, length)
    is_text_BL = batch["sequence_ids"] > 0
    is_memory_BM = jnp.concatenate([is_memory_BM, is_text_BL[:, :reuse]], axis=1)[:, -length:]
    sums = masking.score_mlm(prediction, batch, config.objective.loss_chunk, plm.NAME)
    return sums, {"memory": jnp.moveaxis(memory_YBMD, 0, 1), "is_memory": is_memory_BM}

  return plm.make(config, vocabulary)._replace(compute_sums=compute_sums, carry={
      "memory": (shape, jnp.dtype(config.model.dtype).type), "is_memory": ((length,), bool)})
