"""Rows as parts of documents: what every row format is made of.

A row is a few parts, a part is a span of one document between special tokens. A plan says which
parts make the rows; it is made from the lengths of documents and sentences alone, in whole-array
operations: no loop over documents, sentences or rows. The text is then put into rows, all tokens
of a batch at once.

Axes: D documents, S sentences, N parts, R rows, B rows of a batch, L tokens of a row.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.data.batches.windows import ranges

Batch = dict[str, np.ndarray]
Specs = dict[str, tuple[tuple[int, ...], type]]  # name -> (shape of a row, dtype)

NO_LABEL = -1

PART = np.dtype([
    ("document", "<i8"),
    ("start", "<i8"),      # first token of the span within the document
    ("length", "<i4"),     # tokens of the span; special tokens come on top
    ("column", "<i4"),     # of the part's first token, which is the opening one if it has one
    ("origin", "<i4"),     # column at which positions are 0
    ("sequence", "<i4"),   # 1, 2, ... within the row
    ("segment", "i1"),     # 0: A, 1: B
    ("label", "i1"),       # where a sentence pair opens, 0: next, 1: random; else NO_LABEL
    ("opens", "?"),        # begins with the opening token: [CLS], or GPT's end of document
    ("closes", "?"),       # ends with the closing token: [SEP], or GPT's end of document
], align=True)


class Plan(NamedTuple):
  """Row r is parts[offsets[r]:offsets[r + 1]], from left to right.

  Attributes:
    parts: PART [N].
    offsets: int64 [R+1].
  """

  parts: np.ndarray
  offsets: np.ndarray

  @property
  def num_rows(self) -> int:
    return len(self.offsets) - 1

  def take(self, rows: np.ndarray) -> "Plan":
    """The plan of the rows `rows`, integers [any], in this order."""
    counts = self.offsets[rows + 1] - self.offsets[rows]
    return Plan(self.parts[ranges(self.offsets[rows], counts)], offsets_of(counts))


class Texts(NamedTuple):
  """Some documents of a corpus, as if they were all there is.

  Attributes:
    documents: int64 [D], their numbers in the corpus.
    offsets: int64 [D+1], sentences before every document.
    bounds: int64 [S+1], tokens before every sentence.
  """

  documents: np.ndarray
  offsets: np.ndarray
  bounds: np.ndarray


def select(corpus, documents: np.ndarray) -> Texts:
  """The texts `documents`, int64 [D], in this order."""
  first = corpus.document_offsets[documents]
  counts = corpus.document_offsets[documents + 1] - first
  return Texts(documents, offsets_of(counts),
               offsets_of(corpus.sentence_lengths[ranges(first, counts)]))


def offsets_of(counts: np.ndarray) -> np.ndarray:
  """0, counts[0], counts[0] + counts[1], ...: int64 [len(counts) + 1]."""
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


# ------------------------------------------------------------------ stream
#
# Running text: the documents one after the other, each followed by one special token, so that
# document d takes the places starts[d]..starts[d + 1] of the stream.


def stream_starts(texts: Texts) -> np.ndarray:
  """First place of every document, and the end: int64 [D+1]."""
  return texts.bounds[texts.offsets] + np.arange(len(texts.offsets))


class Cuts(NamedTuple):
  """The pieces of documents that intervals of the stream consist of, int64 [N] each.

  Attributes:
    offsets: int64 [R+1], pieces before every interval.
    document: number within the `Texts`.
    first, last: places within the document, of `size`: its tokens and the special token.
    column: of the piece within its interval.
    rank: 0 for the first piece of an interval, 1 ...
  """

  offsets: np.ndarray
  document: np.ndarray
  first: np.ndarray
  last: np.ndarray
  size: np.ndarray
  column: np.ndarray
  rank: np.ndarray


def cut_stream(starts: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> Cuts:
  """Cuts the intervals [begins, ends), int64 [R], at the documents' `starts`, int64 [D+1]."""
  first_document = np.searchsorted(starts, begins, side="right") - 1
  counts = np.searchsorted(starts, ends) - first_document
  document = ranges(first_document, counts)
  row = np.repeat(np.arange(len(begins)), counts)
  begin = np.maximum(begins[row], starts[document])
  end = np.minimum(ends[row], starts[document + 1])
  return Cuts(offsets_of(counts), document, begin - starts[document], end - starts[document],
              starts[document + 1] - starts[document], begin - begins[row],
              document - first_document[row])


# ---------------------------------------------------------------- assembly


class Layout(NamedTuple):
  """What is needed to put the parts of a batch into rows.

  Attributes:
    seq_len: L.
    max_sequences: sequences that a row may hold.
    pad_id, opening_id, closing_id: ids of special tokens.
  """

  seq_len: int
  max_sequences: int
  pad_id: int
  opening_id: int
  closing_id: int


class Canvas(NamedTuple):
  """The tokens of a batch in their rows, and how to paint values over its parts.

  Attributes:
    tokens: int32 [B, L], or [B, L + 1] with the target behind the row.
    spread: values of the parts [N] -> int32 [B, L], each value on the inputs of its part.
  """

  tokens: np.ndarray
  spread: Callable[[np.ndarray], np.ndarray]


def token_sizes(parts: np.ndarray) -> np.ndarray:
  """Returns the tokens of every part with its special ones, int32 [N]."""
  return parts["opens"] + parts["length"] + parts["closes"]


def paint(parts: np.ndarray, rows: np.ndarray, texts: Sequence[np.ndarray], num_rows: int,
          layout: Layout, *, has_target: bool = False) -> Canvas:
  """Puts parts into rows.

  Args:
    parts: PART [N].
    rows: integers [N], the row of every part.
    texts: N arrays, part["length"] token ids each.
    num_rows: B.
    has_target: the last token of a row is no input: it lies behind the row.
  """
  width = layout.seq_len + has_target
  first = rows * width + parts["column"]
  first_text = first + parts["opens"]
  tokens = np.full(num_rows * width, layout.pad_id, np.int32)
  tokens[first[parts["opens"]]] = layout.opening_id
  tokens[(first_text + parts["length"])[parts["closes"]]] = layout.closing_id
  if texts:
    tokens[ranges(first_text, parts["length"])] = np.concatenate(texts)
  sizes = token_sizes(parts) - has_target
  places = ranges(first, sizes)

  def spread(values: np.ndarray) -> np.ndarray:
    array = np.zeros((num_rows, width), np.int32)
    array.ravel()[places] = np.repeat(values, sizes)
    return array[:, :layout.seq_len]

  return Canvas(tokens.reshape(num_rows, width), spread)


def sequence_arrays(parts: np.ndarray, canvas: Canvas) -> Batch:
  """Returns `sequence_ids` and `positions`, int32 [B, L] each, which every format has."""
  sequence_ids = canvas.spread(parts["sequence"])
  columns = np.arange(sequence_ids.shape[1], dtype=np.int32)
  positions = np.where(sequence_ids > 0, columns - canvas.spread(parts["origin"]), 0)
  return {"sequence_ids": sequence_ids, "positions": positions.astype(np.int32)}


def sequence_specs(seq_len: int) -> Specs:
  """Returns the specs of what every format has: tokens, sequence ids and positions."""
  return {name: ((seq_len,), np.int32) for name in ("tokens", "sequence_ids", "positions")}
