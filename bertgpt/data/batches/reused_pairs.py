"""Streams of rows X A [SEP] B [SEP] [CLS], as XLNet with memory was trained on.

X is running text, and A continues it; X of the same row of the next step begins where A does, so
that the features of X can be the memory of that step.

Array of a batch in addition to those of every format:
  segment_ids  int32 [B, L]  0: X, A and its [SEP], 1: B and its [SEP], 2: [CLS]

Axes: R rows, N pieces of documents.
"""

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches.pairs import keep_lengths
from bertgpt.data.batches.parts import (
    NO_LABEL,
    PART,
    Plan,
    RowFormat,
    Texts,
    cut_stream,
    offsets_of,
    stream_starts,
)
from bertgpt.data.batches.sentences import assemble, specs


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator,
         num_streams: int) -> Plan:
  """Returns the rows of streams, in order: row r is step r // num_streams of its stream.

  The text is cut into streams of equal length. X has `objective.permutation_block` tokens; A and B
  fill the row. A ends at a random sentence boundary. B follows A or comes from a random place: with
  probability `data.random_next_prob`, and always if there is no boundary (data_utils.py,
  `_split_a_and_b` and `create_tfrecords`, github.com/zihangdai/xlnet, 2019). Every document ends
  with [SEP].

  Args:
    texts: documents of the plan.
    config: whole config; `data.random_next_prob` and `objective.permutation_block` are read.
    seq_len: tokens per row.
    rng: source of all randomness.
    num_streams: rows of a step.
  """
  reuse = config.objective.permutation_block
  room = seq_len - reuse - 3
  starts = stream_starts(texts)
  total = starts[-1]
  num_steps = max(1, (total // num_streams - 1) // reuse)
  row = np.arange(num_steps * num_streams)
  begin = np.minimum((row % num_streams) * (total // num_streams) + row // num_streams * reuse,
                     total)
  first_a = np.minimum(begin + reuse, total)
  edges = texts.bounds + np.repeat(np.arange(len(texts.documents) + 1),
                                   np.diff(texts.offsets, append=texts.offsets[-1] + 1))
  end_a, first_b, end_b = _draw_pairs(edges, first_a, room, config.data.random_next_prob, rng)
  length_a, length_b = keep_lengths(end_a - first_a, end_b - first_b, room)
  pieces = [_make_pieces(texts, starts, at, at + length, segment, column)
            for at, length, segment, column in (
                (begin, first_a - begin, 0, np.zeros_like(row)),
                (first_a, length_a, 0, first_a - begin),
                (first_b, length_b, 1, first_a - begin + length_a + 1))]
  marks = np.zeros((len(row), 3), PART)
  marks["segment"], marks["opens"], marks["closes"] = [0, 1, 2], [0, 0, 1], [1, 1, 0]
  after_a = first_a - begin + length_a
  marks["column"] = np.stack([after_a, after_a + length_b + 1, after_a + length_b + 2], axis=1)
  marks["document"] = pieces[0][0]["document"][np.searchsorted(pieces[0][1], row)][:, None]
  parts = np.concatenate([marks.ravel(), *(p for p, _ in pieces)])
  rows = np.concatenate([np.repeat(row, 3), *(r for _, r in pieces)])
  parts["sequence"], parts["label"] = 1, NO_LABEL
  order = np.lexsort((parts["column"], rows))
  return Plan(parts[order], offsets_of(np.bincount(rows, minlength=len(row))))


def has_one_sequence(config: ConfigDict) -> bool:
  """Returns whether every row is one sequence, followed only by padding: always."""
  del config
  return True


def _draw_pairs(edges, first, room, random_prob, rng):
  """Returns (end of A, begin of B, end of B), places [R] each, before A and B are shortened.

  Args:
    edges: places at which sentences begin, and the end of the stream, [S+1].
    first: first place of A, [R].
    room: tokens of A and B.
    random_prob: probability that B is from another place.
    rng: generator of the epoch.
  """
  last, total = len(edges) - 1, edges[-1]
  low = np.searchsorted(edges, first, side="right")  # The first boundary after the start of A.
  high = np.searchsorted(edges, first + room)  # The first one at which A and B are long enough.
  has_cut = high > low
  cut = np.where(has_cut, rng.integers(low, np.maximum(high, low + 1)), low)
  end_a = np.maximum(edges[np.minimum(cut, last)], first)
  is_random = (rng.random(len(first)) < random_prob) | ~has_cut
  wanted = np.clip(room - (end_a - first), 1, total)
  at = rng.integers(0, np.maximum(1, total - wanted), len(first))
  first_b = np.where(is_random, edges[np.searchsorted(edges, at, side="right") - 1], end_a)
  whole = np.where(is_random, np.searchsorted(edges, at + wanted), high)  # The end of a sentence.
  return end_a, first_b, np.maximum(edges[np.minimum(whole, last)], first_b)


def _make_pieces(texts, starts, begins, ends, segment, column):
  """Returns the parts of an interval of the stream in every row, and their rows."""
  cuts = cut_stream(starts, begins, ends)
  rows = np.repeat(np.arange(len(begins)), np.diff(cuts.offsets))
  parts = np.zeros(len(rows), PART)
  parts["document"] = texts.documents[cuts.document]
  parts["start"] = cuts.first
  parts["length"] = np.minimum(cuts.last, cuts.size - 1) - cuts.first
  parts["closes"] = cuts.last == cuts.size
  parts["column"] = cuts.column + column[rows]
  parts["segment"] = segment
  return parts, rows


# [CLS] is a part of its own; [SEP] ends A, B and documents. Nothing is predicted about the pair.
FORMAT = RowFormat(("cls_id", "sep_id"), has_one_sequence, plan, specs, assemble)
