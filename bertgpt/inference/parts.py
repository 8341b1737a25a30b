"""Parts of documents that are too long to be tokenized at once."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bertgpt.data.tokens.tokenizers import Tokenizer

PART_CHARS = 1 << 20
_CONTEXT = 400  # Characters on either side of a border that are tokenized to check it, at least.


class Part(NamedTuple):
  """A document, or a part of one.

  Attributes:
    text: the text.
    is_last: whether the document ends here.
    entries: how many entries of the file it is made of: lines, or 1.
  """

  text: str
  is_last: bool = True
  entries: int = 1


def cut_document(lines: Iterable[str], tokenizer: Tokenizer) -> Iterator[Part]:
  """Yields the parts of a document; their ids, joined, are those of the document.

  A part ends at the first line end after PART_CHARS at which the tokenizer gives the same ids for
  the text before and after it as for both together. A document without such a line end, or a
  tokenizer that reads on over all of them, gives one part. Where a part ends depends only on the
  lines from its beginning on.

  Args:
    lines: lines of the document, with their ends.
    tokenizer: tokenizer of the model.
  """
  part: list[str] = []
  chars, context = 0, max(_CONTEXT, 4 * max(map(len, tokenizer.pieces)))
  for line in lines:
    if chars >= PART_CHARS and _divides(tokenizer, part[-1][-context:], line[:context]):
      yield Part("".join(part), False, len(part))
      part, chars = [], 0
    part.append(line)
    chars += len(line)
  if part:
    yield Part("".join(part), True, len(part))


def _divides(tokenizer: Tokenizer, before: str, after: str) -> bool:
  if after[0].isspace() or not before.strip():  # White space joins to one token in many tokenizers.
    return False
  left, right, both = tokenizer.encode([before, after, before + after])
  return np.array_equal(np.concatenate([left, right]), both)
