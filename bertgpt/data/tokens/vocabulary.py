"""What objectives know of a tokenizer."""

from typing import NamedTuple

import numpy as np

from bertgpt.data.tokens.tokenizers import Tokenizer


class Vocabulary(NamedTuple):
  """What an objective knows of the tokenizer.

  Attributes:
    size: ids are below it.
    mask_id: id of [MASK]; -1 where there is none.
    special_ids: ids that are never predicted.
    continues_word: bool [size], the token goes on the word before it.
  """

  size: int
  mask_id: int
  special_ids: tuple[int, ...]
  continues_word: np.ndarray


def make_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
  """What objectives need of a tokenizer. [UNK] stands for text, so it may be predicted."""
  ids = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.eod_id}
  return Vocabulary(tokenizer.vocab_size, tokenizer.mask_id, tuple(sorted(ids - {-1})),
                    tokenizer.continues_word())
