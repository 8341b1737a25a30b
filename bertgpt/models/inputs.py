"""The inputs of every model.

Axes: B batch, L length, K predicted positions of a row, P sequences of a row, Y layers, M tokens of
memory, D width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Inputs(NamedTuple):
  """Rows of tokens, and the positions at which the output layers are computed.

  Attributes:
    tokens_BL: int32 ids.
    sequence_ids_BL: int32; 0: padding. Tokens with different ids do not see each other.
    positions_BL: int32; 0, 1, ... from the first token of a sequence.
    segment_ids_BL: int32; 0: A, 1: B, 2: [CLS] of an XLNet. None: all A.
    predict_positions_BK: int32, positions whose token is predicted. None: every position.
    pair_positions_BP: int32, positions of the [CLS] of every sequence. None: the output layer of
      pairs is left out.
    lengths_B: int32, number of tokens of every row, if each row is one sequence followed only by
      padding. None: a row may hold several sequences.
    order_BL: int32, place of every token in the order of prediction; a token is seen only by tokens
      whose place is not before its own. None: every token sees all tokens of its sequence.
    memory_YBMD: inputs of every layer at the tokens before the row, which every token sees. None:
      there is no memory.
    is_memory_BM: bool, whether a place of the memory holds a token; the others are not seen. None:
      all hold one.
  """

  tokens_BL: jax.Array
  sequence_ids_BL: jax.Array
  positions_BL: jax.Array
  segment_ids_BL: jax.Array | None = None
  predict_positions_BK: jax.Array | None = None
  pair_positions_BP: jax.Array | None = None
  lengths_B: jax.Array | None = None
  order_BL: jax.Array | None = None
  memory_YBMD: jax.Array | None = None
  is_memory_BM: jax.Array | None = None

  @classmethod
  def of(cls, batch: Mapping[str, jax.Array], one_sequence: bool = False) -> "Inputs":
    """Returns the inputs in a batch.

    Args:
      batch: name -> array, with the names of `data.batches.formats.specs`.
      one_sequence: whether every row is one sequence followed only by padding.
    """
    lengths_B = (batch["sequence_ids"] > 0).sum(1, dtype=jnp.int32) if one_sequence else None
    return cls(batch["tokens"], batch["sequence_ids"], batch["positions"],
               batch.get("segment_ids"), batch.get("predict_positions"), lengths_B=lengths_B,
               order_BL=batch.get("order"))

  @classmethod
  def of_texts(cls, tokens_BL: jax.Array, lengths_B: jax.Array,
               cls_last: bool = False) -> "Inputs":
    """Returns rows of one text each.

    Args:
      tokens_BL: int32 ids, padded at the end.
      lengths_B: int32, tokens per text.
      cls_last: whether the last token is a [CLS], which then has segment 2.
    """
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    is_text_BL = (positions_BL < lengths_B[:, None]).astype(jnp.int32)
    segment_ids_BL = 2 * (positions_BL == lengths_B[:, None] - 1) if cls_last else None
    return cls(tokens_BL, is_text_BL, positions_BL, segment_ids_BL, lengths_B=lengths_B)
