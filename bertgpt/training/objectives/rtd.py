"""Detection of replaced tokens (Clark et al. 2020, ELECTRA, arXiv:2003.10555).

In one step, a generator predicts masked tokens, samples of its predictions replace them, and a
discriminator predicts for every token whether it was replaced. A sample that equals the original
token does not count as replaced. The discriminator has no influence on the generator except through
the embeddings that they share.

Axes: B rows, L length, K prediction slots per row.
"""

import functools

import jax
import jax.numpy as jnp

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, sampling
from bertgpt.training.objectives import masking
from bertgpt.training.objectives.objective import Batch, Objective, Sums


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective.

  The loss is the mean over the predicted tokens plus `objective.rtd_weight` times the mean over all
  tokens, special ones included.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  one_sequence = formats.has_one_sequence(config)
  mask, factor = masking.make_corrupt(config, vocabulary), config.objective.rtd_weight

  def corrupt(batch, key, row_ids_B):
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids_B)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, masking.SAMPLES)
    return mask(batch, key, row_ids_B) | {"sample_key_data": jax.random.key_data(keys_B)}

  def weights(batch):
    losses = masking.weigh_mlm(batch)
    if factor:  # The step divides by this weight, so half of it doubles the loss.
      losses["rtd_loss"] = (batch["sequence_ids"] > 0).sum() / factor
    return losses

  def compute_sums(model, batch):
    mlm = model.predict(Inputs.of(batch, one_sequence))
    sampled_BK = sampling.sample(mlm, batch["sample_key_data"])
    tokens_BL, is_replaced_BL = replace(batch, sampled_BK)
    inputs = Inputs.of(batch, one_sequence)._replace(tokens_BL=tokens_BL, predict_positions_BK=None)
    logits_BL = model.fold(1).call("detect", inputs)
    return (masking.score_mlm(mlm, batch, config.objective.loss_chunk)
            | score_replaced(logits_BL, is_replaced_BL, batch["sequence_ids"] > 0)), {}

  return Objective(specs=functools.partial(formats.specs, config), corrupt=corrupt,
                   weights=weights, compute_sums=compute_sums, init_inputs=masking.init_inputs)


def replace(batch: Batch, sampled_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the text with samples in place of the predicted tokens.

  Args:
    batch: corrupted batch.
    sampled_BK: int32, a token for every prediction slot.
  Returns:
    The tokens, int32 [B, L], and which of them differ from the text, bool [B, L].
  """
  is_slot_BK, targets_BK = batch["predict_weights"] > 0, batch["predict_targets"]
  shown_BK = jnp.where(is_slot_BK, sampled_BK, targets_BK)
  put = functools.partial(masking.put, batch["tokens"], batch["predict_positions"])
  original_BL, tokens_BL = put(targets_BK), put(shown_BK)
  return tokens_BL, tokens_BL != original_BL


def score_replaced(logits_BL: jax.Array, is_replaced_BL: jax.Array, is_token_BL: jax.Array) -> Sums:
  """Returns the sums of the loss, and of accuracy, precision and recall of replaced tokens.

  Args:
    logits_BL: float32, logits of being replaced.
    is_replaced_BL: bool, the truth.
    is_token_BL: bool, false for padding.
  """
  signs_BL = jnp.where(is_replaced_BL, 1.0, -1.0)
  count = lambda is_BL: (is_BL & is_token_BL).sum().astype(jnp.float32)
  loss = (jax.nn.softplus(-signs_BL * logits_BL) * is_token_BL).sum()
  is_found_BL = logits_BL > 0
  hits, total = count(is_found_BL & is_replaced_BL), count(is_token_BL)
  return {"rtd_loss": (loss, total),
          "rtd_accuracy": (count(is_found_BL == is_replaced_BL), total),
          "rtd_precision": (hits, count(is_found_BL)), "rtd_recall": (hits, count(is_replaced_BL))}
