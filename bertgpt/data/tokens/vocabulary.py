"""The part of a tokenizer that objectives need."""

from typing import NamedTuple

import numpy as np

from bertgpt.data.tokens import words
from bertgpt.data.tokens.tokenizers import Tokenizer


class Vocabulary(NamedTuple):
  """The part of a tokenizer that an objective needs.

  Attributes:
    size: number of token ids.
    mask_id: id of [MASK]; -1: the tokenizer has none.
    special_ids: ids that are never predicted.
    continues_word: bool [size], whether a token continues the word before it.
    ends_word: bool [size], whether a word starts after a token, whatever token follows.
    unk_id: id of [UNK]; -1: the tokenizer has none.
  """

  size: int
  mask_id: int
  special_ids: tuple[int, ...]
  continues_word: np.ndarray
  ends_word: np.ndarray
  unk_id: int = -1


def make_vocabulary(tokenizer: Tokenizer, has_former_words: bool = False) -> Vocabulary:
  """Returns the vocabulary of a tokenizer.

  Args:
    tokenizer: any tokenizer. [UNK] stands for text, so it is not one of the `special_ids`.
    has_former_words: whether to use the word rule of version 0.1, which did not end words after
      punctuation, so that its runs are masked as before.
  """
  rule = words.former_is_continuation if has_former_words else words.is_continuation
  ids = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.eod_id}
  return Vocabulary(tokenizer.vocab_size, tokenizer.mask_id, tuple(sorted(ids - {-1})),
                    tokenizer.continues_word(rule),
                    tokenizer.ends_word() & (not has_former_words), tokenizer.unk_id)
