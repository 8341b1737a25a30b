"""What of a text a tokenizer loses, because it gives two different texts the same tokens.

A model of such tokens need not predict what is lost, so its loss per byte of the text is too low in
comparison with that of a tokenizer that loses nothing, as a byte-level BPE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Processes that only read a corpus need not load the tokenizer libraries.
  from bertgpt.data.tokens.tokenizer import Tokenizer

WHITE_SPACE = "white space"

# What is lost -> pairs of texts that differ only in it.
_PAIRS = {
    "case": (("A", "a"), ("The", "the")),
    "accents": (("é", "e"), ("à", "a")),
    WHITE_SPACE: (("a  a", "a a"), ("a\na", "a a"), ("a\ta", "a a")),
    "letter forms": (("ﬁ", "fi"), ("²", "2")),  # NFKC makes them equal.
}


def find_lost(tokenizer: Tokenizer, is_prepared: bool = False) -> list[str]:
  """Returns what of a text has no effect on its tokens; [] if nothing is known to be lost.

  Unknown tokens do not count, see `unknown`.

  Args:
    tokenizer: any tokenizer.
    is_prepared: whether the text is that of a prepared corpus, whose sentences lose the white space
      around them, unless the tokenizer has `keeps_space`.
  """
  return [name for name, pairs in _PAIRS.items()
          if any(_are_equal(tokenizer, *pair) for pair in pairs)
          or (is_prepared and name == WHITE_SPACE and not tokenizer.keeps_space)]


def _are_equal(tokenizer: Tokenizer, text: str, other: str) -> bool:
  ids, ids_of_other = (x.tolist() for x in tokenizer.encode([text, other]))
  return ids == ids_of_other and tokenizer.unk_id not in ids


def describe_lost(tokenizer: Tokenizer, is_prepared: bool = False) -> str:
  """Returns with which tokenizers a loss per byte or per word can be compared.

  Args:
    tokenizer, is_prepared: see `find_lost`.
  Returns:
    A phrase such as 'comparable between tokenizers'.
  """
  lost = find_lost(tokenizer, is_prepared)
  if not lost:
    return "comparable between tokenizers"
  listed = ", ".join(lost[:-1]) + " and " * (len(lost) > 1) + lost[-1]
  return f"comparable only with tokenizers that lose {listed}"
