"""Rows of streams that are read from both sides: a row continues where the same row of the
previous step ended.

The sentences of the text are shuffled and laid end to end in as many streams as a batch has rows.
A sentence of n words takes n + 1 places. At these places, the forward direction reads [CLS] and the
words and predicts the words and [SEP]; the backward direction reads [SEP] and the words from the
last to the first, and predicts the words and [CLS]. Nothing is predicted across the border of
two sentences. A sentence that does not fit into the row continues in the same row of the next step.

Arrays of a batch in addition to those of every format, whose `tokens` are read forward:
  targets            int32 [B, L]  what the forward direction predicts
  backward_tokens    int32 [B, L]  what the backward direction reads
  backward_targets   int32 [B, L]  what it predicts

Source: allenai/bilm-tf, `bilm/data.py` (2018), where the two directions read the sentences in
different orders.
"""

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches.parts import (
    NO_LABEL,
    PART,
    Batch,
    Placed,
    Plan,
    RowFormat,
    Specs,
    Texts,
    offsets_of,
    sequence_arrays,
    sequence_specs,
    token_sizes,
)
from bertgpt.data.batches.windows import ranges

ARRAYS = ("tokens", "targets", "backward_tokens", "backward_targets")


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator,
         num_streams: int) -> Plan:
  """Returns the rows of all streams, step by step: row s * num_streams + b is step s of stream b.

  The sentences are divided so that the streams are about equally long; short ones end with empty
  rows.

  Args:
    texts: documents of the plan.
    config: whole config; it is not read.
    seq_len: places per row.
    rng: shuffles the sentences.
    num_streams: rows of a batch.
  """
  del config
  document = np.repeat(np.arange(len(texts.documents)), np.diff(texts.offsets))
  order = rng.permutation(len(document))
  sizes = np.diff(texts.bounds)[order] + 1
  ends = np.cumsum(sizes)
  total = int(ends[-1])
  # A stream begins with the first sentence that starts in its share of the places.
  first = np.searchsorted(ends - sizes, total * np.arange(num_streams) / num_streams)
  last = np.append(first[1:], len(order))
  lengths = offsets_of(sizes)[last] - offsets_of(sizes)[first]
  steps = max(1, int(-(-lengths.max() // seq_len)))
  # Places of the sentences within their streams, and the rows that hold them.
  stream = np.repeat(np.arange(num_streams), last - first)
  place = ends - sizes - np.repeat(offsets_of(sizes)[first], last - first)
  first_step, last_step = place // seq_len, (place + sizes - 1) // seq_len
  counts = last_step - first_step + 1
  sentence = np.repeat(np.arange(len(order)), counts)
  step = ranges(first_step, counts)
  begin = np.maximum(place[sentence], step * seq_len)  # Where the piece begins in the stream.
  end = np.minimum(place[sentence] + sizes[sentence], (step + 1) * seq_len)
  skipped = begin - place[sentence]  # Places of the sentence before the piece.
  parts = np.zeros(len(sentence), PART)
  number = order[sentence]
  parts["document"] = texts.documents[document[number]]
  parts["opens"] = skipped == 0
  parts["length"] = end - begin - parts["opens"]
  before = np.maximum(skipped - 1, 0)  # Words of the sentence before the piece.
  parts["start"] = (texts.bounds[number] - texts.bounds[texts.offsets[document[number]]]) + before
  parts["rest"] = sizes[sentence] - 1 - before - parts["length"]
  parts["column"] = begin - step * seq_len
  parts["origin"] = parts["column"] - skipped
  parts["sequence"] = 1
  parts["label"] = NO_LABEL
  row = step * num_streams + stream[sentence]
  by_row = np.lexsort((parts["column"], row))
  return Plan(parts[by_row], offsets_of(np.bincount(row, minlength=steps * num_streams)))


def has_one_sequence(config: ConfigDict) -> bool:
  """Returns whether every row is one sequence, which only padding follows."""
  del config
  return True


def specs(config: ConfigDict, phase: ConfigDict) -> Specs:
  """Returns the schema of a batch of the phase."""
  del config
  return sequence_specs(phase.seq_len) | {name: ((phase.seq_len,), np.int32) for name in ARRAYS}


def spans(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first token of every part's sentence in its document, and the one after its last.

  Both directions need the whole sentence, because they are at different words of it.

  Args:
    parts: PART [N].
  """
  words_before = np.maximum(parts["column"] - parts["origin"] - 1, 0)
  return parts["start"] - words_before, parts["start"] + parts["length"] + parts["rest"]


def assemble(placed: Placed) -> Batch:
  """Returns the batch of some rows, from the whole sentences of their parts."""
  parts, layout = placed.parts, placed.layout
  words = np.array([len(text) for text in placed.texts], np.int64)
  opening, closing = np.array([layout.opening_id]), np.array([layout.closing_id])
  pieces = [np.zeros(0, np.int32)]  # Every sentence between its marks.
  for text in placed.texts:
    pieces += [opening, text, closing]
  whole = np.concatenate(pieces).astype(np.int32)
  start = np.cumsum(words + 2) - (words + 2)
  skipped, sizes = parts["column"] - parts["origin"], token_sizes(parts)
  ahead = ranges(start + skipped, sizes)
  # In the backward direction, position k of a sentence is the k-th token from its end.
  behind = np.repeat(2 * start + words + 1, sizes) - ahead
  to = ranges(placed.rows * layout.seq_len + parts["column"], sizes)
  arrays = np.full((len(ARRAYS), placed.num_rows, layout.seq_len), layout.pad_id, np.int32)
  arrays.reshape(len(ARRAYS), -1)[:, to] = (
      whole[ahead], whole[ahead + 1], whole[behind], whole[behind - 1])
  return dict(zip(ARRAYS, arrays, strict=True)) | sequence_arrays(placed)


# The targets have arrays of their own.
FORMAT = RowFormat(("cls_id", "sep_id"), has_one_sequence, plan, specs, assemble, spans=spans)
