"""Rows of running text, for next-token prediction.

Arrays of a batch in addition to those of every format:
  targets       int32 [B, L]  the next token
  loss_weights  float32 [B, L]  0 on padding
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
    cut_stream,
    fill_tokens,
    sequence_arrays,
    sequence_specs,
    stream_starts,
)
from bertgpt.data.batches.windows import ranges


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of `seq_len` places of the stream or, without packing, of one document.

  The places are the targets, and the inputs are one place earlier, so that every token and every
  end of document is predicted exactly once per epoch. The token before a document is an end of
  document, so the same token opens the next one. With `data.isolate_documents`, every document of
  a row is a sequence of its own.

  Args:
    texts: documents of the plan.
    config: whole config; `data.packing` and `data.isolate_documents` are read.
    seq_len: tokens per row.
    rng: not used; the rows depend only on the texts.
  """
  del rng
  starts = stream_starts(texts)
  if config.data.packing:
    begins = np.arange(0, starts[-1], seq_len)
    ends = np.minimum(begins + seq_len, starts[-1])
  else:
    pieces = -(-np.diff(starts) // seq_len)
    document = np.repeat(np.arange(len(pieces)), pieces)
    begins = starts[document] + seq_len * ranges(np.zeros_like(pieces), pieces)
    ends = np.minimum(begins + seq_len, starts[document + 1])
  cuts = cut_stream(starts, begins, ends)
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


def has_one_sequence(config: ConfigDict) -> bool:
  """Returns whether every row is one sequence, which only padding follows."""
  return not (config.data.packing and config.data.isolate_documents)


def specs(config: ConfigDict, phase: ConfigDict) -> Specs:
  """Returns the schema of a batch of the phase."""
  del config
  row = (phase.seq_len,)
  return sequence_specs(phase.seq_len) | {
      "targets": (row, np.int32), "loss_weights": (row, np.float32)}


def assemble(placed: Placed) -> Batch:
  """Returns the batch of some rows."""
  tokens, batch = fill_tokens(placed), sequence_arrays(placed)
  return batch | {"tokens": tokens[:, :-1], "targets": tokens[:, 1:],
                  "loss_weights": (batch["sequence_ids"] > 0).astype(np.float32)}


# The end of a document opens the next one. The target of a row's last token is the one after it.
FORMAT = RowFormat(("eod_id", "eod_id"), has_one_sequence, plan, specs, assemble, has_target=True,
                   reads_sentences=False)
