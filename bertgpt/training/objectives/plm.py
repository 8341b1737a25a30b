"""Permutation language modeling (Yang et al. 2019, XLNet, arXiv:1906.08237).

A share of the tokens, the targets, is predicted one by one in random order, each from the tokens
that are not predicted and from the targets before it. The special tokens of the text also have a
place in this order, but no loss.

Axes: B rows, L length, K prediction slots per row.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs
from bertgpt.training.objectives import masking, spans, words
from bertgpt.training.objectives.objective import Batch, Objective

NAME = "plm"  # Prefix of the metrics.


def make(config: ConfigDict, vocabulary: Vocabulary) -> Objective:
  """Returns the objective; the loss is the mean over the predicted tokens.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  one_sequence = formats.has_one_sequence(config)

  def compute_sums(model, batch):
    prediction = model.predict(Inputs.of(batch, one_sequence))
    return masking.score_mlm(prediction, batch, config.objective.loss_chunk, NAME), {}

  return Objective(specs=functools.partial(formats.specs, config),
                   corrupt=make_corrupt(config, vocabulary),
                   weights=functools.partial(masking.weigh_mlm, name=NAME),
                   compute_sums=compute_sums, init_inputs=masking.init_inputs)


def make_corrupt(config: ConfigDict, vocabulary: Vocabulary
                 ) -> Callable[[Batch, jax.Array, jax.Array], Batch]:
  """Returns (batch, key, row_ids_B) -> batch with the order of prediction and the slots filled.

  The result has the arrays of the batch, unchanged, and `order`, int32 [B, L], see `draw_order`;
  `predict_positions` and `predict_targets`, int32 [B, K], and `predict_weights`, float32 [B, K].
  The result for a row depends only on the key and its row id.

  Args:
    config: a whole config; of its phases, only the first is read.
    vocabulary: vocabulary of the tokenizer.
  """
  slots = config_lib.max_predictions(config, config.phases[0])
  objective = config.objective
  is_special_V = masking.special_mask(vocabulary)

  def corrupt(batch, key, row_ids_B):
    tokens_BL, is_text_BL = batch["tokens"], batch["sequence_ids"] > 0
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids_B)
    keys_B2 = jax.vmap(lambda k: jax.random.split(k, 2))(keys_B)
    is_special_BL = is_text_BL & jnp.asarray(is_special_V)[tokens_BL]
    continues_BL = words.continues_words(vocabulary, tokens_BL) if objective.whole_words else None
    # K in the paper, about 6. Below 1e-6, the context is longer than any row anyway.
    context = max(1, round(1 / max(objective.mask_prob, 1e-6)))
    count_B = masking.round_count(keys_B, is_text_BL, objective.mask_prob, slots)
    order_BL, count_B = spans.choose_spans(
        keys_B2[:, 0], is_text_BL & ~is_special_BL, continues_BL, count_B,
        longest=objective.ngram, context=context)
    positions_BK = order_BL[:, :slots].astype(jnp.int32)
    is_target_BK = jnp.arange(slots) < count_B[:, None]
    is_target_BL = masking.put(jnp.zeros_like(tokens_BL), positions_BK, is_target_BK) > 0
    return {**batch,
            "order": draw_order(keys_B2[:, 1], is_target_BL | is_special_BL,
                                objective.permutation_block),
            "predict_positions": positions_BK,
            "predict_targets": jnp.take_along_axis(tokens_BL, positions_BK, axis=1),
            "predict_weights": is_target_BK.astype(jnp.float32)}

  return corrupt


def draw_order(keys_B: jax.Array, is_moved_BL: jax.Array, block: int) -> jax.Array:
  """Draws the order in which tokens are predicted: int32 [B, L], the place of every token.

  A row is cut into blocks. In each block, the tokens that are not moved share the first place, and
  the others have different places after it, in random order. All places of a block are before those
  of the next block (data_utils.py, `_local_perm` and `get_dataset`,
  github.com/zihangdai/xlnet, 2019).

  Args:
    keys_B: random keys, one per row.
    is_moved_BL: bool, tokens that get a place of their own.
    block: tokens of a block; 0: the row is one block.
  """
  length = is_moved_BL.shape[1]
  block = block or length
  number_L = jnp.arange(length) // block
  scores_BL = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)
  # Rank of every token among the tokens of its block and of the blocks before, in random order.
  rank_BL = jnp.argsort(jnp.lexsort((scores_BL, jnp.broadcast_to(number_L, scores_BL.shape))))
  return jnp.where(is_moved_BL, rank_BL + number_L + 1, number_L * (block + 1)).astype(jnp.int32)
