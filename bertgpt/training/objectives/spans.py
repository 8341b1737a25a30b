"""Which spans of words are predicted, each in a context of its own.

Axes: B rows, L length, W words per row, N lengths of a span, S spans.
"""

import jax
import jax.numpy as jnp

from bertgpt.training.objectives import words


def choose_spans(keys_B: jax.Array, is_candidate_BL: jax.Array, continues_BL: jax.Array | None,
                 count_B: jax.Array, *, longest: int, context: int) -> words.Chosen:
  """Chooses spans of up to `longest` words, each in a context of its own, from left to right.

  The length n of a span is drawn with probability proportional to 1 / n. The span begins at the
  first word after l tokens, with l uniform in 0..n * context - 1, and the next context begins
  `context` times the span's tokens later, minus l. A shorter span is taken if the tokens of n words
  would exceed `count_B`. Single tokens then fill up to `count_B` (data_utils.py,
  github.com/zihangdai/xlnet, 2019, which says words but counts pieces, chooses a fixed number of
  tokens in each half of a row, and may take special tokens as single ones).

  Args:
    keys_B: random keys, one per row.
    is_candidate_BL: bool, tokens that may be predicted.
    continues_BL: bool, tokens that continue the word before them; None: every token is a word.
    count_B: int32, tokens to choose in every row.
    longest: words of the longest span.
    context: length of a span's context, in tokens per token of the span.
  Returns:
    The positions of spans from left to right, then those of single tokens in random order; and the
    number of both.
  """
  length = is_candidate_BL.shape[1]
  word_BL, size_BW = words.find_words(is_candidate_BL, continues_BL)
  draws_B2S = jax.vmap(lambda key: jax.random.uniform(key, (2, length // (context + 1) + 1)))(
      keys_B)
  is_taken_BW = _take_spans(word_BL, size_BW, draws_B2S, count_B, longest, context)
  is_taken_BL = jnp.take_along_axis(is_taken_BW, word_BL, axis=1) & is_candidate_BL
  scores_BL = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (length,)))(
      keys_B)
  scores_BL = jnp.where(is_taken_BL, -1.0, jnp.where(is_candidate_BL, scores_BL, 2.0))
  return (jnp.argsort(scores_BL, axis=1, stable=True),
          jnp.minimum(count_B, is_candidate_BL.sum(1)))


def _take_spans(word_BL, size_BW, draws_B2S, count_B, longest, context):
  """Returns which words belong to spans, bool [B, W].

  Args:
    word_BL, size_BW: result of `words.find_words`.
    draws_B2S: uniform in [0, 1), for the length and the place of every span.
    count_B, longest, context: see `choose_spans`.
  """
  length, num_words_B = word_BL.shape[1], word_BL.max(1)
  rows_B = jnp.arange(len(word_BL))
  before_BW = jnp.pad(jnp.cumsum(size_BW.at[:, 0].set(0), axis=1), ((0, 0), (0, longest)),
                      mode="edge")  # Tokens of words 1..w.
  # The first word that begins at or after a position, and the position at which a word begins.
  next_BL = jnp.pad(jax.lax.cummax(word_BL, axis=1)[:, :-1], ((0, 0), (1, 0))) + 1
  begins_BW = jnp.full_like(size_BW, length).at[rows_B[:, None], word_BL].min(jnp.arange(length))
  lengths_N, words_W = jnp.arange(1, longest + 1), jnp.arange(length + 1)
  shares_N = jnp.cumsum(1 / lengths_N)

  def add_span(state, draws_B2):
    at_B, taken_B, is_taken_BW = state
    drawn_B = (draws_B2[:, :1] * shares_N[-1] >= shares_N).sum(1) + 1
    left_B = jnp.floor(draws_B2[:, 1] * drawn_B * context).astype(jnp.int32)
    first_B = next_BL[rows_B, jnp.minimum(at_B + left_B, length - 1)]
    ends_BN = first_B[:, None] + lengths_N - 1  # Index of the last word.
    size_BN = before_BW[rows_B[:, None], ends_BN] - before_BW[rows_B, first_B - 1][:, None]
    fits_BN = ((lengths_N <= drawn_B[:, None]) & (taken_B[:, None] + size_BN <= count_B[:, None])
               & (ends_BN <= num_words_B[:, None]) & (at_B + left_B < length)[:, None])
    n_B = (fits_BN * lengths_N).max(1)
    size_B = jnp.where(n_B > 0, size_BN[rows_B, n_B - 1], 0)
    is_taken_BW |= (words_W >= first_B[:, None]) & (words_W < (first_B + n_B)[:, None])
    last_B = jnp.minimum(first_B + n_B - 1, length)
    end_B = begins_BW[rows_B, last_B] + size_BW[rows_B, last_B]
    at_B = jnp.where(n_B > 0, end_B + size_B * context - left_B, at_B + left_B + context)
    return (at_B, taken_B + size_B, is_taken_BW), None

  state = jnp.zeros_like(count_B), jnp.zeros_like(count_B), jnp.zeros_like(size_BW, bool)
  (_, _, is_taken_BW), _ = jax.lax.scan(add_span, state, jnp.moveaxis(draws_B2S, 2, 0))
  return is_taken_BW
