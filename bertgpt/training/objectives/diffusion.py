"""Masked diffusion (Sahoo et al. 2024, MDLM, arXiv:2406.07524): a masked LM that is a likelihood.

Every row has its own rate t, the share of its tokens that are shown as [MASK], between one token
and all of them. The loss of a row, the sum of -log p over its masked tokens divided by t, is on
average at least -log p(row): the model that reveals tokens in random order, one after another, has
that bound (Ou et al. 2024, arXiv:2406.03736; Nie et al. 2025, LLaDA, arXiv:2502.09992). So the loss
per token is comparable with that of a decoder with the same tokenizer and rows, and the model
generates text: `inference.unmasking`.

The papers mask every token with probability t in (0, 1). Here n tokens are masked, with n uniform
in 1, ..., N, and t = n / N. The mean is the same bound, because the integral over t of
t^(n - 1) (1 - t)^(N - n) equals the weight N / n of a set of n tokens, divided by N times the
number of such sets. No t has to be left out, and the loss varies less.

[MASK] keeps its logit, although it is never the answer. The model learns this within a few steps,
and its head then has the same meaning as that of every masked LM, even in `fill` and in an export.

Axes: B rows, L length.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy
from bertgpt.training.objectives import masking
from bertgpt.training.objectives.objective import Batch, Objective

GOLDEN = 2_654_435_769  # 2^32 / golden ratio.


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the bound, in nats per token, of all but the first token.

  The accuracy is that of masked tokens, averaged over all rates.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  one_sequence = formats.has_one_sequence(config)

  def compute_sums(model, batch):
    inputs = Inputs.of(batch, one_sequence)._replace(predict_positions_BK=None)
    prediction = model.predict(inputs)
    weights_BL = batch["predict_weights"]
    loss, correct = cross_entropy.score(prediction, batch["predict_targets"], weights_BL,
                                        config.objective.loss_chunk)
    return {"diffusion_loss": (loss, find_candidates(batch).sum().astype(jnp.float32)),
            "diffusion_accuracy": (correct, weights_BL.sum())}, {}

  return Objective(specs=functools.partial(formats.specs, config),
                   corrupt=functools.partial(corrupt, vocabulary.mask_id), weights=weigh,
                   compute_sums=compute_sums, init_inputs=masking.init_inputs)


def weigh(batch: Batch) -> dict[str, jax.Array]:
  """Returns the weight of the loss: the number of tokens that may be masked, masked or not.

  Args:
    batch: batch, corrupted or not.
  """
  return {"diffusion_loss": find_candidates(batch).sum().astype(jnp.float32)}


def find_candidates(batch: Batch) -> jax.Array:
  """Returns the tokens that may be masked: all but padding and the [CLS] that opens a sequence.

  Args:
    batch: batch, corrupted or not.
  Returns:
    bool [B, L].
  """
  return (batch["sequence_ids"] > 0) & (batch["positions"] > 0)


def corrupt(mask_id: int, batch: Batch, key: jax.Array, row_ids_B: jax.Array) -> Batch:
  """Masks tokens of every row at its own rate.

  Args:
    mask_id: id of [MASK].
    batch: batch of `formats.specs`.
    key: random key of the step.
    row_ids_B: integers, indices of the rows.
  Returns:
    The batch with masks, and `predict_positions` (all of them), `predict_targets` (the text), int32
    [B, L], and `predict_weights`, float32 [B, L]: 1 / t for masked tokens, 0 for others.
  """
  tokens_BL = batch["tokens"]
  length = tokens_BL.shape[1]
  is_candidate_BL = find_candidates(batch)
  total_B = is_candidate_BL.sum(1, dtype=jnp.int32)
  count_B = draw_counts(key, row_ids_B, total_B)
  draw = lambda row_id: jax.random.uniform(jax.random.fold_in(key, row_id), (length,))
  scores_BL = jnp.where(is_candidate_BL, jax.vmap(draw)(row_ids_B), 2.0)
  rank_BL = jnp.argsort(jnp.argsort(scores_BL, axis=1), axis=1)
  is_masked_BL = (rank_BL < count_B[:, None]) & is_candidate_BL
  rate_B = count_B / jnp.maximum(total_B, 1)
  weights_BL = jnp.where(is_masked_BL, 1 / jnp.maximum(rate_B, 1e-9)[:, None], 0.0)
  positions_BL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens_BL.shape)
  return {**batch, "tokens": jnp.where(is_masked_BL, mask_id, tokens_BL),
          "predict_positions": positions_BL, "predict_targets": tokens_BL,
          "predict_weights": weights_BL.astype(jnp.float32)}


def draw_counts(key: jax.Array, row_ids_B: jax.Array, total_B: jax.Array) -> jax.Array:
  """Returns the number of masked tokens of every row, uniform in 1, ..., total, int32 [B].

  Any consecutive rows have evenly spread rates, which makes the loss of a batch vary less (Kingma
  et al. 2021, arXiv:2107.00630, appendix I.1). The places are multiples of the golden ratio from a
  random origin, so that a rate does not depend on the number of rows.

  Args:
    key: random key of the step.
    row_ids_B: integers, indices of the rows.
    total_B: int32, tokens that may be masked; 0: the count is 0.
  """
  # No row has this index.
  origin = jax.random.bits(jax.random.fold_in(key, np.uint32(2**31)), (), jnp.uint32)
  place_B = origin + jnp.asarray(row_ids_B).astype(jnp.uint32) * np.uint32(GOLDEN)
  # The upper 24 bits are exact in float32.
  share_B = (place_B >> 8).astype(jnp.float32) * np.float32(2**-24)
  count_B = jnp.floor(share_B * total_B).astype(jnp.int32) + 1
  return jnp.minimum(count_B, total_B)
