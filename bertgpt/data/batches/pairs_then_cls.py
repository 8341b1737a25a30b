"""Rows of pairs of texts, A [SEP] B [SEP] [CLS], as XLNet was trained on.

Array of a batch in addition to those of every format:
  segment_ids  int32 [B, L]  0: A and its [SEP], 1: B and its [SEP], 2: [CLS]

Axes: C chunks, each of which makes a pair.
"""

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches import pairs
from bertgpt.data.batches.packing import pack_sequences
from bertgpt.data.batches.pairs import has_one_sequence
from bertgpt.data.batches.parts import NO_LABEL, Plan, RowFormat, Texts
from bertgpt.data.batches.sentences import assemble, specs


def plan(texts: Texts, config: ConfigDict, seq_len: int, rng: np.random.Generator) -> Plan:
  """Returns rows of one sequence A [SEP] B [SEP] [CLS], or of several if they are packed.

  The pairs are those of BERT, with a random B in some of them (Yang et al. 2019, 2.5).

  Args:
    texts: documents of the plan.
    config: whole config, of which `data` is read.
    seq_len: tokens per row.
    rng: source of all randomness.
  """
  max_tokens = seq_len - 3
  drawn = pairs.draw_pairs(texts, config.data, max_tokens, rng)
  texts_C2 = pairs.make_parts(texts, drawn, max_tokens, rng)
  texts_C2["opens"] = False
  cls_C1 = texts_C2[:, :1].copy()
  cls_C1["length"] = 0
  cls_C1["segment"] = 2
  cls_C1["opens"], cls_C1["closes"] = True, False
  parts = np.concatenate([texts_C2, cls_C1], axis=1)
  parts["label"] = NO_LABEL
  return pack_sequences(parts, config, seq_len, rng)


# [CLS] is a part without text. Nothing is predicted about the pair.
FORMAT = RowFormat(("cls_id", "sep_id"), has_one_sequence, plan, specs, assemble)
