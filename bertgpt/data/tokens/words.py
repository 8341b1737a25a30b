"""Ends and starts of words, found from the UTF-8 of pieces that do not mark them.

Words are those of BERT's basic tokenizer: punctuation marks and Chinese characters are words of
their own (tokenization.py, google-research/bert, 2018). In other scripts without spaces, where
BERT has no words, every piece starts one.
"""

import re
import unicodedata

# Scripts without spaces: Thai, Lao, Burmese, Khmer, Kana, Han with its extensions.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf"
                       "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

_FORMER_START = re.compile(rf"{_UNSPACED.pattern}|\W")  # Start of a word in version 0.1.

_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_SPACE_IN_CJK = re.compile(rf"(?<=[{_CJK}]) (?=[{_CJK}])")


def is_continuation(piece: bytes) -> bool:
  """Returns whether a piece continues a word, which depends on its first character.

  A space, punctuation and characters of scripts without spaces start a word of their own.

  Args:
    piece: UTF-8, not empty; may begin or end inside a character.
  """
  first = _first_char(piece)
  return first is None or not (first.isspace() or _is_word(first))


def former_is_continuation(piece: bytes) -> bool:
  """Returns the same as version 0.1: symbols and combining marks start words, and '_' does not.

  Args:
    piece: see `is_continuation`.
  """
  first = _first_char(piece)
  return first is None or not _FORMER_START.match(first)


def _first_char(piece: bytes) -> str | None:
  """Returns the first character of a piece; None if the piece begins inside a character."""
  if 0x80 <= piece[0] < 0xC0:
    return None
  # If the end of the character is missing, assume the lowest character with this beginning.
  return (piece + b"\x80\x80\x80").decode(errors="ignore")[:1]


def ends_word(piece: bytes) -> bool:
  """Returns whether a new word starts after a piece, which depends on its last character.

  A space does not end a word: it belongs to the word after it, as in most pieces.

  Args:
    piece: UTF-8, not empty; may begin or end inside a character. A piece that ends inside a
      character does not end a word.
  """
  try:
    last = piece[max(0, len(piece) - 4):].decode(errors="surrogateescape")[-1]
  except UnicodeDecodeError:
    return False
  return _is_word(last) or last.isspace() and last != " "


def _is_word(char: str) -> bool:
  """Returns whether a character is a word of its own."""
  if char.isascii():
    return char.isprintable() and not char.isalnum() and char != " "
  category = unicodedata.category(char)
  return category[0] == "P" or category[0] != "M" and bool(_UNSPACED.match(char))


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


def bytes_of_sentencepiece(piece: str) -> bytes:
  """Returns the UTF-8 that a piece of SentencePiece stands for."""
  byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
  return bytes.fromhex(byte[1]) if byte else piece.replace("\u2581", " ").encode()


def bytes_of_byte_level(piece: str) -> bytes:
  """Returns the bytes of a byte-level piece; a space for an added piece, which is not of bytes."""
  if not piece or not BYTE_OF_CHAR.keys() >= set(piece):
    return b" "
  return bytes(BYTE_OF_CHAR[c] for c in piece)
