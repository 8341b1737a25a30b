"""Unknown tokens: the text that a tokenizer cannot tell from other text.

A WordPiece model has one token for every word that it cannot spell, however long the word is. So
the share of these tokens says little about the share of the text that the model never sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # Processes that only read a corpus need not load the tokenizer libraries.
  from bertgpt.data.tokens.tokenizer import Tokenizer

MAX_SHARE = 0.05  # Share of a text, or of its tokens, above which it is worth a note.


def count_tokens(tokenizer: Tokenizer, rows: Iterable[np.ndarray]) -> int:
  """Returns the number of unknown tokens in rows; 0 for whole words, read by their characters.

  Args:
    tokenizer: the tokenizer of the rows.
    rows: token ids of every row.
  """
  if tokenizer.has_words:
    return 0
  return sum(int(np.count_nonzero(ids == tokenizer.unk_id)) for ids in rows)


def count_bytes(tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
  """Returns the UTF-8 bytes for which texts have unknown tokens.

  Args:
    tokenizer: any tokenizer.
    texts: the texts.
    encoded: token ids of every text; a text without unknown ones is not encoded again.
  """
  total = 0
  for text, known_ids in zip(texts, encoded, strict=True):
    if tokenizer.unk_id in known_ids:
      # One by one, because the offsets need much memory.
      (ids, spans), = tokenizer.encode_with_spans([text])
      total += sum(len(text[start:end].strip().encode(errors="replace"))
                   for start, end in spans[ids == tokenizer.unk_id])
  return total


def describe(unknown: int, total: int, of_what: str) -> str:
  """Returns a sentence about the unknown part of a text if it is large, otherwise ''.

  Args:
    unknown: bytes or tokens that are unknown.
    total: all bytes or tokens.
    of_what: what is counted, such as 'the bytes of a.txt'.
  """
  if unknown <= MAX_SHARE * total:
    return ""
  return (f"{unknown / total:.0%} of {of_what} are unknown to the tokenizer, and the model cannot "
          "tell them apart")
