"""Rows of pairs of consecutive texts, in order or swapped, as ALBERT was trained on.

Arrays of a batch: those of `pairs`, but named `sop` instead of `nsp`. Labels are 0 if A comes first
in the document, and 1 if B does.
"""

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches import pairs
from bertgpt.data.batches.packing import pack_sequences
from bertgpt.data.batches.parts import NO_LABEL, PairTexts, Plan, Texts

# Share of swapped pairs (create_pretraining_data.py, google-research/albert, 2019).
SWAPPED_SHARE = 0.5


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of one sequence [CLS] A [SEP] B [SEP], or of several if they are packed.

  A and B are consecutive texts of one document, and half of the pairs are swapped. The published
  script gives a chunk of one sentence a random B and labels the pair as swapped. Here such a chunk
  is joined with the next sentence or, at the end of a document, has an empty B, as in [CLS] A [SEP]
  [SEP], and no label, so that the label depends only on the order.

  Args:
    texts: documents of the plan.
    config: whole config, of which `data` is read.
    seq_len: tokens per row.
    rng: source of all randomness.
  """
  max_tokens = seq_len - 3
  drawn = pairs.draw_pairs(texts, config.data, max_tokens, rng, is_always_next=True)
  is_swapped = (drawn.label != NO_LABEL) & (rng.random(len(drawn.label)) < SWAPPED_SHARE)
  # If A and B are both too long for an odd number of tokens, truncation leaves one token more of A.
  # It comes after the swap, so that the lengths do not give away the label.
  drawn = drawn._replace(
      label=np.where(is_swapped, 1, drawn.label),
      document=np.where(is_swapped, drawn.document_b, drawn.document),
      first=np.where(is_swapped, drawn.first_b, drawn.first),
      cut=np.where(is_swapped, drawn.last_b, drawn.cut),
      document_b=np.where(is_swapped, drawn.document, drawn.document_b),
      first_b=np.where(is_swapped, drawn.first, drawn.first_b),
      last_b=np.where(is_swapped, drawn.cut, drawn.last_b))
  parts = pairs.make_parts(texts, drawn, max_tokens, rng)
  return pack_sequences(parts, config, seq_len, rng)


FORMAT = pairs.make_format(plan, PairTexts(
    name="sop", labels=("A comes before B", "B comes before A"), share="swapped",
    title="Sentence order", question="are the two texts in order?"))
