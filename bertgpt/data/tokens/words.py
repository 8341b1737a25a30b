"""Starts of words, found only from UTF-8, for vocabularies whose pieces do not mark them."""

import re

# Scripts without spaces: Thai, Lao, Burmese, Khmer, Kana, Han with its extensions.
_UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
             "\uf900-\ufaff\U00020000-\U0003ffff")
_STARTS_WORD = re.compile(rf"[{_UNSPACED}]|\W")

_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_SPACE_IN_CJK = re.compile(rf"(?<=[{_CJK}]) (?=[{_CJK}])")


def is_continuation(piece: bytes) -> bool:
  """Returns whether a piece continues a word, which depends on its first character.

  A space, punctuation and characters of scripts without spaces start a word of their own.

  Args:
    piece: UTF-8, not empty; may begin or end inside a character.
  """
  begins_inside = 0x80 <= piece[0] < 0xC0
  # If the end of the first character is missing, assume the lowest character with this beginning.
  first = (piece + b"\x80\x80\x80").decode(errors="ignore")
  return begins_inside or not _STARTS_WORD.match(first)


def join_cjk(text: str) -> str:
  """Returns a text without the spaces between its CJK characters."""
  return _SPACE_IN_CJK.sub("", text)


def _byte_of_char() -> dict[str, int]:
  plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  rest = [b for b in range(256) if b not in plain]
  return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(rest)}}


# Character of a byte-level vocabulary -> the byte that it stands for (openai/gpt-2, encoder.py,
# 2019).
BYTE_OF_CHAR = _byte_of_char()
