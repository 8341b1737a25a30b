"""The part of a tokenizer that objectives and guesses of words need."""

import re
from typing import NamedTuple

import numpy as np
import sentencepiece

from bertgpt.data.tokens import words
from bertgpt.data.tokens.tokenizers import Tokenizer

_UNUSED = re.compile(r"\[unused\d+\]")  # Spare pieces in vocabularies of google-research/bert.


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


def find_hidden(tokenizer: Tokenizer) -> frozenset[int]:
  """Returns the ids that do not stand for text: special, unknown and unused pieces.

  In addition to `Tokenizer.special_ids`, they include pieces that only the file calls special.

  Args:
    tokenizer: any tokenizer.
  """
  library, pieces = tokenizer.library, tokenizer.pieces
  if isinstance(library, sentencepiece.SentencePieceProcessor):
    tests = (library.is_control, library.is_unused, library.is_unknown)
    marks = [i for i in range(len(pieces)) if any(test(i) for test in tests)]
  else:
    marks = [i for i, token in library.get_added_tokens_decoder().items() if token.special]
  unused = (i for i, piece in enumerate(pieces) if _UNUSED.fullmatch(piece))
  return frozenset({*tokenizer.special_ids, tokenizer.unk_id, *marks, *unused} - {-1})
