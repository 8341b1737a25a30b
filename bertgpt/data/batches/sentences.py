"""Rows of whole sentences, [CLS] text [SEP], one sequence per row or, packed, one per document.

Array of a batch in addition to those of every format:
  segment_ids  int32 [B, L]  0
"""

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches import packing
from bertgpt.data.batches.parts import (
    NO_LABEL,
    PART,
    Batch,
    Placed,
    Plan,
    RowFormat,
    Specs,
    Texts,
    cut_stream,
    fill_tokens,
    place,
    sequence_arrays,
    sequence_specs,
    spread,
    stream_starts,
    token_sizes,
)

# A walk through the text is a loop in which all segments of the text advance together. Segments of
# at most this many tokens keep the loop short.
SEGMENT_TOKENS = 2**16


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of one sequence [CLS] text [SEP], as in RoBERTa (Liu et al. 2019, 1907.11692).

  With packing, a row takes sentences across documents until it is full, with a [SEP] between
  documents; a sentence is cut only if more than `data.max_unused` of the row would stay empty.
  Without packing, a row stays in one document, and only sentences longer than a row are cut. With
  packing and `data.isolate_documents`, such rows become sequences, which are packed into rows.

  Args:
    texts: documents of the plan.
    config: whole config, of which `data.packing`, `isolate_documents` and `max_unused` are read.
    seq_len: tokens per row.
    rng: decides which sequences share a row.
  """
  starts = stream_starts(texts)
  max_unused = config.data.max_unused if config.data.packing else 1.0
  crosses_documents = has_one_sequence(config) and config.data.packing
  begins, ends = _walk_sentences(texts, starts, seq_len, int(seq_len * max_unused),
                                 crosses_documents)
  cuts = cut_stream(starts, begins, ends)
  parts = np.zeros(len(cuts.document), PART)
  parts["document"] = texts.documents[cuts.document]
  parts["start"] = cuts.first
  parts["length"] = np.minimum(cuts.last, cuts.size - 1) - cuts.first
  parts["opens"] = cuts.rank == 0
  parts["closes"] = True
  parts["column"] = cuts.column + ~parts["opens"]  # [CLS] takes no place of the stream.
  parts["sequence"] = 1
  parts["label"] = NO_LABEL
  if has_one_sequence(config):
    return Plan(parts, cuts.offsets)
  members, offsets = packing.pack(token_sizes(parts), seq_len, seq_len, rng)
  return place(parts[members, None], offsets)


def _walk_sentences(texts: Texts, starts: np.ndarray, seq_len: int, max_unused: int,
                    crosses_documents: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns (begins, ends) of the rows of `plan` in the stream, int64 [R] each."""
  num_documents = len(texts.documents)
  document = np.repeat(np.arange(num_documents), np.diff(texts.offsets))
  edges = texts.bounds + np.append(document, num_documents)  # Sentence starts, and the end.
  segments = edges[np.searchsorted(edges, np.arange(0, edges[-1], SEGMENT_TOKENS))]
  if not crosses_documents:
    segments = np.concatenate([segments, starts])
  segments = np.unique(np.append(segments, edges[-1]))
  begin, limit = segments[:-1], segments[1:]
  rows = []
  while len(begin):
    reach = begin + seq_len - 2
    # If the document ends with the row, the [SEP] of the row also closes the document.
    reach += starts[np.minimum(np.searchsorted(starts, reach, side="right"),
                               num_documents)] == reach + 1
    edge = edges[np.searchsorted(edges, reach, side="right") - 1]
    end = np.where((reach - edge <= max_unused) & (edge > begin), edge, reach)
    end = np.minimum(end, limit)
    rows.append((begin, end))
    remains = end < limit
    begin, limit = end[remains], limit[remains]
  begins, ends = map(np.concatenate, zip(*rows, strict=True))
  return begins, ends


def has_one_sequence(config: ConfigDict) -> bool:
  """Returns whether every row is one sequence, however many documents it contains."""
  return not (config.data.packing and config.data.isolate_documents)


def specs(config: ConfigDict, phase: ConfigDict) -> Specs:
  """Returns the schema of a batch of the phase."""
  del config
  return sequence_specs(phase.seq_len) | {"segment_ids": ((phase.seq_len,), np.int32)}


def assemble(placed: Placed) -> Batch:
  """Returns the batch of some rows."""
  return {"tokens": fill_tokens(placed), "segment_ids": spread(placed, "segment"),
          **sequence_arrays(placed)}


FORMAT = RowFormat(("cls_id", "sep_id"), has_one_sequence, plan, specs, assemble)
