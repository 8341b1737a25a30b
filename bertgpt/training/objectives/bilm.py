"""The bidirectional language model (Peters et al. 2018, arXiv:1802.05365, 3.1).

One direction predicts every word from those before it, the other from those after it. The softmax
is over the whole vocabulary, even in training; bilm-tf samples 8,192 words.
"""

import functools

import jax.numpy as jnp

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy, elmo
from bertgpt.training.objectives.objective import Objective, keep_batch, name_sums


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the average of the mean losses of both directions.

  Its exponential, `bilm_perplexity`, is the number that bilm-tf reports.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer; words that are not predicted become its [UNK].
  """
  targets = config.model.target_words or vocabulary.size

  def find_weights(batch):
    return (batch["sequence_ids"] > 0).astype(jnp.float32)

  def weights(batch):
    return {"bilm_loss": find_weights(batch).sum()}

  def score(prediction, words_BL, weights_BL):
    known_BL = jnp.where(words_BL < targets, words_BL, vocabulary.unk_id)
    return cross_entropy.score(prediction, known_BL, weights_BL, config.objective.loss_chunk)

  def compute_sums(model, batch):
    weights_BL = find_weights(batch)
    tokens_2BL = jnp.stack([batch["tokens"], batch["backward_tokens"]])
    *predictions, carry = model.call("read", tokens_2BL, weights_BL > 0, model.carry)
    forward, backward = (
        score(prediction, batch[name], weights_BL) for prediction, name in
        zip(predictions, ("targets", "backward_targets"), strict=True))
    mean = tuple((x + y) / 2 for x, y in zip(forward, backward, strict=True))
    weight = weights_BL.sum()
    losses = {"forward_loss": (forward[0], weight), "backward_loss": (backward[0], weight)}
    return name_sums("bilm", mean, weights_BL) | losses, carry

  return Objective(specs=functools.partial(formats.specs, config), corrupt=keep_batch,
                   weights=weights, compute_sums=compute_sums, init_inputs=Inputs.of,
                   carry=elmo.carry_specs(config.model))
