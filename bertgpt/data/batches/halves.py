"""Rows of consecutive texts in two halves, [CLS] A [SEP] B [SEP], as ELECTRA was trained on.

Array of a batch in addition to those of every format:
  segment_ids  int32 [B, L]  0: A, 1: B

Axes: C chunks, each of which makes a sequence.
"""

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches.packing import pack_sequences
from bertgpt.data.batches.pairs import gather_sentences, has_one_sequence, segments_of
from bertgpt.data.batches.parts import NO_LABEL, PART, Plan, RowFormat, Texts
from bertgpt.data.batches.sentences import assemble, specs

# build_pretraining_dataset.py, google-research/electra, 2020.
SINGLE_SHARE = 0.1  # Share of sequences without B.
SHORTEST_TARGET = 5


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of one sequence [CLS] A [SEP] B [SEP], or of several if they are packed.

  A pass through a document gathers sentences until they have `seq_len` tokens or, with probability
  `data.short_sequence_prob`, a number of tokens uniform in 5..seq_len. A is the longest run of
  sentences at the start with fewer than half of these tokens, at least one sentence, and in half of
  the cases, the sentence that crosses the middle too; B is the rest. A tenth of the sequences have
  only A. Text that exceeds the row is cut off. The published script puts a short sentence after the
  middle into A even if B has begun; here A is always one run of text.

  Args:
    texts: documents of the plan.
    config: whole config, of which `data` is read.
    seq_len: tokens per row.
    rng: source of all randomness.
  """
  document, first, cut, last = _draw_chunks(texts, config.data.short_sequence_prob, seq_len, rng)
  start = texts.bounds[first] - texts.bounds[texts.offsets[document]]
  whole_a = texts.bounds[cut] - texts.bounds[first]
  length_a = np.minimum(whole_a, seq_len - 2)
  length_b = np.minimum(texts.bounds[last] - texts.bounds[cut],
                        np.maximum(seq_len - 3 - length_a, 0))
  parts = np.zeros((len(first), 2), PART)
  parts["document"] = texts.documents[document][:, None]
  parts["start"] = np.stack([start, start + whole_a], axis=1)
  parts["length"] = np.stack([length_a, length_b], axis=1)
  parts["segment"] = [0, 1]
  parts["opens"][:, 0] = parts["closes"][:, 0] = True
  parts["closes"][:, 1] = length_b > 0  # An empty B takes no place.
  parts["label"] = NO_LABEL
  return pack_sequences(parts, config, seq_len, rng)


def _draw_chunks(texts, short_prob, seq_len, rng):
  """Returns (document, first, cut, last): A is the sentences first..cut, B cut..last, int64 [C]."""
  document, first, end = segments_of(texts)
  chunks = []
  while len(first):
    count = len(first)
    short = rng.integers(min(SHORTEST_TARGET, seq_len), seq_len, count, endpoint=True)
    target = np.where(rng.random(count) < short_prob, short, seq_len)
    last = gather_sentences(texts.bounds, first, target, end)
    half = (target - 3) // 2
    # The last boundary at which A has fewer than half of the tokens.
    before = np.searchsorted(texts.bounds, texts.bounds[first] + half, side="left") - 1
    cut = np.maximum(before, first + 1)
    crosses = (rng.random(count) < 0.5) & (texts.bounds[cut] - texts.bounds[first] < half)
    cut = np.where(rng.random(count) < SINGLE_SHARE, last, np.minimum(cut + crosses, last))
    chunks.append((document, first, cut, last))
    remains = last < end
    document, first, end = document[remains], last[remains], end[remains]
  return map(np.concatenate, zip(*chunks, strict=True))


# B always follows A: nothing is predicted about the pair.
FORMAT = RowFormat(("cls_id", "sep_id"), has_one_sequence, plan, specs, assemble)
