"""Special tokens around the texts in a row of a trained model.

They are [CLS] a [SEP] b [SEP], or, in families with the [CLS] at the end, a [SEP] b [SEP] [CLS].
Tokenizers of RoBERTa have two [SEP] between a and b.
"""

from typing import NamedTuple

import numpy as np

from bertgpt.config.families import Family
from bertgpt.data.tokens.tokenizers import Tokenizer


class Marks(NamedTuple):
  """Ids of the tokens around texts.

  Attributes:
    first: opens the row; None: nothing does.
    between: separate two texts.
    last: closes the last text; None: nothing does.
    end: closes the row after `last`; None: nothing does.
  """

  first: int | None
  between: tuple[int, ...]
  last: int | None
  end: int | None = None

  @property
  def num_before(self) -> int:
    """Number of tokens before the first text."""
    return int(self.first is not None)

  @property
  def num_after(self) -> int:
    """Number of tokens after the last text."""
    return (self.last is not None) + (self.end is not None)

  def count(self, is_pair: bool = False) -> int:
    """Returns the number of tokens around the text of a row, or around and between two texts.

    Args:
      is_pair: whether the row has two texts.
    """
    return self.num_before + self.num_after + is_pair * len(self.between)

  def enclose(self, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Returns the row of one text, [first] a [last], or of two, [first] a [between] b [last].

    Args:
      a: int [A].
      b: int [B]; None: the row has one text.
    Returns:
      int32 [A + count], or [A + B + count].
    """
    first, last, end = ([] if mark is None else [mark]
                        for mark in (self.first, self.last, self.end))
    texts = [a] if b is None else [a, self.between, b]
    return np.concatenate([first, *texts, last, end]).astype(np.int32)

  def segments(self, a: int, b: int | None = None, has_segments: bool = True) -> np.ndarray:
    """Returns the segments of a row: 0 in the first text, 1 in the second, 2 at the `end` token.

    Args:
      a: tokens of the first text.
      b: tokens of the second text; None: the row has one text.
      has_segments: whether there is more than one segment.
    Returns:
      int32 [A + count], or [A + B + count].
    """
    of_a = self.num_before + a + (self.last is not None if b is None else len(self.between))
    counts = [of_a, 0 if b is None else b + (self.last is not None), int(self.end is not None)]
    return np.repeat(np.arange(3) * has_segments, counts).astype(np.int32)


def of_family(family: Family, tokenizer: Tokenizer, *, is_tuned: bool = False, bos_id: int = -1
              ) -> Marks:
  """Returns the marks that a model expects around texts.

  Args:
    family: family of the model.
    tokenizer: its tokenizer.
    is_tuned: whether the model is fine-tuned.
    bos_id: see `of_decoder`.
  """
  if family.kind == "encoder":
    return of_encoder(tokenizer, family.cls_last)
  return of_tuned_decoder(tokenizer.vocab_size) if is_tuned else of_decoder(bos_id)


def of_tuned_decoder(vocab_size: int) -> Marks:
  """Returns the marks of fine-tuned decoders: start, delimiter, extract.

  They are three new tokens (Radford et al. 2018, 3.3).

  Args:
    vocab_size: number of tokens of the tokenizer, whose ids the new ones follow.
  """
  return Marks(vocab_size, (vocab_size + 1,), vocab_size + 2)


def of_decoder(bos_id: int = -1) -> Marks:
  """Returns the marks of a text that a decoder continues.

  Args:
    bos_id: token that begins a text; -1: there is none.
  """
  return Marks(None if bos_id < 0 else bos_id, (), None)


def of_encoder(tokenizer: Tokenizer, cls_last: bool = False) -> Marks:
  """Returns the marks that encoders are pretrained with.

  They are [CLS], [SEP] and [SEP] (Devlin et al. 2018, arXiv:1810.04805, figure 2), with as many
  [SEP] between two texts as the template in the tokenizer's file has.

  Args:
    tokenizer: tokenizer with [CLS] and [SEP].
    cls_last: whether the [CLS] is at the end of the row, see `Family.cls_last`.
  """
  between = (tokenizer.sep_id,) * tokenizer.num_separators
  if cls_last:
    return Marks(None, between, tokenizer.sep_id, tokenizer.cls_id)
  return Marks(tokenizer.cls_id, between, tokenizer.sep_id)
