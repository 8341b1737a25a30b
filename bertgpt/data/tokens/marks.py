"""Special tokens around the texts in a row of a trained model: [CLS] a [SEP] b [SEP]."""

from typing import NamedTuple

import numpy as np

from bertgpt.data.tokens.tokenizers import Tokenizer


class Marks(NamedTuple):
  """Ids of the tokens around texts.

  Attributes:
    first: opens the row.
    between: stands between two texts.
    last: closes the row.
  """

  first: int
  between: int
  last: int

  def enclose(self, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Returns the row of one text, [first] a [last], or of two, [first] a [between] b [last].

    Args:
      a: int [A].
      b: int [B]; None: the row has one text.
    Returns:
      int32 [A + 2], or [A + B + 3].
    """
    texts = [a] if b is None else [a, [self.between], b]
    return np.concatenate([[self.first], *texts, [self.last]]).astype(np.int32)


def of_encoder(tokenizer: Tokenizer) -> Marks:
  """Returns [CLS], [SEP] and [SEP], the marks that encoders are pretrained with.

  Devlin et al. 2018, arXiv:1810.04805, figure 2.
  """
  return Marks(tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id)
