"""The index plan: which spans of which documents make the rows of an epoch.

A row is a few parts, a part is a span of one document between special tokens. A plan is made
from the lengths of documents and sentences alone, in whole-array operations: no loop over
documents, sentences or rows.

Axes: D documents, S sentences, C chunks, N parts, R rows.
"""

from typing import NamedTuple

import numpy as np

from bertgpt.config import ConfigDict, max_sequences
from bertgpt.data.batches import packing
from bertgpt.data.batches.windows import Windows, divide, draw_documents, make_rng, ranges

# A walk through a document is a loop in which all documents advance together. Longer documents
# are walked in segments of so many sentences or tokens, so that the loop stays short.
SEGMENT_SENTENCES = 4096
SEGMENT_TOKENS = 2**16

# Masked LM without pairs: a row ends inside a sentence only if it would otherwise leave more
# than this share of its tokens unused.
MAX_UNUSED = 1 / 16

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


def make_plan(corpus, config: ConfigDict, seq_len: int, key: tuple[int, ...], *, window: int = 0,
              windows: Windows | None = None, num_rows: int | None = None) -> Plan:
  """The shuffled rows of one window of an epoch.

  Args:
    corpus: has `document_offsets`, `document_lengths` and `sentence_lengths`.
    key: integers that name the epoch; all that is random follows from them and `window`.
    windows: of an epoch; None: one, the whole corpus.
    num_rows: fit the plan to so many rows: rows too many are dropped, missing ones are filled
      up with repetitions, both at random. None: all rows, once.
  Raises:
    DataError: the corpus holds no token.
  """
  windows = windows or divide(corpus.document_lengths, 1)
  texts = select(corpus, draw_documents(corpus, windows, window, key))
  rng = make_rng((*key, window))
  plan = PLANNERS[config.objective.name](texts, config, seq_len, rng)
  order = rng.permutation(plan.num_rows)
  return plan.take(order if num_rows is None else np.resize(order, num_rows))


# --------------------------------------------------------------- documents


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


# ---------------------------------------------------------- sentence pairs


class Pairs(NamedTuple):
  """BERT's sentence pairs before truncation, int64 [C] each.

  Documents and sentences are numbered within the `Texts`.

  Attributes:
    document, first, cut, last: the chunk is sentences first..last, A is first..cut.
    document_b, first_b, last_b: B; cut..last of the same document where the label is 0.
    label: 0: B is what follows A; 1: B is from another document; NO_LABEL: there is no B.
    target: length that was aimed at, without special tokens.
  """

  document: np.ndarray
  first: np.ndarray
  cut: np.ndarray
  last: np.ndarray
  document_b: np.ndarray
  first_b: np.ndarray
  last_b: np.ndarray
  label: np.ndarray
  target: np.ndarray


def plan_pairs(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Rows of one or, packed, several sequences [CLS] A [SEP] B [SEP]."""
  max_tokens = seq_len - 3
  parts = _pair_parts(texts, draw_pairs(texts, config.data, max_tokens, rng), max_tokens, rng)
  lengths = parts["length"].sum(axis=1) + 3
  if config.data.packing:
    members, offsets = packing.pack(lengths, seq_len, max_sequences(config, seq_len), rng)
  else:
    members = np.arange(len(lengths))
    offsets = np.arange(len(lengths) + 1)
  return _place_pairs(parts[members], offsets)


def draw_pairs(texts: Texts, data: ConfigDict, max_tokens: int, rng: np.random.Generator) -> Pairs:
  """Pairs by the algorithm of create_pretraining_data.py (google-research/bert, 2018).

  A pass through a document gathers sentences up to a target length, which is `max_tokens`
  or, with probability `data.short_sequence_prob`, uniform in 2..max_tokens. The chunk is cut at
  a random sentence boundary. With probability `data.random_next_prob`, and always if the
  chunk is one sentence, B is instead a run of sentences from a random place in another
  document, and the pass goes on after A; else it goes on after the chunk.

  Of a single document there is no other: B then always follows A, chunks have two sentences or
  more, and a last sentence that is left alone gets no B and no label.
  """
  has_other = len(texts.documents) > 1
  document, first, end = _segments(texts)
  target = np.full(len(first), max_tokens)
  is_short = rng.random(len(first)) < data.short_sequence_prob
  target[is_short] = rng.integers(2, max_tokens, is_short.sum(), endpoint=True)
  chunks = []
  while len(first):
    last = _gather(texts.bounds, first, target, end)
    if not has_other:
      last = np.minimum(np.maximum(last, first + 2), end)
    is_single = last - first == 1
    cut = first + rng.integers(1, np.where(is_single, 2, last - first))
    is_random = has_other & (is_single | (rng.random(len(first)) < data.random_next_prob))
    chunks.append((document, first, cut, last, is_random, target))
    first = np.where(is_random, cut, last)
    goes_on = first < end
    document, first, end, target = (x[goes_on] for x in (document, first, end, target))
  document, first, cut, last, is_random, target = map(np.concatenate, zip(*chunks, strict=True))
  label = np.where(is_random, 1, np.where(cut < last, 0, NO_LABEL))
  document_b, first_b, last_b = document.copy(), cut.copy(), last.copy()
  room = target - (texts.bounds[cut] - texts.bounds[first])
  document_b[is_random], first_b[is_random], last_b[is_random] = _draw_random_next(
      texts, document[is_random], room[is_random], rng)
  return Pairs(document, first, cut, last, document_b, first_b, last_b, label, target)


def _segments(texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(document, first sentence, end) of every run of sentences that is walked by itself."""
  pieces = -(-np.diff(texts.offsets) // SEGMENT_SENTENCES)
  document = np.repeat(np.arange(len(pieces)), pieces)
  first = texts.offsets[document] + SEGMENT_SENTENCES * ranges(np.zeros_like(pieces), pieces)
  return document, first, np.minimum(first + SEGMENT_SENTENCES, texts.offsets[document + 1])


def _gather(bounds: np.ndarray, first: np.ndarray, tokens: np.ndarray,
            end: np.ndarray) -> np.ndarray:
  """End of the fewest sentences from `first` on that hold `tokens` tokens, at most `end`."""
  return np.minimum(np.searchsorted(bounds, bounds[first] + np.maximum(tokens, 1)), end)


def _draw_random_next(texts: Texts, document: np.ndarray, room: np.ndarray,
                      rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(document, first sentence, end) of random runs of `room` tokens in other documents."""
  if not len(document):
    return document, document, document
  other = rng.integers(0, len(texts.documents) - 1, len(document))
  other += other >= document
  first = rng.integers(texts.offsets[other], texts.offsets[other + 1])
  return other, first, _gather(texts.bounds, first, room, texts.offsets[other + 1])


def truncate(length_a: np.ndarray, length_b: np.ndarray, max_tokens: int,
             rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Cuts pairs down to `max_tokens`: (skip_a, keep_a, skip_b, keep_b), int64 [C] each.

  Closed form of the published loop, which takes one token at a time from the longer part (from
  B if they are equal), at its front or its back at random: the front loses a binomial share.
  """
  keep_b = np.minimum(length_b, np.maximum(max_tokens - length_a, max_tokens // 2))
  keep_a = np.minimum(length_a, max_tokens - keep_b)
  return (rng.binomial(length_a - keep_a, 0.5), keep_a,
          rng.binomial(length_b - keep_b, 0.5), keep_b)


def _pair_parts(texts: Texts, pairs: Pairs, max_tokens: int,
                rng: np.random.Generator) -> np.ndarray:
  """PART [C, 2], the two parts of every pair, not yet placed in a row."""
  bounds = texts.bounds
  length_a = bounds[pairs.cut] - bounds[pairs.first]
  length_b = bounds[pairs.last_b] - bounds[pairs.first_b]
  skip_a, keep_a, skip_b, keep_b = truncate(length_a, length_b, max_tokens, rng)
  parts = np.zeros((len(length_a), 2), PART)
  spans = ((pairs.document, pairs.first, skip_a, keep_a),
           (pairs.document_b, pairs.first_b, skip_b, keep_b))
  for segment, (document, first, skip, keep) in enumerate(spans):
    part = parts[:, segment]
    part["document"] = texts.documents[document]
    part["start"] = bounds[first] - bounds[texts.offsets[document]] + skip
    part["length"] = keep
    part["segment"] = segment
  parts["opens"][:, 0] = parts["closes"] = True
  parts["label"] = np.stack([pairs.label, np.full_like(pairs.label, NO_LABEL)], axis=1)
  return parts


def _place_pairs(parts: np.ndarray, offsets: np.ndarray) -> Plan:
  """Gives the pairs `parts`, PART [C, 2], their places; row r is offsets[r]..offsets[r + 1]."""
  row_starts = np.repeat(offsets[:-1], np.diff(offsets))
  before = offsets_of(parts["length"].sum(axis=1) + 3)
  origin = before[:-1] - before[row_starts]
  parts["origin"] = origin[:, None]
  parts["column"] = np.stack([origin, origin + parts["length"][:, 0] + 2], axis=1)
  parts["sequence"] = (np.arange(len(parts)) - row_starts + 1)[:, None]
  return Plan(parts.ravel(), 2 * offsets)


# ------------------------------------------------------------------ stream
#
# Running text: the documents one after the other, each followed by one special token, so that
# document d takes the places starts[d]..starts[d + 1] of the stream.


def plan_blocks(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """GPT's rows: `seq_len` places of the stream, or, without packing, of a single document.

  The places are the targets, the inputs are one place behind: every token and every end of
  document is predicted exactly once an epoch. What comes before a document is an end of
  document, which thus opens it. With `data.isolate_documents` every document of a row is a
  sequence of its own.
  """
  del rng
  starts = _stream_starts(texts)
  if config.data.packing:
    begins = np.arange(0, starts[-1], seq_len)
    ends = np.minimum(begins + seq_len, starts[-1])
  else:
    pieces = -(-np.diff(starts) // seq_len)
    document = np.repeat(np.arange(len(pieces)), pieces)
    begins = starts[document] + seq_len * ranges(np.zeros_like(pieces), pieces)
    ends = np.minimum(begins + seq_len, starts[document + 1])
  cuts = _cut_stream(starts, begins, ends)
  parts = np.zeros(len(cuts.document), PART)
  parts["document"] = texts.documents[cuts.document]
  parts["start"] = np.maximum(cuts.first - 1, 0)
  parts["length"] = np.minimum(cuts.last, cuts.size - 1) - parts["start"]
  parts["column"] = cuts.column
  parts["opens"] = cuts.first == 0
  parts["closes"] = cuts.last == cuts.size
  parts["sequence"] = 1
  parts["label"] = NO_LABEL
  if config.data.isolate_documents:
    parts["origin"] = cuts.column
    parts["sequence"] = cuts.rank + 1
  return Plan(parts, cuts.offsets)


def plan_sentences(texts: Texts, config: ConfigDict, seq_len: int,
                   rng: np.random.Generator) -> Plan:
  """RoBERTa's rows (Liu et al. 2019): [CLS] text [SEP], one sequence a row.

  Packed, sentences are taken up to the length across documents, with a [SEP] between them;
  a sentence is cut where it would leave more than MAX_UNUSED of the row empty. Without
  packing a row stays in one document and cuts only sentences that are longer than itself.
  """
  del rng
  starts = _stream_starts(texts)
  begins, ends = _walk_sentences(texts, starts, seq_len, config.data.packing)
  cuts = _cut_stream(starts, begins, ends)
  parts = np.zeros(len(cuts.document), PART)
  parts["document"] = texts.documents[cuts.document]
  parts["start"] = cuts.first
  parts["length"] = np.minimum(cuts.last, cuts.size - 1) - cuts.first
  parts["opens"] = cuts.rank == 0
  parts["closes"] = True
  parts["column"] = cuts.column + ~parts["opens"]  # [CLS] is no place of the stream.
  parts["sequence"] = 1
  parts["label"] = NO_LABEL
  return Plan(parts, cuts.offsets)


def _stream_starts(texts: Texts) -> np.ndarray:
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


def _cut_stream(starts: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> Cuts:
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


def _walk_sentences(texts: Texts, starts: np.ndarray, seq_len: int,
                    crosses_documents: bool) -> tuple[np.ndarray, np.ndarray]:
  """(begins, ends) of the rows of `plan_sentences` in the stream, int64 [R] each."""
  num_documents = len(texts.documents)
  document = np.repeat(np.arange(num_documents), np.diff(texts.offsets))
  edges = texts.bounds + np.append(document, num_documents)  # Sentence starts, and the end.
  segments = edges[np.searchsorted(edges, np.arange(0, edges[-1], SEGMENT_TOKENS))]
  if not crosses_documents:
    segments = np.concatenate([segments, starts])
  segments = np.unique(np.append(segments, edges[-1]))
  begin, limit = segments[:-1], segments[1:]
  max_unused = int(seq_len * MAX_UNUSED) if crosses_documents else seq_len
  rows = []
  while len(begin):
    reach = begin + seq_len - 2
    # The closing [SEP] of the row serves as that of the document.
    reach += starts[np.minimum(np.searchsorted(starts, reach, side="right"),
                               num_documents)] == reach + 1
    edge = edges[np.searchsorted(edges, reach, side="right") - 1]
    end = np.where((reach - edge <= max_unused) & (edge > begin), edge, reach)
    end = np.minimum(end, limit)
    rows.append((begin, end))
    goes_on = end < limit
    begin, limit = end[goes_on], limit[goes_on]
  begins, ends = map(np.concatenate, zip(*rows, strict=True))
  return begins, ends


PLANNERS = {"mlm_nsp": plan_pairs, "mlm": plan_sentences, "causal": plan_blocks}
