"""Rows as parts of documents, the basis of every row format.

A row consists of a few parts, and a part is a span of one document between special tokens. A plan
lists the parts of every row. It is made only from the lengths of documents and sentences, with
operations on whole arrays: there is no loop over documents, sentences or rows. The text is then
put into rows, all tokens of a batch at once.

Axes: D documents, S sentences, C sequences of P parts, N parts, R rows, B rows of a batch,
L tokens of a row.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches.windows import ranges
from bertgpt.data.corpus.corpus import Corpus, release

Batch = dict[str, np.ndarray]
Specs = dict[str, tuple[tuple[int, ...], type]]  # name -> (shape of a row, dtype)

NO_LABEL = -1

PART = np.dtype([
    ("document", "<i8"),
    ("start", "<i8"),      # first token of the span within the document
    ("length", "<i4"),     # tokens of the span, without special tokens
    ("column", "<i4"),     # column of the part's first token, which may be the opening one
    ("origin", "<i4"),     # column whose position is 0
    ("rest", "<i4"),       # tokens of the sentence after the span, if the row format reads them
    ("sequence", "<i4"),   # the sequence in the row: 1, 2, ...
    ("segment", "i1"),     # 0: A, 1: B
    ("label", "i1"),       # label of the pair that the part opens, or NO_LABEL
    ("opens", "?"),        # whether it begins with the opening token: [CLS], or GPT's <|endoftext|>
    ("closes", "?"),       # whether it ends with the closing token: [SEP], or GPT's <|endoftext|>
], align=True)


class Plan(NamedTuple):
  """The parts of some rows: row r is parts[offsets[r]:offsets[r + 1]], from left to right.

  Attributes:
    parts: PART [N].
    offsets: int64 [R+1].
  """

  parts: np.ndarray
  offsets: np.ndarray

  @property
  def num_rows(self) -> int:
    """Number of rows, R."""
    return len(self.offsets) - 1

  def take(self, rows: np.ndarray) -> "Plan":
    """Returns the plan of some of the rows.

    Args:
      rows: integers [any], indices of the rows in the new order, possibly repeated.
    """
    counts = self.offsets[rows + 1] - self.offsets[rows]
    return Plan(self.parts[ranges(self.offsets[rows], counts)], offsets_of(counts))

  def fit(self, num_rows: int) -> "Plan":
    """Returns the first rows of the plan, and empty ones if it has too few.

    Args:
      num_rows: number of rows.
    """
    offsets = self.offsets[:num_rows + 1]
    missing = np.full(num_rows + 1 - len(offsets), offsets[-1])
    return Plan(self.parts[:offsets[-1]], np.concatenate([offsets, missing]))


class Texts(NamedTuple):
  """Lengths of some documents of a corpus, with new indices from 0.

  Attributes:
    documents: int64 [D], indices of the documents in the corpus.
    offsets: int64 [D+1], sentences before every document; a document is one sentence if the row
      format does not read sentences.
    bounds: int64 [S+1], tokens before every sentence.
  """

  documents: np.ndarray
  offsets: np.ndarray
  bounds: np.ndarray


def select(corpus: Corpus, documents: np.ndarray, reads_sentences: bool = True) -> Texts:
  """Returns the lengths of some documents.

  Args:
    corpus: corpus, of which only the index arrays are read.
    documents: int64 [D], indices of the documents in the order of the result.
    reads_sentences: see `RowFormat`.
  """
  if not reads_sentences:
    bounds = offsets_of(corpus.document_lengths[documents])
    release(corpus.document_lengths)
    return Texts(documents, np.arange(len(documents) + 1), bounds)
  first = corpus.document_offsets[documents]
  counts = corpus.document_offsets[documents + 1] - first
  release(corpus.document_offsets)
  bounds = offsets_of(corpus.sentence_lengths[ranges(first, counts)])
  release(corpus.sentence_lengths)
  return Texts(documents, offsets_of(counts), bounds)


def place(parts_CP: np.ndarray, offsets: np.ndarray) -> Plan:
  """Returns the plan of rows in which sequences follow one another.

  Args:
    parts_CP: PART [C, P], the P parts of every sequence from left to right, in the order of the
      rows; changed in place. Parts without tokens are left out.
    offsets: integers [R+1]; row r holds the sequences offsets[r]..offsets[r + 1].
  """
  sizes_CP = token_sizes(parts_CP)
  before_C = offsets_of(sizes_CP.sum(axis=1))[:-1]
  first_C = np.repeat(offsets[:-1], np.diff(offsets))  # The first sequence of the same row.
  parts_CP["origin"] = (before_C - before_C[first_C])[:, None]
  parts_CP["column"] = parts_CP["origin"] + np.cumsum(sizes_CP, axis=1) - sizes_CP
  parts_CP["sequence"] = (np.arange(len(parts_CP)) - first_C + 1)[:, None]
  is_there_CP = sizes_CP > 0
  return Plan(parts_CP[is_there_CP], offsets_of(is_there_CP.sum(axis=1))[offsets])


def offsets_of(counts: np.ndarray) -> np.ndarray:
  """Returns the sums before every count and the total: int64 [N+1] for integers [N]."""
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


# ------------------------------------------------------------------ stream
#
# The stream is running text: all documents one after the other, each followed by one special token,
# so that document d takes the places starts[d]..starts[d + 1].


def stream_starts(texts: Texts) -> np.ndarray:
  """Returns the first place of every document in the stream, and the end: int64 [D+1]."""
  return texts.bounds[texts.offsets] + np.arange(len(texts.offsets))


class Cuts(NamedTuple):
  """Pieces of documents that make up intervals of the stream, int64 [N] each.

  Attributes:
    offsets: int64 [R+1], pieces before every interval.
    document: index of the document within the `Texts`.
    first, last: first place within the document, and the one after the last.
    size: places of the whole document, its tokens and the special token.
    column: place of the piece within its interval.
    rank: index of the piece within its interval: 0, 1, ...
  """

  offsets: np.ndarray
  document: np.ndarray
  first: np.ndarray
  last: np.ndarray
  size: np.ndarray
  column: np.ndarray
  rank: np.ndarray


def cut_stream(starts: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> Cuts:
  """Cuts intervals of the stream into pieces of documents.

  Args:
    starts: int64 [D+1], places at which documents start, see `stream_starts`.
    begins, ends: int64 [R]; interval r is the places begins[r]..ends[r] - 1.
  """
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
  """Shape and special tokens of the rows of a batch.

  Attributes:
    seq_len: tokens per row, L.
    max_sequences: sequences per row, at most.
    pad_id, opening_id, closing_id: ids of special tokens.
    has_target: whether every row is followed by one more token, which is only a target.
  """

  seq_len: int
  max_sequences: int
  pad_id: int
  opening_id: int
  closing_id: int
  has_target: bool


class Placed(NamedTuple):
  """Parts in the rows of a batch, with their text.

  Attributes:
    parts: PART [N].
    rows: integers [N], row of every part in [0, B).
    texts: N arrays of token ids, the tokens of every part that `RowFormat.spans` asks for.
    num_rows: rows of the batch, B; those without parts are empty.
    layout: shape and special tokens of the rows.
  """

  parts: np.ndarray
  rows: np.ndarray
  texts: Sequence[np.ndarray]
  num_rows: int
  layout: Layout


def spans(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first token of every part in its document, and the one after its last, int64 [N].

  Args:
    parts: PART [N].
  """
  return parts["start"], parts["start"] + parts["length"]


def token_sizes(parts: np.ndarray) -> np.ndarray:
  """Returns the tokens of every part including special ones, int32 [N] for PART [N]."""
  return parts["opens"] + parts["length"] + parts["closes"]


def fill_tokens(placed: Placed) -> np.ndarray:
  """Returns the tokens: int32 [B, L], or [B, L + 1] if every row is followed by its last target."""
  parts, layout = placed.parts, placed.layout
  width = layout.seq_len + layout.has_target
  first = placed.rows * width + parts["column"]
  first_text = first + parts["opens"]
  tokens = np.full(placed.num_rows * width, layout.pad_id, np.int32)
  tokens[first[parts["opens"]]] = layout.opening_id
  tokens[(first_text + parts["length"])[parts["closes"]]] = layout.closing_id
  if placed.texts:
    tokens[ranges(first_text, parts["length"])] = np.concatenate(placed.texts)
  return tokens.reshape(placed.num_rows, width)


def spread(placed: Placed, name: str) -> np.ndarray:
  """Returns a field of PART at all inputs of every part, and 0 at padding: int32 [B, L]."""
  seq_len = placed.layout.seq_len
  sizes = token_sizes(placed.parts) - placed.layout.has_target
  array = np.zeros((placed.num_rows, seq_len), np.int32)
  places = ranges(placed.rows * seq_len + placed.parts["column"], sizes)
  array.ravel()[places] = np.repeat(placed.parts[name], sizes)
  return array


def sequence_arrays(placed: Placed) -> Batch:
  """Returns `sequence_ids` and `positions`, int32 [B, L] each, which every format has."""
  sequence_ids = spread(placed, "sequence")
  columns = np.arange(sequence_ids.shape[1], dtype=np.int32)
  positions = np.where(sequence_ids > 0, columns - spread(placed, "origin"), 0)
  return {"sequence_ids": sequence_ids, "positions": positions.astype(np.int32)}


def sequence_specs(seq_len: int) -> Specs:
  """Returns the specs of the arrays of every format: tokens, sequence ids and positions."""
  return {name: ((seq_len,), np.int32) for name in ("tokens", "sequence_ids", "positions")}


class PairTexts(NamedTuple):
  """What reports say about the label that every pair of texts has.

  Attributes:
    name: prefix of the arrays of labels and of the metrics, such as 'nsp'.
    labels: meaning of the labels 0 and 1.
    share: name of the share of label 1.
    title: title of a plot of the accuracy.
    question: question that the label answers.
  """

  name: str
  labels: tuple[str, str]
  share: str
  title: str
  question: str


class RowFormat(NamedTuple):
  """How the rows of a corpus are made: the data half of an objective.

  Attributes:
    specials: attributes of the tokenizer: the tokens that open and close a part.
    has_one_sequence: config -> whether every row is one sequence, which only padding follows.
    plan: (texts, config, seq_len, rng) -> the parts of the rows of an epoch. If rows continue the
      rows of the previous step, it also takes `num_streams`, and its rows are in order.
    specs: (config, phase) -> name -> (shape of a row, dtype), the only schema of a batch.
    assemble: placed parts -> the batch.
    has_target: whether a row is followed by one more token, which is only a target.
    pair: about the label of every pair; None if nothing is predicted about pairs.
    spans: parts -> (starts, stops), the tokens that every part needs of its document.
    reads_sentences: whether the plan depends on the sentences of documents.
  """

  specials: tuple[str, str]
  has_one_sequence: Callable[[ConfigDict], bool]
  plan: Callable[..., Plan]
  specs: Callable[[ConfigDict, ConfigDict], Specs]
  assemble: Callable[[Placed], Batch]
  has_target: bool = False
  pair: PairTexts | None = None
  spans: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = spans
  reads_sentences: bool = True

  @property
  def pair_name(self) -> str:
    """Prefix of the arrays of pair labels; '' if there are none."""
    return self.pair.name if self.pair else ""
