"""Texts that are scored as one: also the parts of a document too long to be tokenized at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bertgpt.data.tokens.tokenizers import Tokenizer

PART_CHARS = 1 << 20
_CONTEXT = 400  # Characters, at least, on either side of a border that are tokenized to check it.


class Part(NamedTuple):
  """A document, a part of one, a passage, a pair of sentences, or a context with its endings.

  Attributes:
    texts: the texts that are tokenized: two of a pair, the entry of a choice, otherwise one.
    source: the entries of the file from which it is made, as one text.
    is_last: whether the document ends here.
    entries: number of these entries: lines, or 1.
    carry: white space at the end of the entries with which the text of the next part begins.
  """

  texts: tuple[str, ...]
  source: str
  is_last: bool = True
  entries: int = 1
  carry: str = ""


def cut_document(lines: Iterable[str], tokenizer: Tokenizer,
                 detokenize: Callable[[str], str] = str, carry: str = "") -> Iterator[Part]:
  """Yields the parts of a document; their ids, joined, are those of the document.

  A part ends at the first line end after PART_CHARS at which the tokenizer gives the same ids for
  the text before and after it as for both together. Many tokenizers join a line end to the
  indentation after it; the part then ends before the line end, on the same condition. If a document
  has no line ends, or the tokenizer joins all of them to the text after them, it is one part. Where
  a part ends depends only on the lines from its beginning on.

  Args:
    lines: lines of the document, with their ends.
    tokenizer: tokenizer of the model.
    detokenize: line of the file -> text that is tokenized.
    carry: `carry` of the part before the lines.
  """
  source: list[str] = []
  text, chars, tail = [carry], len(carry), carry
  context = max(_CONTEXT, 4 * max(map(len, tokenizer.pieces)))
  for raw in lines:
    line = detokenize(raw)
    if source and chars >= PART_CHARS:
      space = _find_cut(tokenizer, tail, line[:context])
      if space is not None:
        whole = "".join(text)
        carry = whole[len(whole) - space:]
        yield Part((whole[:len(whole) - space],), "".join(source), False, len(source), carry)
        source, text, chars, tail = [], [carry], len(carry), carry
    source.append(raw)
    text.append(line)
    chars += len(line)
    tail = (tail + line)[-context:]
  if source:
    yield Part(("".join(text),), "".join(source), True, len(source))


def _find_cut(tokenizer: Tokenizer, before: str, after: str) -> int | None:
  """Returns how many characters before a border a text may be cut; None: it may not be cut.

  Args:
    tokenizer: tokenizer of the model.
    before, after: the text around the border.
  """
  if not (before.strip() and after.strip()):  # The text behind the white space matters too.
    return None
  space = len(before) - len(before.rstrip())
  whole = tokenizer.encode([before + after])[0]
  for size in dict.fromkeys((0, space)):
    left, right = before[:len(before) - size], before[len(before) - size:] + after
    if np.array_equal(np.concatenate(tokenizer.encode([left, right])), whole):
      return size
  return None
