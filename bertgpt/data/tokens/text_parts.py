"""Token ids of texts that are given in parts, such as the sentences of a document.

The ids are those of the whole text. They differ from those of the parts if a tokenizer puts a space
before every text, or has tokens that span the border between two parts. A token belongs to the part
in which it starts.

The libraries can give the positions of tokens, but are then up to twice as slow. So a text is
divided where no token can span the border, or the tokens are measured; see `make_encoder`.
"""

import functools
import itertools
import json
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from bertgpt.data.tokens.tokenizers import ByteBPE, SentencePiece, Tokenizer
from bertgpt.data.tokens.words import BYTE_OF_CHAR

_proto_lib: Any = sentencepiece_model_pb2  # Its classes are made when it is imported.

# The parts of a text. None is blank. One may end with white space if it was cut out of a long one.
Text = Sequence[str]
Encoded = tuple[np.ndarray, np.ndarray]  # int32 [N], ids; int64 [parts], tokens of every part.
Encoder = Callable[[Sequence[Text]], list[Encoded]]

_SPACE = "\u2581"  # A space in a piece of SentencePiece.
_LONG_CHARS = 1 << 16  # The memory of the library grows with the length of a text.
_END = 0x20000  # Above all characters that are white space or punctuation.


def make_encoder(tokenizer: Tokenizer) -> Encoder:
  """Returns a function that encodes texts given in parts.

  | tokenizer             | the text is divided           | tokens are assigned to parts by     |
  |-----------------------|-------------------------------|-------------------------------------|
  | byte-level BPE        | at white space, if its words  | their bytes                         |
  |                       | are those of GPT-2            |                                     |
  | with BERT's words     | at white space, punctuation   | the library                         |
  | SentencePiece unigram | nowhere, because the rounding | their bytes, in the normalized text |
  |                       | of scores depends on all text |                                     |
  | SentencePiece BPE     | at white space, if no token   | their bytes, in the normalized text |
  |                       | spans it                      |                                     |
  | any other             | nowhere                       | the library                         |

  If the bytes do not add up to the text, the library assigns the tokens.

  Args:
    tokenizer: any tokenizer.
  Returns:
    A function of texts, each given as its parts. It returns for every text the ids, int32 [N],
    which are those of `Tokenizer.encode` for the joined parts, and the number of tokens of each
    part, int64 [parts].
  """
  if isinstance(tokenizer, SentencePiece):
    divides = functools.partial(_starts_with, _spaces_of_sentencepiece(tokenizer))
    return functools.partial(_encode, tokenizer, divides, _Normalized(tokenizer).measure, 0)
  if isinstance(tokenizer, ByteBPE):
    divides = functools.partial(_starts_with, _spaces_of_bytes(tokenizer))
    return functools.partial(_encode, tokenizer, divides, _Bytes(tokenizer).measure, _LONG_CHARS)
  if marks := _marks_of_words(tokenizer):
    divides = functools.partial(_touches, marks)
    return functools.partial(_encode, tokenizer, divides, None, 0)
  return functools.partial(_encode_by_offsets, tokenizer)


Measured = tuple[np.ndarray, np.ndarray]  # Sizes of the tokens, int64 [N], and of the parts.


def _encode(tokenizer: Tokenizer, divides: Callable[[str, str], bool],
            measure: Callable[[np.ndarray, Text], Measured | None] | None,
            min_chars: int, texts: Sequence[Text]) -> list[Encoded]:
  """See `make_encoder`.

  Args:
    tokenizer: any tokenizer.
    divides: whether a text may be divided between two parts.
    measure: returns the sizes of tokens and parts in one unit, or None if they do not add up;
      None: the library assigns the tokens.
    min_chars: a text is divided into pieces of this length, at least.
    texts: parts of every text.
  """
  pieces = [list(_divide(parts, divides, min_chars)) for parts in texts]
  encoded = iter(tokenizer.encode(["".join(parts) for divided in pieces for parts in divided]))
  results = []
  for divided in pieces:
    ids, lengths = list(itertools.islice(encoded, len(divided))), []
    for piece, parts in zip(ids, divided, strict=True):
      if len(parts) == 1:
        lengths.append(len(piece))
      else:
        lengths.extend(_assign(tokenizer, measure, piece, parts))
    results.append((ids[0] if len(ids) == 1 else np.concatenate(ids), np.array(lengths)))
  return results


def _divide(parts: Text, divides: Callable[[str, str], bool], min_chars: int) -> Iterator[Text]:
  """Yields groups of parts: the text is divided between them."""
  start = chars = 0
  for i in range(1, len(parts)):
    chars += len(parts[i - 1])
    if chars >= min_chars and divides(parts[i - 1], parts[i]):
      yield parts[start:i]
      start, chars = i, 0
  yield parts[start:]


def _assign(tokenizer: Tokenizer, measure: Callable | None, ids: np.ndarray,
            parts: Text) -> np.ndarray:
  """Returns how many of the tokens start in every part: int64 [parts]."""
  if measure and (sizes := measure(ids, parts)):
    of_tokens, of_parts = sizes
    return _count(np.cumsum(of_tokens) - of_tokens, np.cumsum(of_parts))
  (_, lengths), = _encode_by_offsets(tokenizer, [parts])
  return lengths


def _encode_by_offsets(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[Encoded]:
  results = []
  for parts in texts:  # One by one, because the offsets need much memory.
    (ids, offsets), = tokenizer.encode_with_spans(["".join(parts)])
    ends = np.cumsum([len(part) for part in parts])
    results.append((ids, _count(np.maximum.accumulate(offsets[:, 0]), ends)))
  return results


def _count(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """Returns the number of tokens that start in every part.

  Args:
    starts: starts of the tokens, ascending.
    ends: ends of the parts. Tokens that start after the last one belong to the last part.
  """
  borders = np.searchsorted(starts, ends[:-1])
  return np.diff(borders, prepend=0, append=len(starts))


# ------------------------------------------------------------------ borders


def _starts_with(spaces: Collection[str], before: str, after: str) -> bool:
  # A run of white space may be one token, so it is not divided.
  return after[0] in spaces and not before[-1].isspace()


def _touches(marks: Collection[str], before: str, after: str) -> bool:
  return after[0] in marks or before[-1] in marks


def _marks_of_words(tokenizer: Tokenizer) -> frozenset[str]:
  """Returns characters at which BERT's words end; none if the tokenizer has other words.

  They are found by trial: words of other versions of Unicode end at other characters.
  """
  content = json.loads(tokenizer.data)
  kinds = [(content.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer")]
  are_all_special = all(token["special"] for token in content.get("added_tokens") or ())
  if kinds != ["BertNormalizer", "BertPreTokenizer"] or not are_all_special:
    return frozenset()
  library = tokenizer.library
  candidates = (c for c in map(chr, range(_END))
                if c.isspace() or unicodedata.category(c).startswith("P"))

  def ends_word(c: str) -> bool:
    words = library.pre_tokenizer.pre_tokenize_str(library.normalizer.normalize_str(f"a{c}a"))
    return [word for word, _ in words] == (["a", "a"] if c.isspace() else ["a", c, "a"])
  return frozenset(filter(ends_word, candidates))


def _spaces_of_bytes(tokenizer: ByteBPE) -> frozenset[str]:
  """Returns white space before which words end and the tokenizer adds no space; none if unknown."""
  content = json.loads(tokenizer.data)
  words = content.get("pre_tokenizer") or {}
  if (words.get("type") != "ByteLevel" or not words.get("use_regex", True)
      or content.get("normalizer")
      or not all(t["special"] for t in content.get("added_tokens") or ())):
    return frozenset()
  return frozenset(" " if words.get("add_prefix_space") else " \n\t")


def _spaces_of_sentencepiece(tokenizer: SentencePiece) -> frozenset[str]:
  """Returns white space that no token can span; none if there may be such tokens."""
  model = _proto_lib.ModelProto.FromString(tokenizer.data).trainer_spec.model_type
  normalize = tokenizer.library.normalize
  if (model != _proto_lib.TrainerSpec.BPE or any(_SPACE in piece[1:] for piece in tokenizer.pieces)
      or normalize("  a  b ") != f"{_SPACE}a{_SPACE}b"):
    return frozenset()
  return _find_spaces(normalize)


def _find_spaces(normalize: Callable[[str], str]) -> frozenset[str]:
  """Returns the characters that SentencePiece normalizes to a space."""
  spaces = filter(str.isspace, map(chr, range(_END)))
  return frozenset(c for c in spaces if normalize(f"a{c}a").removeprefix(_SPACE) == f"a{_SPACE}a")


# --------------------------------------------------------------------- sizes


class _Bytes:
  """Sizes of the tokens of a byte-level BPE: bytes of the text.

  Args:
    tokenizer: the tokenizer.
  """

  def __init__(self, tokenizer: ByteBPE):
    self._sizes = np.array([len(p) if BYTE_OF_CHAR.keys() >= set(p) else len(p.encode())
                            for p in tokenizer.pieces])
    self._normalizer = tokenizer.library.normalizer
    self._starts_with_space = [p.startswith("\u0120") for p in tokenizer.pieces]

  def measure(self, ids: np.ndarray, parts: Text) -> Measured | None:
    """Returns the sizes of tokens and parts; None if they do not add up.

    Args:
      ids: ids of the whole text.
      parts: parts of the text.
    """
    if self._normalizer:
      text = "".join(parts)
      if self._normalizer.normalize_str(text) != text:
        return None
    of_tokens = self._sizes[ids]
    of_parts = np.array([len(part.encode()) for part in parts])
    excess = of_tokens.sum() - of_parts.sum()
    if excess == 1 and parts[0][0] != " " and self._starts_with_space[ids[0]]:
      of_parts[0] += 1  # The space that the tokenizer put before the text.
      excess = 0
    return None if excess else (of_tokens, of_parts)


class _Normalized:
  """Sizes of the tokens of SentencePiece: bytes of the normalized text.

  Args:
    tokenizer: the tokenizer.
  """

  def __init__(self, tokenizer: SentencePiece):
    self._normalize = tokenizer.library.normalize
    self._unk_id = tokenizer.unk_id
    is_byte = tokenizer.library.is_byte
    self._sizes = np.array([1 if is_byte(i) else len(piece.encode())
                            for i, piece in enumerate(tokenizer.pieces)])
    self._spaces = _find_spaces(self._normalize)
    # Whether the tokenizer puts a space before a text that already begins with one.
    self._adds_space = self._normalize(" a") == f"{_SPACE}{_SPACE}a"
    self._needs_space = self._normalize("a") == f"{_SPACE}a"
    ascii_letters = [f"a{chr(code)}a" for code in range(33, 127)]
    self._keeps_ascii = (
        self._spaces >= set(" \n\t") and self._normalize("  a  a ") == f"{_SPACE}a{_SPACE}a"
        and all(len(text) == 4 for text in self._normalize(ascii_letters)))

  def measure(self, ids: np.ndarray, parts: Text) -> Measured | None:
    """Returns the sizes of tokens and parts; None if they do not add up.

    Args:
      ids: ids of the whole text.
      parts: parts of the text.
    """
    if self._unk_id in ids:  # An unknown token does not say which text it stands for.
      return None
    of_tokens = self._sizes[ids]
    of_parts = [self._measure_plain(part, i == 0) for i, part in enumerate(parts)]
    others = [i for i, size in enumerate(of_parts) if not size]
    normalized = self._normalize([parts[i] for i in others]) if others else []
    for i, text in zip(others, normalized, strict=True):
      # In the whole text, no space is put before a part.
      was_put = i and self._needs_space and (self._adds_space or parts[i][0] not in self._spaces)
      of_parts[i] = len(text.removeprefix(_SPACE if was_put else "").encode())
    return None if of_tokens.sum() != sum(of_parts) else (of_tokens, np.array(of_parts))

  def _measure_plain(self, part: str, is_first: bool) -> int:
    """Returns the size of a part that is ASCII words with single spaces; 0 for any other part.

    Normalizing it would take longer. Words keep their length, and a space has 3 bytes.
    """
    words = part.lstrip(" \n\t")
    if (self._keeps_ascii and words.isascii() and words.isprintable() and "  " not in words
        and words[-1] != " " and (is_first or len(words) < len(part))):
      return len(words) + 2 * words.count(" ") + 3
    return 0
