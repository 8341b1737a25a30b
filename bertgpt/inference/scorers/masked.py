"""Scores of tokens given all the others, by an encoder that sees each of them once as [MASK].

The sum over a text is its pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659), which is
not the log-probability of the text.

A model with the ability "pseudo_score" returns a pair for `Inputs` with positions to predict; its
first element is the logits at these positions.

Axes: B rows, L length, V vocabulary.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.config import families
from bertgpt.data.batches import buckets
from bertgpt.data.tokens import marks
from bertgpt.inference.scorers.scorer import Joined, Row, Scorer
from bertgpt.models import Inputs, precision
from bertgpt.runs.trained import Trained

NUM_MARKS = 2  # [CLS] and [SEP] around a text.


def cut(trained: Trained, ids: np.ndarray, window: int, stride: int) -> list[Row]:
  """Cuts a text into pieces that fit between [CLS] and [SEP].

  Args:
    trained: the model; not used.
    ids: int [N].
    window: maximum number of tokens per row, including [CLS] and [SEP].
    stride: not used: pieces do not overlap.
  """
  del trained, stride
  room = window - NUM_MARKS
  return [Row(ids[i:i + room], 0) for i in range(0, len(ids), room)]


def join(trained: Trained, context: np.ndarray, ids: np.ndarray, window: int) -> Joined:
  """Puts a text after its context, whose first tokens are left out if the row is too long.

  Args:
    trained: the model; not used.
    context: int [C].
    ids: int [N].
    window: maximum number of tokens of the row, including [CLS] and [SEP].
  """
  del trained
  whole = np.concatenate([context, ids]).astype(np.int32)
  tokens = whole[-(window - NUM_MARKS):]
  return Joined(Row(tokens, max(len(tokens) - len(ids), 0)), len(whole) - len(tokens))


def score(trained: Trained, rows: Sequence[Row], batch_size: int) -> list[np.ndarray]:
  """Returns the log-probabilities of the scored tokens of every row.

  Each token takes one pass of its row through the model.

  Args:
    trained: the model.
    rows: result of `cut`.
    batch_size: passes per batch.
  Returns:
    float32 [N - first] each, in nats.
  """
  params, tokenizer = jax.device_put(trained.params), trained.tokenizer
  around = marks.of_encoder(tokenizer, families.find(trained.config).cls_last)
  whole = [around.enclose(row.tokens) for row in rows]
  scores = [np.zeros(len(row.tokens) - row.first, np.float32) for row in rows]
  # (row, index of a scored token in it), one per pass.
  places = np.concatenate([np.zeros((0, 2), int), *(
      np.stack([np.full(len(at), i), at], axis=1)
      for i, row in enumerate(rows) for at in [np.arange(row.first, len(row.tokens))])])
  lengths = np.array([len(row) for row in whole], int)[places[:, 0]]
  for which, size in buckets.batches(lengths, batch_size, trained.config.model.max_positions):
    tokens_BL = buckets.pad([whole[i] for i, _ in places[which]], size, batch_size,
                            is_full=len(places) > batch_size)
    fill = (0, len(tokens_BL) - len(which))
    with precision.matmul_precision(trained.config):
      logp_B = jax.device_get(_score(
          trained.model, params, tokens_BL, np.pad([lengths[j] for j in which], fill),
          np.pad(places[which, 1] + around.num_before, fill), tokenizer.mask_id))
    for (i, at), logp in zip(places[which], logp_B, strict=False):
      scores[i][at - rows[i].first] = logp
  return scores


@functools.partial(jax.jit, static_argnums=0)
def _score(model, params, tokens_BL, lengths_B, at_B, mask_id):
  """Returns the log-probabilities [B] of the tokens at `at_B`, which the model sees as [MASK]."""
  rows_B = jnp.arange(len(tokens_BL))
  inputs = Inputs.of_texts(tokens_BL.at[rows_B, at_B].set(mask_id), lengths_B,
                           families.FAMILIES[model.config.family].cls_last)
  inputs = inputs._replace(predict_positions_BK=at_B[:, None])
  logits_B1V = model.apply({"params": params}, inputs, method="predict").logits()
  logp_BV = jax.nn.log_softmax(logits_B1V[:, 0, :model.config.vocab_size])
  return logp_BV[rows_B, tokens_BL[rows_B, at_B]]


SCORER = Scorer(
    name="pseudo",
    how=lambda trained: "each token masked once",
    by_line=True,
    is_likelihood=False,
    cut=cut,
    join=join,
    score=score,
    lengths=lambda trained, window: (1, window - NUM_MARKS),
    describe=lambda rows, window, stride: (
        f"{rows} lines or parts of lines of at most {window - NUM_MARKS} tokens, each token masked "
        "once"),
)
