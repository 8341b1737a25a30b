"""Scores of tokens given the tokens before them, by a decoder.

A model with the ability "score" has the methods `features(Inputs)` and `logits(features)`; the
logits at a token are the logits of the next token.

Axes: B rows, L length, D width, V vocabulary.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.data.batches import buckets
from bertgpt.data.tokens import marks
from bertgpt.inference.scorers.scorer import Joined, Row, Scorer
from bertgpt.models import Inputs, precision
from bertgpt.runs.trained import Trained


def cut(trained: Trained, ids: np.ndarray, window: int, stride: int) -> list[Row]:
  """Cuts a text into overlapping windows, after the token that is before a text.

  Args:
    trained: the model.
    ids: int [N].
    window: maximum number of tokens per row.
    stride: tokens scored with each row except the first, whose tokens are all scored.
  """
  before = [trained.start_id] if trained.start_id >= 0 else []
  ids = np.array([*before, *ids])
  return [Row(ids[first:end], scored - first)
          for first, scored, end in windows(len(ids), window, stride)]


class Rest(NamedTuple):
  """The end of a part of a document, which the next part follows.

  Attributes:
    tokens: the last ids: at most a window of scored ones, and those not scored yet.
    scored: number of them that have been scored or cannot be.
  """

  tokens: list[int]
  scored: int = 0


def cut_part(trained: Trained, rest: Rest | None, ids: np.ndarray, is_last: bool, window: int,
             stride: int) -> tuple[list[Row], Rest | None]:
  """Cuts a part of a document; the rows of all parts are those of `cut` for the whole document.

  Args:
    trained: the model.
    rest: the rest of the previous part; None: this part is the first.
    ids: int [N].
    is_last: whether the document ends here.
    window, stride: see `cut`.
  Returns:
    The rows that do not depend on later parts, and the rest; None: the document ends here.
  """
  if rest is None:
    rest = Rest([trained.start_id] if trained.start_id >= 0 else [])
  tokens, scored = np.array([*rest.tokens, *ids], np.int32), rest.scored
  rows = []
  if not scored and (is_last or len(tokens) >= window):
    scored = min(window, len(tokens))
    rows += [Row(tokens[:scored], 1)] if len(tokens) > 1 else []
  while scored and (scored + stride <= len(tokens) or (is_last and scored < len(tokens))):
    end = min(scored + stride, len(tokens))
    rows.append(Row(tokens[end - window:end], scored - (end - window)))
    scored = end
  keep = max(scored - window, 0)
  return rows, None if is_last else Rest(tokens[keep:].tolist(), scored - keep)


def windows(num_tokens: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """Yields (first, first scored, end) of the windows over a document.

  All tokens except the first are scored once, each given at least `size - stride` tokens before it,
  or all of them if there are fewer.

  Args:
    num_tokens: tokens of the document.
    size: maximum number of tokens per window.
    stride: tokens scored with each window except the first.
  """
  end = min(size, num_tokens)
  if num_tokens > 1:
    yield 0, 1, end
  while end < num_tokens:
    scored, end = end, min(end + stride, num_tokens)
    yield end - size, scored, end


def join(trained: Trained, context: np.ndarray, ids: np.ndarray, window: int) -> Joined:
  """Puts a text after its context, whose first tokens are left out if the row is too long.

  The context follows the token that begins a text, in models that have one. Only an empty context
  is replaced with the end of a document, as in lm-evaluation-harness.

  Args:
    trained: the model.
    context: int [C].
    ids: int [N]. The first one is not scored if nothing is before it.
    window: maximum number of tokens of the row.
  """
  before = [trained.start_id] if trained.start_id >= 0 else []
  if len(context):
    before = marks.of_decoder(trained.bos_id).enclose(context)
  whole = np.array([*before, *ids], np.int32)
  tokens = whole[-window:]
  return Joined(Row(tokens, max(len(tokens) - len(ids), 1)), len(whole) - len(tokens))


def score(trained: Trained, rows: Sequence[Row], batch_size: int) -> list[np.ndarray]:
  """Returns the log-probabilities of the scored tokens of every row.

  Args:
    trained: the model.
    rows: result of `cut`.
    batch_size: rows per batch.
  Returns:
    float32 [N - first] each, in nats.
  """
  ranked = rank(trained, [row.tokens for row in rows], batch_size)
  return [x.logp[row.first:] for x, row in zip(ranked, rows, strict=True)]


class Ranked(NamedTuple):
  """Scores of the tokens of a row, [N] each; the entries of the first token have no meaning.

  Attributes:
    logp: float32 log-probabilities, in nats.
    is_top: bool, no other token is likelier.
    is_top_allowed: bool, the token is allowed, and no other allowed token is likelier.
  """

  logp: np.ndarray
  is_top: np.ndarray
  is_top_allowed: np.ndarray


def rank(trained: Trained, rows: Sequence[np.ndarray], batch_size: int,
         banned_V: np.ndarray | None = None) -> list[Ranked]:
  """Scores tokens given the tokens before them in the row, and compares them with all others.

  Args:
    trained: the model.
    rows: int [N] each, of at most the model's positions.
    batch_size: rows per batch.
    banned_V: bool [vocab_size], tokens that are not allowed in `is_top_allowed`; None: none.
  """
  if banned_V is None:
    banned_V = np.zeros(trained.config.model.vocab_size, bool)
  ranked: list[Ranked] = [Ranked(*(np.zeros(0),) * 3)] * len(rows)
  params, most = jax.device_put(trained.params), trained.config.model.max_positions
  for which, size in buckets.batches([len(row) for row in rows], batch_size, most):
    tokens_BL = buckets.pad([rows[i] for i in which], size, batch_size,
                            is_full=len(rows) > batch_size)
    with precision.matmul_precision(trained.config):
      batch = jax.device_get(_rank(trained.model, params, tokens_BL, banned_V))
    for i, *arrays in zip(which, *batch, strict=False):
      ranked[i] = Ranked(*(x_L[:len(rows[i])] for x_L in arrays))
  return ranked


@functools.partial(jax.jit, static_argnums=0)
def _rank(model, params, tokens_BL, banned_V):
  """Returns `Ranked` arrays, [B, L] each. Logits are computed row by row to save memory."""
  lengths_B = jnp.full(len(tokens_BL), tokens_BL.shape[1])
  x_BLD = model.apply({"params": params}, Inputs.of_texts(tokens_BL, lengths_B), method="features")

  def rank_row(row):
    x_LD, targets_L = row
    logits_LV = model.apply({"params": params}, x_LD, method="logits")
    logits_LV = logits_LV[:, :model.config.vocab_size]
    target_L1 = jnp.take_along_axis(logits_LV, targets_L[:, None], axis=1)
    is_higher_LV = logits_LV > target_L1
    return (target_L1[:, 0] - jax.nn.logsumexp(logits_LV, axis=1), ~is_higher_LV.any(1),
            ~(is_higher_LV & ~banned_V).any(1) & ~banned_V[targets_L])

  found = jax.lax.map(rank_row, (x_BLD[:, :-1], tokens_BL[:, 1:]))
  return tuple(jnp.pad(x_BL, ((0, 0), (1, 0))) for x_BL in found)


def describe_start(trained: Trained) -> str:
  """Returns what the first token of a text is predicted from, in words."""
  if trained.start_id < 0:
    return "without their first tokens"
  if trained.bos_id < 0 and trained.start_id == trained.tokenizer.eod_id:
    return "after the end of a document"
  return f"after {trained.tokenizer.pieces[trained.start_id]}"


SCORER = Scorer(
    name="token",
    how=describe_start,
    by_line=False,
    is_likelihood=True,
    cut=cut,
    join=join,
    score=score,
    lengths=lambda trained, window: (2 - (trained.start_id >= 0),
                                     window - (trained.start_id >= 0)),
    describe=lambda rows, window, stride: (
        f"{rows} windows of {window} tokens, {stride} scored with each"),
)
