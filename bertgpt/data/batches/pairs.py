"""Rows of sentence pairs, [CLS] A [SEP] B [SEP], as BERT was trained on.

Arrays of a batch in addition to those of every format, for rows of at most P pairs:
  segment_ids    int32 [B, L]  0: A, 1: B
  nsp_positions  int32 [B, P]  column of every pair's [CLS]; 0 in empty slots
  nsp_labels     int32 [B, P]  0: B is the next text, 1: B is from another document
  nsp_weights    float32 [B, P]  1 for every pair; 0 in empty slots

Axes: C chunks, each of which makes a pair; the others are those of `parts`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bertgpt.config import ConfigDict, max_sequences
from bertgpt.data.batches.packing import pack_sequences
from bertgpt.data.batches.parts import (
    NO_LABEL,
    PART,
    Batch,
    PairTexts,
    Placed,
    Plan,
    RowFormat,
    Specs,
    Texts,
    fill_tokens,
    sequence_arrays,
    sequence_specs,
    spread,
)
from bertgpt.data.batches.windows import ranges

# A walk through a document is a loop in which all documents advance together. Longer documents
# are walked in segments of at most this many sentences, so that the loop stays short.
SEGMENT_SENTENCES = 4096


class Pairs(NamedTuple):
  """BERT's sentence pairs before truncation, int64 [C] each.

  Documents and sentences have their indices within the `Texts`; ranges do not include their end.

  Attributes:
    document, first, cut, last: the chunk is the sentences first..last of the document, and A is
      first..cut.
    document_b, first_b, last_b: B is the sentences first_b..last_b of document_b; if the label is
      0, they are cut..last of the same document.
    label: 0: B follows A; 1: B is from another document; NO_LABEL: B is empty.
    target: intended number of tokens of the pair, without special tokens.
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


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of one sequence [CLS] A [SEP] B [SEP], or of several if they are packed.

  Args:
    texts: documents of the plan.
    config: whole config, of which `data` is read.
    seq_len: tokens per row.
    rng: source of all randomness.
  """
  max_tokens = seq_len - 3
  pairs = draw_pairs(texts, config.data, max_tokens, rng)
  return pack_sequences(make_parts(texts, pairs, max_tokens, rng), config, seq_len, rng)


def draw_pairs(texts: Texts, data: ConfigDict, max_tokens: int, rng: np.random.Generator, *,
               is_always_next: bool = False) -> Pairs:
  """Draws pairs with the algorithm of create_pretraining_data.py (google-research/bert, 2018).

  A pass through a document gathers a chunk of sentences up to a target length, which is
  `max_tokens` or, with probability `data.short_sequence_prob`, uniform in 2..max_tokens. The chunk
  is cut into A and B at a random sentence boundary. With probability `data.random_next_prob`, and
  always if the chunk is one sentence, B is instead a run of sentences from a random place in
  another document, and the pass continues after A; otherwise it continues after the chunk.

  If there is only one document, B always follows A, chunks have at least two sentences, and a
  single sentence at the end has an empty B, as [CLS] A [SEP] [SEP], and no label.

  Args:
    texts: documents to draw from.
    data: `config.data`.
    max_tokens: longest target, without special tokens.
    rng: source of all randomness.
    is_always_next: whether B always follows A, as if every document were the only one.
  """
  has_other = len(texts.documents) > 1 and not is_always_next
  document, first, end = segments_of(texts)
  target = np.full(len(first), max_tokens)
  is_short = rng.random(len(first)) < data.short_sequence_prob
  target[is_short] = rng.integers(2, max_tokens, is_short.sum(), endpoint=True)
  chunks = []
  while len(first):
    last = gather_sentences(texts.bounds, first, target, end)
    if not has_other:
      last = np.minimum(np.maximum(last, first + 2), end)
    is_single = last - first == 1
    cut = first + rng.integers(1, np.where(is_single, 2, last - first))
    is_random = has_other & (is_single | (rng.random(len(first)) < data.random_next_prob))
    chunks.append((document, first, cut, last, is_random, target))
    first = np.where(is_random, cut, last)
    remains = first < end
    document, first, end, target = (x[remains] for x in (document, first, end, target))
  document, first, cut, last, is_random, target = map(np.concatenate, zip(*chunks, strict=True))
  label = np.where(is_random, 1, np.where(cut < last, 0, NO_LABEL))
  document_b, first_b, last_b = document.copy(), cut.copy(), last.copy()
  room = target - (texts.bounds[cut] - texts.bounds[first])
  document_b[is_random], first_b[is_random], last_b[is_random] = _draw_random_next(
      texts, document[is_random], room[is_random], rng)
  return Pairs(document, first, cut, last, document_b, first_b, last_b, label, target)


def segments_of(texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (document, first sentence, end) of every run of sentences that is paired on its own.

  Args:
    texts: documents; the indices are those within `texts`.
  Returns:
    Three int64 [N], a run for every document, or several if it is long.
  """
  pieces = -(-np.diff(texts.offsets) // SEGMENT_SENTENCES)
  document = np.repeat(np.arange(len(pieces)), pieces)
  first = texts.offsets[document] + SEGMENT_SENTENCES * ranges(np.zeros_like(pieces), pieces)
  return document, first, np.minimum(first + SEGMENT_SENTENCES, texts.offsets[document + 1])


def gather_sentences(bounds: np.ndarray, first: np.ndarray, tokens: np.ndarray,
                     end: np.ndarray) -> np.ndarray:
  """Returns the end of the fewest sentences from `first` that hold `tokens` tokens.

  The result is at most `end`, even if the sentences up to there hold fewer tokens.

  Args:
    bounds: int64 [S+1], tokens before every sentence.
    first, tokens, end: int64 [N].
  """
  return np.minimum(np.searchsorted(bounds, bounds[first] + np.maximum(tokens, 1)), end)


def _draw_random_next(texts: Texts, document: np.ndarray, room: np.ndarray,
                      rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (document, first sentence, end) of random runs of `room` tokens in other documents."""
  if not len(document):
    return document, document, document
  other = rng.integers(0, len(texts.documents) - 1, len(document))
  other += other >= document
  first = rng.integers(texts.offsets[other], texts.offsets[other + 1])
  return other, first, gather_sentences(texts.bounds, first, room, texts.offsets[other + 1])


def truncate(length_a: np.ndarray, length_b: np.ndarray, max_tokens: int,
             rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Truncates pairs to `max_tokens` tokens.

  It is the closed form of truncate_seq_pair in create_pretraining_data.py (google-research/bert,
  2018), a loop that removes one token at a time from the longer part, or from B if both are equally
  long, at its front or its back at random. So the front loses a binomial share.

  Args:
    length_a, length_b: integers [C], tokens of A and B.
    max_tokens: tokens of A and B together, at most.
    rng: draws the tokens removed at the front.
  Returns:
    (skip_a, keep_a, skip_b, keep_b), int64 [C] each: tokens to skip at the front of a part, and
    tokens to keep after them.
  """
  keep_a, keep_b = keep_lengths(length_a, length_b, max_tokens)
  return (rng.binomial(length_a - keep_a, 0.5), keep_a,
          rng.binomial(length_b - keep_b, 0.5), keep_b)


def keep_lengths(length_a: np.ndarray, length_b: np.ndarray,
                 max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns how many tokens of A and of B remain if the longer part is shortened, int64 [C] each.

  Args:
    length_a, length_b, max_tokens: see `truncate`.
  """
  keep_b = np.minimum(length_b, np.maximum(max_tokens - length_a, max_tokens // 2))
  return np.minimum(length_a, max_tokens - keep_b), keep_b


def make_parts(texts: Texts, pairs: Pairs, max_tokens: int,
               rng: np.random.Generator) -> np.ndarray:
  """Returns the two parts of every pair, not yet placed in a row: PART [C, 2].

  Args:
    texts: documents of the pairs.
    pairs: pairs before truncation.
    max_tokens: tokens of a pair without special tokens, at most.
    rng: decides how much truncation removes at the front.
  """
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


# ---------------------------------------------------------------- assembly


def has_one_sequence(config: ConfigDict) -> bool:
  """Returns whether every row is one sequence, which only padding follows."""
  return not config.data.packing


def pair_specs(config: ConfigDict, phase: ConfigDict, *, name: str) -> Specs:
  """Returns the schema of a batch of the phase.

  Args:
    config: whole config.
    phase: one of `config.phases`.
    name: prefix of the names of the label arrays.
  """
  pairs = (max_sequences(config, phase.seq_len),)
  return sequence_specs(phase.seq_len) | {
      "segment_ids": ((phase.seq_len,), np.int32), **label_specs(name, pairs)}


def label_specs(name: str, shape: tuple[int, ...]) -> Specs:
  """Returns the specs of the three arrays of labels: positions, labels and weights.

  Args:
    name: prefix of the names of the arrays.
    shape: shape per row, (P,).
  """
  return {f"{name}_positions": (shape, np.int32), f"{name}_labels": (shape, np.int32),
          f"{name}_weights": (shape, np.float32)}


def assemble_pairs(placed: Placed, *, name: str) -> Batch:
  """Returns the batch of some rows of pairs.

  Args:
    placed: the parts of the rows.
    name: prefix of the names of the label arrays.
  """
  opens = placed.parts["opens"]
  pairs = placed.parts[opens]
  slots = placed.rows[opens], pairs["sequence"] - 1
  batch = {array: np.zeros((placed.num_rows, *shape), dtype) for array, (shape, dtype)
           in label_specs(name, (placed.layout.max_sequences,)).items()}
  batch[f"{name}_positions"][slots] = pairs["column"]
  batch[f"{name}_labels"][slots] = np.maximum(pairs["label"], 0)
  batch[f"{name}_weights"][slots] = pairs["label"] != NO_LABEL
  return batch | {"tokens": fill_tokens(placed), "segment_ids": spread(placed, "segment"),
                  **sequence_arrays(placed)}


def make_format(plan: Callable[..., Plan], pair: PairTexts) -> RowFormat:
  """Returns the format of rows of pairs that have a label.

  Args:
    plan: the plan of the format.
    pair: about the labels.
  """
  return RowFormat(("cls_id", "sep_id"), has_one_sequence, plan,
                   functools.partial(pair_specs, name=pair.name),
                   functools.partial(assemble_pairs, name=pair.name), pair=pair)


FORMAT = make_format(plan, PairTexts(
    name="nsp", labels=("B follows A", "B is random"), share="random next",
    title="Next-sentence prediction", question="does the second text follow the first?"))
