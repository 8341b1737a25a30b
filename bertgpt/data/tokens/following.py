"""Token ids of a text that follows other text, or a mask.

Some tokenizers put a space before every text: most models of SentencePiece, and byte-level BPEs
with `add_prefix_space`. Others remove the space that a text has. For a text that follows other
text, this module keeps exactly the space that the text has.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertgpt.data.tokens.tokenizers import SentencePiece, Tokenizer

MASK = "[MASK]"
_LETTER = "x"


def encode_template(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """Returns the ids of a text in which [MASK], or the tokenizer's name for it, is one token.

  Args:
    tokenizer: tokenizer of the model.
    text: the text.
  Returns:
    int32 [N], without [CLS] and [SEP].
  """
  names = {MASK} if tokenizer.mask_id < 0 else {MASK, tokenizer.pieces[tokenizer.mask_id]}
  first, *rest = re.split("|".join(map(re.escape, names)), text)
  # The space before a mask belongs to the hidden word.
  parts: list[Any] = [tokenizer.encode([first.rstrip() if rest else first])[0]]
  for ids in encode_after(tokenizer, [*(p.rstrip() for p in rest[:-1]), *rest[-1:]]):
    parts += [[tokenizer.mask_id], ids]
  return np.concatenate(parts).astype(np.int32)


def encode_after(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
  """Returns the token ids of texts, with a leading space only if they have one.

  Args:
    tokenizer: the tokenizer.
    texts: the texts, each of which follows other text.
  Returns:
    int32 [tokens] each, without special ids.
  """
  space = tokenizer.spell(f"{_LETTER} {_LETTER}")[-2:-1]
  if space == _LETTER:  # Pieces do not hold spaces.
    return tokenizer.encode(texts)
  begins = [_follow(tokenizer, text).startswith(space) for text in texts]
  # SentencePiece may put its space before a space that the text has.
  if tokenizer.spell(f" {_LETTER}").startswith(2 * space):
    texts = [text[1:] if begin else text for text, begin in zip(texts, begins, strict=True)]
  id_of = {piece: i for i, piece in enumerate(tokenizer.pieces)}
  encoded = []
  for text, begin, ids in zip(texts, begins, tokenizer.encode(texts), strict=True):
    if len(ids) and begin != tokenizer.spell(text).startswith(space):
      ids = (_after_letter(tokenizer, text) if begin else
             _without_space(tokenizer, text, ids, space, id_of))
    encoded.append(ids)
  return encoded


def _follow(tokenizer: Tokenizer, text: str) -> str:
  """Returns how pieces spell a text after a letter."""
  return tokenizer.spell(_LETTER + text).partition(_LETTER)[2]


def _after_letter(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """Returns the ids of a text after a letter, without those of the letter."""
  before, whole = tokenizer.encode([_LETTER, _LETTER + text])
  return whole[len(before):]


def _without_space(tokenizer: Tokenizer, text: str, ids: np.ndarray, space: str,
                   id_of: dict[str, int]) -> np.ndarray:
  """Returns the ids of a text without the space that the tokenizer puts before it.

  Args:
    tokenizer: the tokenizer.
    text: the text, which begins without a space.
    ids: its ids, of which the first begins with a space.
    space: how pieces spell a space.
    id_of: piece -> id.
  """
  if isinstance(tokenizer, SentencePiece):
    text = text.encode(errors="replace").decode()  # As in `Tokenizer.encode`.
    return np.array(tokenizer.library_without_prefix.encode(text), np.int32)
  rest = tokenizer.pieces[ids[0]].removeprefix(space)
  if not rest:
    return ids[1:]
  if rest in id_of:
    return np.array([id_of[rest], *ids[1:]], np.int32)
  # No piece is the same without the space, so the first word is cut into others. They are those
  # after a letter, unless the letter is in one piece with the start of the text.
  cut = _after_letter(tokenizer, text)
  is_whole = "".join(tokenizer.pieces[i] for i in cut) == _follow(tokenizer, text)
  return cut if is_whole else ids
