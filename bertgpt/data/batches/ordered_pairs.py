"""Rows of pairs of consecutive texts, in order or swapped, as ALBERT was trained on.

Arrays of a batch: those of `pairs`, with labels called `sop`; 0: A comes first in the document,
1: B does.
"""

import numpy as np

from bertgpt.config import ConfigDict, max_sequences
from bertgpt.data.batches import pairs
from bertgpt.data.batches.pairs import HAS_TARGET, SPECIALS
from bertgpt.data.batches.parts import NO_LABEL, Batch, Layout, Plan, Specs, Texts, sequence_specs

__all__ = ["HAS_TARGET", "PAIR_LABELS", "PAIR_NAME", "PAIR_QUESTION", "PAIR_SHARE", "PAIR_TITLE",
           "SPECIALS", "assemble", "plan", "specs"]

PAIR_NAME = "sop"
PAIR_LABELS = ("A comes before B", "B comes before A")
PAIR_SHARE = "swapped"
PAIR_TITLE = "Sentence order"
PAIR_QUESTION = "are the two texts in order?"

SWAPPED_SHARE = 0.5  # Of the pairs (create_pretraining_data.py, google-research/albert, 2019).


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of one or, packed, several sequences [CLS] A [SEP] B [SEP].

  The two parts follow each other in one document; half of them are swapped. The published script
  gives a chunk of one sentence a random B and calls it swapped; here such a chunk is joined with
  the next sentence, or has no B and no label at the end of a document, so that the label speaks
  of the order only.
  """
  max_tokens = seq_len - 3
  drawn = pairs.draw_pairs(texts, config.data, max_tokens, rng, is_always_next=True)
  parts = pairs.make_parts(texts, drawn, max_tokens, rng)
  is_swapped = (drawn.label != NO_LABEL) & (rng.random(len(parts)) < SWAPPED_SHARE)
  for field in ("document", "start", "length"):
    parts[field][is_swapped] = parts[field][is_swapped][:, ::-1]
  parts["label"][is_swapped, 0] = 1
  return pairs.place(parts, config, seq_len, rng)


def specs(config: ConfigDict, phase: ConfigDict) -> Specs:
  """Returns what a batch of the phase holds."""
  shape = (max_sequences(config, phase.seq_len),)
  return sequence_specs(phase.seq_len) | {
      "segment_ids": ((phase.seq_len,), np.int32), **pairs.label_specs(PAIR_NAME, shape)}


def assemble(parts: np.ndarray, rows: np.ndarray, texts: list[np.ndarray], num_rows: int,
             layout: Layout) -> Batch:
  """Returns the batch of some rows; arguments as of `parts.paint`."""
  return pairs.assemble_pairs(parts, rows, texts, num_rows, layout, PAIR_NAME)
