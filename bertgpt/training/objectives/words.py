"""Which whole words, and which runs of words, are predicted.

Axes: B rows, L length, W words per row, N lengths of a run.
"""

import jax
import jax.numpy as jnp

from bertgpt.data.tokens.vocabulary import Vocabulary

# (order_BL: all positions of a row, the chosen ones first; int32 [B], the number of chosen ones)
Chosen = tuple[jax.Array, jax.Array]


def continues_words(vocabulary: Vocabulary, tokens_BL: jax.Array) -> jax.Array:
  """Returns which tokens continue the word of the token before them, bool [B, L].

  Args:
    vocabulary: vocabulary of the tokenizer.
    tokens_BL: int32.
  """
  ends_BL = jnp.asarray(vocabulary.ends_word)[tokens_BL]
  after_end_BL = jnp.pad(ends_BL[:, :-1], ((0, 0), (1, 0)))
  return jnp.asarray(vocabulary.continues_word)[tokens_BL] & ~after_end_BL


def choose_words(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array,
                 count_B: jax.Array) -> Chosen:
  """Chooses whole words in random order, skipping a word that would exceed `count_B` tokens.

  A word is a token and the tokens after it that continue it; only candidates belong to
  words (create_pretraining_data.py, google-research/bert, 2019).

  Args:
    keys_B: random keys, one per row.
    is_candidate_BL: bool, tokens that may be predicted.
    continues_BL: bool, tokens that continue the word before them.
    count_B: int32, tokens to choose in every row, at most.
  Returns:
    The chosen positions, from left to right.
  """
  length = is_candidate_BL.shape[1]
  word_BL, size_BW = find_words(is_candidate_BL, continues_BL)
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
  return jnp.argsort(~chosen_BL, axis=1, stable=True), taken_B


def choose_ngrams(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array | None,
                  count_B: jax.Array, *, longest: int) -> Chosen:
  """Chooses runs of up to `longest` words, the shorter ones more often.

  Words are visited in random order. At each word, a length n is drawn with probability proportional
  to 1 / n, among the lengths that fit the row. A shorter run is taken if the tokens of n words
  would exceed `count_B`, and none if one of its words is already taken (create_pretraining_data.py,
  google-research/albert, 2019).

  Args:
    continues_BL: bool, tokens that continue the word before them; None: every token is a word.
    longest: words of the longest run. For the other arguments, see `choose_words`.
  Returns:
    The chosen positions, from left to right.
  """
  rows, length = is_candidate_BL.shape
  word_BL, size_BW = find_words(is_candidate_BL, continues_BL)
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
  return jnp.argsort(~chosen_BL, axis=1, stable=True), taken_B


def find_words(is_candidate_BL: jax.Array, continues_BL: jax.Array | None
               ) -> tuple[jax.Array, jax.Array]:
  """Returns the index of every token's word, from 1 on, and the number of tokens of every word.

  Args:
    is_candidate_BL: bool, tokens that belong to words.
    continues_BL: bool, tokens that continue the word before them; None: every token is a word.
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
