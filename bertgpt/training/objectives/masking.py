"""Masking: which tokens are predicted, and which tokens are shown in their place.

Axes: B rows, L length, K prediction slots per row, V vocabulary, W words per row.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy
from bertgpt.training.objectives import words
from bertgpt.training.objectives.objective import Batch, Sums, name_sums

# What is drawn for a row -> the number that is folded into its key. Two draws with the same number
# would have the same random bits. Existing runs depend on the numbers: append new ones.
PLACES, KINDS, TOKENS, COUNT, SAMPLES = range(5)


def init_inputs(batch: Batch) -> Inputs:
  """Returns inputs with which a masked LM creates all its parameters, with one slot per row.

  Args:
    batch: zeros, before it is corrupted.
  """
  slots_BK = jnp.zeros((batch["tokens"].shape[0], 1), jnp.int32)
  return Inputs.of(batch)._replace(predict_positions_BK=slots_BK)


def weigh_mlm(batch: Batch, name: str = "mlm") -> dict[str, jax.Array]:
  """Returns the weight of the masked-LM loss: the number of predicted tokens.

  Args:
    batch: corrupted batch.
    name: prefix of the metric.
  """
  return {f"{name}_loss": batch["predict_weights"].sum()}


def score_mlm(prediction: cross_entropy.Prediction, batch: Batch, loss_chunk: int,
              name: str = "mlm") -> Sums:
  """Returns the sums of the masked-LM loss and accuracy.

  Args:
    prediction: prediction for the slots, [B, K].
    batch: corrupted batch.
    loss_chunk: `config.objective.loss_chunk`.
    name: prefix of the metrics.
  """
  weights_BK = batch["predict_weights"]
  scores = cross_entropy.score(prediction, batch["predict_targets"], weights_BK, loss_chunk)
  return name_sums(name, scores, weights_BK)


def make_corrupt(config: ConfigDict, vocabulary: Vocabulary) -> Callable:
  """Returns (batch, key, row_ids_B) -> batch with some tokens replaced and the slots filled.

  The result has the arrays of the batch, and `predict_positions` and `predict_targets`, int32
  [B, K], and `predict_weights`, float32 [B, K]. The result for a row depends only on the key and
  its row id.

  Args:
    config: a whole config; of its phases, only the first is read.
    vocabulary: vocabulary of the tokenizer.
  """
  slots = config_lib.max_predictions(config, config.phases[0])
  objective, rule = config.objective, MASK_RULES[config.objective.mask_rule]
  choose = words.choose_words if objective.whole_words else choose_tokens
  if objective.ngram > 1:
    choose = functools.partial(words.choose_ngrams, longest=objective.ngram)
  is_special_V = special_mask(vocabulary)
  is_candidate_V = rule.takes_specials | ~is_special_V
  drawn_ids = np.flatnonzero(rule.draws_specials | ~is_special_V[:vocabulary.size])

  def corrupt(batch, key, row_ids_B):
    tokens_BL = batch["tokens"]
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids_B)
    keys_of = lambda draw: jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, draw)
    is_candidate_BL = (batch["sequence_ids"] > 0) & jnp.asarray(is_candidate_V)[tokens_BL]
    count_B = rule.draw_count(keys_of(COUNT), batch["sequence_ids"] > 0, objective.mask_prob, slots)
    continues_BL = words.continues_words(vocabulary, tokens_BL) if objective.whole_words else None
    if objective.whole_words and rule.takes_specials:  # A special token is a word of its own.
      is_special_BL = jnp.asarray(is_special_V)[tokens_BL]
      follows_BL = jnp.pad(is_special_BL[:, :-1], ((0, 0), (1, 0)))
      continues_BL &= ~(is_special_BL | follows_BL)
    order_BL, count_B = choose(keys_of(PLACES), is_candidate_BL, continues_BL, count_B)
    positions_BK = order_BL[:, :slots].astype(jnp.int32)
    weights_BK = (jnp.arange(slots) < count_B[:, None]).astype(jnp.float32)
    targets_BK = jnp.take_along_axis(tokens_BL, positions_BK, axis=1)
    shown_BK = replace_tokens(keys_of(KINDS), keys_of(TOKENS), targets_BK, objective,
                              vocabulary.mask_id, drawn_ids)
    shown_BK = jnp.where(weights_BK > 0, shown_BK, targets_BK)
    return {**batch, "tokens": put(tokens_BL, positions_BK, shown_BK),
            "predict_positions": positions_BK, "predict_targets": targets_BK,
            "predict_weights": weights_BK}

  return corrupt


def round_count(keys_B: jax.Array, is_text_BL: jax.Array, mask_prob: float,
                slots: int) -> jax.Array:
  """Returns the number of tokens to predict in every row, int32 [B].

  round(length * mask_prob), at least 1, at most `slots`; 0 in an empty row
  (create_pretraining_data.py, google-research/bert, 2018).

  Args:
    keys_B: not read.
    is_text_BL: bool, tokens that are not padding, [CLS] and [SEP] included.
    mask_prob: share of these tokens that is predicted.
    slots: prediction slots per row.
  """
  del keys_B
  length_B = is_text_BL.sum(1)
  count_B = jnp.clip(jnp.round(length_B * mask_prob).astype(jnp.int32), 1, slots)
  return jnp.where(length_B > 0, count_B, 0)


def round_count_by_chance(keys_B: jax.Array, is_text_BL: jax.Array, mask_prob: float,
                          slots: int) -> jax.Array:
  """Returns the number of tokens to predict in every row, int32 [B], rounded at random.

  floor(length * mask_prob + u) with u uniform in [0, 1), possibly 0, at most `slots`.

  Args:
    keys_B: random keys, one per row. For the other arguments, see `round_count`.

  References:
    facebookresearch/fairseq, data/mask_tokens_dataset.py, 2019
  """
  chance_B = jax.vmap(jax.random.uniform)(keys_B)
  length_B = is_text_BL.sum(1)
  return jnp.minimum(jnp.floor(length_B * mask_prob + chance_B).astype(jnp.int32), slots)


def count_draws(keys_B: jax.Array, is_text_BL: jax.Array, mask_prob: float,
                slots: int) -> jax.Array:
  """Returns the number of tokens to predict in every row, int32 [B], with one draw per token.

  Every token counts with probability `mask_prob`; possibly 0, at most `slots`.

  Args:
    keys_B: random keys, one per row. For the other arguments, see `round_count`.

  References:
    AnswerDotAI/ModernBERT, src/sequence_packer.py, 2024
  """
  length = is_text_BL.shape[1]
  draws_BL = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)
  return jnp.minimum((is_text_BL & (draws_BL < mask_prob)).sum(1), slots)


class MaskRule(NamedTuple):
  """Which tokens are predicted, and which may be shown in their place.

  Attributes:
    takes_specials: whether special tokens of a sequence are predicted too.
    draws_specials: whether a random token may be a special one.
    draw_count: (keys, which tokens are text, `mask_prob`, slots) -> tokens to predict per row.
  """

  takes_specials: bool
  draws_specials: bool
  draw_count: Callable[[jax.Array, jax.Array, float, int], jax.Array]


# The sources of the rules, in order: google-research/bert, create_pretraining_data.py, 2018;
# facebookresearch/fairseq, data/mask_tokens_dataset.py, 2019; AnswerDotAI/ModernBERT,
# src/sequence_packer.py, 2024.
MASK_RULES: Mapping[str, MaskRule] = {
    "bert": MaskRule(takes_specials=False, draws_specials=True, draw_count=round_count),
    "fairseq": MaskRule(takes_specials=True, draws_specials=False,
                        draw_count=round_count_by_chance),
    "bernoulli": MaskRule(takes_specials=True, draws_specials=True, draw_count=count_draws),
}


def choose_tokens(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array | None,
                  count_B: jax.Array) -> words.Chosen:
  """Chooses `count_B` candidates in every row, uniformly, in random order.

  Args:
    keys_B: random keys, one per row.
    is_candidate_BL: bool, tokens that may be predicted.
    continues_BL: not read.
    count_B: int32, tokens to choose in every row.
  """
  del continues_BL
  length = is_candidate_BL.shape[1]
  scores_BL = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)
  order_BL = jnp.argsort(jnp.where(is_candidate_BL, scores_BL, 2.0), axis=1)
  return order_BL, jnp.minimum(count_B, is_candidate_BL.sum(1))


def replace_tokens(kind_keys_B: jax.Array, token_keys_B: jax.Array, targets_BK: jax.Array,
                   objective: ConfigDict, mask_id: int, drawn_ids: np.ndarray) -> jax.Array:
  """Draws the tokens that the model sees in place of the targets.

  A target becomes [MASK] with probability `replace_with_mask`, a uniform id among `drawn_ids` with
  probability `replace_with_random`, and otherwise stays (Devlin et al. 2018, 3.1).

  Args:
    kind_keys_B, token_keys_B: random keys, one per row.
    targets_BK: int32 ids.
    objective: `config.objective`.
    mask_id: id of [MASK].
    drawn_ids: ids from which random tokens are drawn.
  Returns:
    int32 [B, K].
  """
  slots = targets_BK.shape[1]
  draw_id = lambda key: jax.random.randint(key, (slots,), 0, len(drawn_ids))
  kind_BK = jax.vmap(lambda key: jax.random.uniform(key, (slots,)))(kind_keys_B)
  random_BK = jax.vmap(draw_id)(token_keys_B)
  if not np.array_equal(drawn_ids, np.arange(len(drawn_ids))):
    random_BK = jnp.asarray(drawn_ids, jnp.int32)[random_BK]
  with_mask = objective.replace_with_mask
  shown_BK = jnp.where(kind_BK < with_mask + objective.replace_with_random, random_BK, targets_BK)
  return jnp.where(kind_BK < with_mask, mask_id, shown_BK)


def put(tokens_BL: jax.Array, positions_BK: jax.Array, values_BK: jax.Array) -> jax.Array:
  """Returns the tokens with those at some positions replaced, int32 [B, L].

  Args:
    tokens_BL: int32.
    positions_BK: int32, different ones in every row.
    values_BK: int32, the new tokens.
  """
  rows_B1 = jnp.arange(tokens_BL.shape[0])[:, None]
  return tokens_BL.at[rows_B1, positions_BK].set(values_BK, unique_indices=True)


def special_mask(vocabulary: Vocabulary) -> np.ndarray:
  """Returns which tokens are special, bool [padded vocabulary].

  Args:
    vocabulary: vocabulary of the tokenizer.
  """
  is_special_V = np.zeros(config_lib.padded_vocab_size(vocabulary.size), bool)
  is_special_V[list(vocabulary.special_ids)] = True
  return is_special_V
