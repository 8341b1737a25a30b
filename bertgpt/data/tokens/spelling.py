"""Characters of words, for models that read words by their characters.

A word is the bytes of its UTF-8 text between a start mark and an end mark, cut to `WORD_CHARS`, and
padded. The ids of bytes and marks are those of allenai/bilm-tf, `bilm/data.py` (2018).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertgpt.config.families.family import WORD_CHARS

if TYPE_CHECKING:
  from bertgpt.data.tokens.tokenizers import Tokenizer

__all__ = ["NUM_CHARS", "PADDING", "SENTENCE_END", "SENTENCE_START", "WORD_CHARS", "WORD_END",
           "WORD_START", "make_table", "spell"]

NUM_CHARS = 261  # 256 bytes and the five below.
SENTENCE_START, SENTENCE_END, WORD_START, WORD_END, PADDING = range(256, NUM_CHARS)


def spell(words: Sequence[str]) -> np.ndarray:
  """Returns the characters of words, int16 [words, WORD_CHARS].

  Args:
    words: any words; lone surrogates are spelled as '?'.
  """
  chars = np.full((len(words), WORD_CHARS), PADDING, np.int16)
  for row, word in zip(chars, words, strict=True):
    data = word.encode(errors="replace")[:WORD_CHARS - 2]
    row[:len(data) + 2] = [WORD_START, *data, WORD_END]
  return chars


def make_table(tokenizer: "Tokenizer") -> np.ndarray:
  """Returns the characters of all words of a tokenizer, int16 [vocab_size, WORD_CHARS].

  [CLS] starts a sentence and [SEP] ends it. Other special tokens are only padding, except [UNK],
  which is spelled like a word: '<UNK>'.

  Args:
    tokenizer: a tokenizer whose pieces are words.
  """
  pieces = list(tokenizer.pieces)
  if tokenizer.unk_id >= 0:
    pieces[tokenizer.unk_id] = "<UNK>"
  table = spell(pieces)
  for i in tokenizer.special_ids:
    table[i] = PADDING
  for i, mark in ((tokenizer.cls_id, SENTENCE_START), (tokenizer.sep_id, SENTENCE_END)):
    if i >= 0:
      table[i, :3] = WORD_START, mark, WORD_END
  return table
