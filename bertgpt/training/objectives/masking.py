"""Masking: the choice of tokens that are predicted, and of the tokens shown in their place.

Axes: B rows, L length, K prediction slots per row, V vocabulary, W words per row.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.models import Inputs, cross_entropy
from bertgpt.training.objectives.objective import Batch, Sums, name_sums

# (positions_BK int32, distinct if chosen; weights_BK float32, 1 for chosen slots and 0 for others)
Slots = tuple[jax.Array, jax.Array]


def init_inputs(batch: Batch) -> Inputs:
  """Returns inputs with which a masked LM creates all its parameters, with one slot per row.

  Args:
    batch: zeros, before it is corrupted.
  """
  slots_BK = jnp.zeros((batch["tokens"].shape[0], 1), jnp.int32)
  return Inputs.of(batch)._replace(predict_positions_BK=slots_BK)


def weigh_mlm(batch: Batch) -> dict[str, jax.Array]:
  """Returns the weight of the masked-LM loss: the number of predicted tokens.

  Args:
    batch: corrupted batch.
  """
  return {"mlm_loss": batch["predict_weights"].sum()}


def score_mlm(prediction: cross_entropy.Prediction, batch: Batch, loss_chunk: int) -> Sums:
  """Returns the sums of the masked-LM loss and accuracy.

  Args:
    prediction: prediction for the slots, [B, K].
    batch: corrupted batch.
    loss_chunk: `config.objective.loss_chunk`.
  """
  weights_BK = batch["predict_weights"]
  scores = cross_entropy.score(prediction, batch["predict_targets"], weights_BK, loss_chunk)
  return name_sums("mlm", scores, weights_BK)


def make_corrupt(config: ConfigDict, vocabulary: Vocabulary) -> Callable:
  """Returns (batch, key, row_ids_B) -> batch with some tokens replaced and the slots filled.

  The result has the arrays of the batch, and `predict_positions` and `predict_targets`, int32
  [B, K], and `predict_weights`, float32 [B, K]. The result for a row depends only on the key and
  its row id.

  Args:
    config: a whole config.
    vocabulary: vocabulary of the tokenizer.
  """
  slots = {p.seq_len: config_lib.max_predictions(config, p) for p in config.phases}
  objective = config.objective
  choose = choose_words if objective.whole_words else choose_tokens
  if objective.ngram > 1:
    choose = functools.partial(choose_ngrams, longest=objective.ngram)
  is_special_V = np.zeros(config_lib.padded_vocab_size(vocabulary.size), bool)
  is_special_V[list(vocabulary.special_ids)] = True

  def corrupt(batch, key, row_ids_B):
    tokens_BL = batch["tokens"]
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids_B)
    keys_B3 = jax.vmap(lambda k: jax.random.split(k, 3))(row_keys_B)
    is_candidate_BL = (batch["sequence_ids"] > 0) & ~jnp.asarray(is_special_V)[tokens_BL]
    count_B = count_predictions((batch["sequence_ids"] > 0).sum(1), objective.mask_prob,
                                slots[tokens_BL.shape[1]])
    continues_BL = continues_words(vocabulary, tokens_BL) if objective.whole_words else None
    positions_BK, weights_BK = choose(keys_B3[:, 0], is_candidate_BL, continues_BL, count_B,
                                      slots[tokens_BL.shape[1]])
    targets_BK = jnp.take_along_axis(tokens_BL, positions_BK, axis=1)
    shown_BK = replace_tokens(keys_B3[:, 1], keys_B3[:, 2], targets_BK, objective, vocabulary)
    shown_BK = jnp.where(weights_BK > 0, shown_BK, targets_BK)
    return {**batch, "tokens": _put(tokens_BL, positions_BK, shown_BK),
            "predict_positions": positions_BK, "predict_targets": targets_BK,
            "predict_weights": weights_BK}

  return corrupt


def continues_words(vocabulary: Vocabulary, tokens_BL: jax.Array) -> jax.Array:
  """Returns which tokens continue the word of the token before them, bool [B, L].

  Args:
    vocabulary: vocabulary of the tokenizer.
    tokens_BL: int32.
  """
  ends_BL = jnp.asarray(vocabulary.ends_word)[tokens_BL]
  after_end_BL = jnp.pad(ends_BL[:, :-1], ((0, 0), (1, 0)))
  return jnp.asarray(vocabulary.continues_word)[tokens_BL] & ~after_end_BL


def count_predictions(length_B: jax.Array, mask_prob: float, slots: int) -> jax.Array:
  """Returns the number of tokens to predict in every row, int32 [B].

  round(length * mask_prob), at least 1, at most `slots`; 0 in an empty row
  (create_pretraining_data.py, google-research/bert, 2018).

  Args:
    length_B: int32, tokens per row with [CLS] and [SEP].
    mask_prob: share of these tokens that is predicted.
    slots: prediction slots per row.
  """
  count_B = jnp.clip(jnp.round(length_B * mask_prob).astype(jnp.int32), 1, slots)
  return jnp.where(length_B > 0, count_B, 0)


def choose_tokens(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array | None,
                  count_B: jax.Array, slots: int) -> Slots:
  """Chooses `count_B` candidates in every row, uniformly.

  Args:
    keys_B: random keys, one per row.
    is_candidate_BL: bool, tokens that may be predicted.
    continues_BL: not read.
    count_B: int32, tokens to choose in every row.
    slots: K, at least the largest count.
  Returns:
    The slots, positions in random order.
  """
  del continues_BL
  length = is_candidate_BL.shape[1]
  scores_BL = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)
  order_BL = jnp.argsort(jnp.where(is_candidate_BL, scores_BL, 2.0), axis=1)
  count_B = jnp.minimum(count_B, is_candidate_BL.sum(1))
  return _slots(order_BL, count_B, slots)


def choose_words(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array,
                 count_B: jax.Array, slots: int) -> Slots:
  """Chooses whole words in random order, skipping a word that would exceed `count_B` tokens.

  A word is a token and the tokens after it that continue it; only candidates belong to
  words (create_pretraining_data.py, google-research/bert, 2019).

  Args:
    continues_BL: bool, tokens that continue the word before them. For the other arguments, see
      `choose_tokens`.
  Returns:
    The slots, positions from left to right.
  """
  length = is_candidate_BL.shape[1]
  word_BL, size_BW = _find_words(is_candidate_BL, continues_BL)
  size_BW = size_BW.at[:, 0].set(length + 1)  # Too long to be taken.
  scores_BW = jax.vmap(lambda key: jax.random.uniform(key, (length + 1,)))(keys_B)
  order_BW = jnp.argsort(jnp.where(size_BW > 0, scores_BW, 2.0), axis=1)

  def take(taken_B, word_B):
    size_B = jnp.take_along_axis(size_BW, word_B[:, None], axis=1)[:, 0]
    fits_B = taken_B + size_B <= count_B
    return taken_B + jnp.where(fits_B, size_B, 0), fits_B

  taken_B, fits_WB = jax.lax.scan(take, jnp.zeros_like(count_B), order_BW.T)
  rank_BW = jnp.argsort(order_BW, axis=1)
  chosen_BW = jnp.take_along_axis(fits_WB.T & (jnp.take_along_axis(size_BW, order_BW, 1) > 0),
                                  rank_BW, axis=1)
  chosen_BL = jnp.take_along_axis(chosen_BW, word_BL, axis=1) & is_candidate_BL
  return _slots(jnp.argsort(~chosen_BL, axis=1, stable=True), taken_B, slots)


def choose_ngrams(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array | None,
                  count_B: jax.Array, slots: int, *, longest: int) -> Slots:
  """Chooses runs of up to `longest` words, the shorter ones more often.

  Words are visited in random order. At each word, a length n is drawn with probability proportional
  to 1 / n, among the lengths that fit the row. A shorter run is taken if the tokens of n words
  would exceed `count_B`, and none if one of its words is already taken (create_pretraining_data.py,
  google-research/albert, 2019).

  Args:
    continues_BL: bool, tokens that continue the word before them; None: every token is a word.
    longest: words of the longest run. For the other arguments, see `choose_tokens`.
  Returns:
    The slots, positions from left to right.
  """
  rows, length = is_candidate_BL.shape
  word_BL, size_BW = _find_words(is_candidate_BL, continues_BL)
  num_words_B = word_BL.max(1)
  before_BW = jnp.pad(jnp.cumsum(size_BW.at[:, 0].set(0), axis=1), ((0, 0), (0, longest)),
                      mode="edge")  # Tokens of words 1..w.
  draws_B2W = jax.vmap(lambda key: jax.random.uniform(key, (2, length + 1)))(keys_B)
  is_word_BW = (jnp.arange(length + 1) > 0) & (jnp.arange(length + 1) <= num_words_B[:, None])
  order_BW = jnp.argsort(jnp.where(is_word_BW, draws_B2W[:, 0], 2.0), axis=1)
  rows_B = jnp.arange(rows)
  lengths_N = jnp.arange(1, longest + 1)
  shares_N = jnp.cumsum(1 / lengths_N)

  def visit(state, word_B):
    taken_B, is_taken_BW = state
    at_BN = word_B[:, None] + lengths_N - 1
    size_BN = before_BW[rows_B[:, None], at_BN] - before_BW[rows_B, word_B - 1][:, None]
    room_B = jnp.minimum(longest, num_words_B - word_B + 1)
    drawn_B = draws_B2W[rows_B, 1, word_B] * shares_N[jnp.maximum(room_B, 1) - 1]
    drawn_B = (drawn_B[:, None] >= shares_N).sum(1) + 1
    fits_BN = (lengths_N <= drawn_B[:, None]) & (taken_B[:, None] + size_BN <= count_B[:, None])
    n_B = (fits_BN * lengths_N).max(1)
    is_in_BN = lengths_N <= n_B[:, None]
    is_free_B = ~(is_taken_BW[rows_B[:, None], at_BN] & is_in_BN).any(1)
    is_new_B = (n_B > 0) & is_free_B & is_word_BW[rows_B, word_B]
    new_BN = is_in_BN & is_new_B[:, None]
    taken_B += jnp.where(is_new_B, size_BN[rows_B, n_B - 1], 0)
    return (taken_B, is_taken_BW.at[rows_B[:, None], at_BN].max(new_BN)), None

  nothing = jnp.zeros((rows, length + 1 + longest), bool)
  (taken_B, is_taken_BW), _ = jax.lax.scan(visit, (jnp.zeros_like(count_B), nothing), order_BW.T)
  chosen_BL = jnp.take_along_axis(is_taken_BW, word_BL, axis=1) & is_candidate_BL
  return _slots(jnp.argsort(~chosen_BL, axis=1, stable=True), taken_B, slots)


def _find_words(is_candidate_BL, continues_BL):
  """Returns the number of every token's word, from 1 on, and the tokens of every word.

  Returns:
    word_BL int32, 0 for tokens that are not candidates; size_BW int32, whose entry 0 has no
    meaning.
  """
  rows, length = is_candidate_BL.shape
  starts_BL = is_candidate_BL
  if continues_BL is not None:
    follows_BL = jnp.pad(is_candidate_BL[:, :-1], ((0, 0), (1, 0)))
    starts_BL &= ~(continues_BL & follows_BL)
  word_BL = jnp.where(is_candidate_BL, jnp.cumsum(starts_BL, axis=1), 0)
  size_BW = jnp.zeros((rows, length + 1), jnp.int32)
  return word_BL, size_BW.at[jnp.arange(rows)[:, None], word_BL].add(1)


def _slots(order_BL, count_B, slots):
  positions_BK = order_BL[:, :slots].astype(jnp.int32)
  return positions_BK, (jnp.arange(slots) < count_B[:, None]).astype(jnp.float32)


def replace_tokens(kind_keys_B: jax.Array, token_keys_B: jax.Array, targets_BK: jax.Array,
                   objective: ConfigDict, vocabulary: Vocabulary) -> jax.Array:
  """Draws the tokens that the model sees in place of the targets.

  A target becomes [MASK] with probability `replace_with_mask`, a uniform id of the whole vocabulary
  with probability `replace_with_random`, and otherwise stays (Devlin et al. 2018, 3.1).

  Args:
    kind_keys_B, token_keys_B: random keys, one per row.
    targets_BK: int32 ids.
    objective: `config.objective`.
    vocabulary: vocabulary of the tokenizer.
  Returns:
    int32 [B, K].
  """
  slots = targets_BK.shape[1]
  draw_id = lambda key: jax.random.randint(key, (slots,), 0, vocabulary.size)
  kind_BK = jax.vmap(lambda key: jax.random.uniform(key, (slots,)))(kind_keys_B)
  random_BK = jax.vmap(draw_id)(token_keys_B)
  with_mask = objective.replace_with_mask
  shown_BK = jnp.where(kind_BK < with_mask + objective.replace_with_random, random_BK, targets_BK)
  return jnp.where(kind_BK < with_mask, vocabulary.mask_id, shown_BK)


def _put(tokens_BL, positions_BK, values_BK):
  rows_B1 = jnp.arange(tokens_BL.shape[0])[:, None]
  return tokens_BL.at[rows_B1, positions_BK].set(values_BK, unique_indices=True)
