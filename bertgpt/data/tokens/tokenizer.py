"""The interface of every tokenizer, and its special tokens; the kinds are in `tokenizers`."""

import abc
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from bertgpt import files
from bertgpt.data.tokens import batching, hf_files, promises, words

# Special tokens: role -> possible names. The first name that is in the vocabulary is used. eod is
# the end of a document for GPT; in BERT's vocabularies, [SEP] serves as eod.
SPECIAL_PIECES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "eod": ("<|endoftext|>", "<eod>", "</s>", "[SEP]"),
}
NEW_SPECIALS = [names[0] for names in SPECIAL_PIECES.values()]
_UNUSED = re.compile(r"\[unused\d+\]")  # Spare pieces in vocabularies of google-research/bert.
_ENCODE_CHARS = 1 << 20  # Characters per call: `tokenizers` needs about 200 bytes per token.


class Tokenizer(abc.ABC):
  """A trained tokenizer.

  Args:
    data: content of the tokenizer's file.
    names: role in `SPECIAL_PIECES` -> piece, for roles whose piece is not listed there.

  Attributes:
    data: content of the tokenizer's file.
    names: as above.
    kind: `config.tokenizer.kind`.
    file_name: name of the file that `save` writes.
    has_words: whether every piece is a whole word.
    keeps_space: whether it learns indentation and blank lines, which others ignore.
    vocab_size: number of ids.
    roles: special ids by role; -1: the vocabulary has none.
    pad_id, unk_id, cls_id, sep_id, mask_id, eod_id: the same.
    num_separators: number of [SEP] between the two texts of a row.
    special_ids: sorted ids that `encode` never returns; [UNK] is not one of them.
    shown: special tokens without a role in the file that it was loaded from, which are parts of
      texts here, sorted.
    note: what a user should know about that file, or ''.
  """

  kind: ClassVar[str]
  file_name: ClassVar[str]
  has_words: ClassVar[bool] = False
  keeps_space: ClassVar[bool] = False
  shown: tuple[str, ...] = ()
  note: str = ""
  _between_specials: ClassVar[str] = " "

  def __init__(self, data: bytes, names: Mapping[str, str] | None = None):
    self.data = data
    self.names = dict(names or {})
    id_of = {piece: i for i, piece in enumerate(self.pieces)}
    self.roles = {}
    for role, common in SPECIAL_PIECES.items():
      candidates = [self.names[role]] if role in self.names else common
      self.roles[role] = next((id_of[name] for name in candidates if name in id_of), -1)
    if "unk" not in self.names and self.unknown_piece in id_of:
      self.roles["unk"] = id_of[self.unknown_piece]
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, self.eod_id = (
        self.roles.values())
    self.special_ids = tuple(sorted({*self.roles.values()} - {-1, self.unk_id}))
    self.vocab_size = len(self.pieces)

  def __reduce__(self):
    return type(self), (self.data, self.names)

  @functools.cached_property
  @abc.abstractmethod
  def library(self) -> Any:
    """The library's tokenizer, with everything turned off that would break the promises."""

  @property
  def num_separators(self) -> int:
    """Number of [SEP] between the two texts of a row."""
    return 1

  @functools.cached_property
  @abc.abstractmethod
  def pieces(self) -> tuple[str, ...]:
    """The pieces of the vocabulary by id, as the library writes them."""

  @property
  @abc.abstractmethod
  def unknown_piece(self) -> str | None:
    """The piece for what the vocabulary lacks; None: there is none."""

  @abc.abstractmethod
  def _encode(self, texts: list[str]) -> list[list[int]]:
    """Returns the ids of every text."""

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """Returns the text of ids that are not special."""

  def piece_bytes(self, piece: str) -> bytes | None:
    """Returns the UTF-8 that a piece stands for; None: the pieces carry marks of words.

    Args:
      piece: a piece that is not special.
    """
    del piece
    return None

  def _continues_word(self, piece: str) -> bool:
    """Returns whether a piece continues the word before it, according to its mark."""
    raise NotImplementedError

  def _ends_word(self, piece: str) -> bool:
    """Returns whether a word starts after a piece in any case, according to its mark."""
    raise NotImplementedError

  @abc.abstractmethod
  def spell(self, text: str) -> str:
    """Returns the string in which pieces are looked up: the text, normalized, with their spaces."""

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the token ids of every text, int32 [tokens] each, without special ids.

    Uses all cores, but only one thread in a worker process of `multiprocessing`.

    Args:
      texts: any texts; lone surrogates are encoded as '?'.
    """
    arrays = []
    for batch in batching.batches(texts, _ENCODE_CHARS):
      try:
        ids = self._encode(batch)
      except (TypeError, UnicodeError, RuntimeError):  # Each library's error for a lone surrogate.
        ids = self._encode([text.encode(errors="replace").decode() for text in batch])
      arrays.extend(np.array(i, np.int32) for i in ids)
    return arrays

  @abc.abstractmethod
  def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the token ids of every text, and where each token is in the text.

    Args:
      texts: any texts.
    Returns:
      For every text, ids int32 [N], which are those of `encode`, and characters int32 [N, 2]: the
      first character of a token and the one after its last. Characters that the tokenizer drops
      belong to no token; `offsets.encode_with_offsets` assigns them too.
    """

  def apply_template(self, text: str) -> list[int]:
    """Returns the ids of a text with the special ids that the file's own template puts around it.

    Args:
      text: any text.
    """
    return self.encode([text])[0].tolist()

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of token ids.

    Args:
      ids: token ids; special ids are written as their names.
    """
    named = {*self.special_ids, self.unk_id}
    parts = []
    for is_special, group in itertools.groupby(map(int, ids), key=named.__contains__):
      run = list(group)
      parts += [self.pieces[i] for i in run] if is_special else [self._decode(run)]
    return self._between_specials.join(parts)

  @functools.cached_property
  def hidden_ids(self) -> frozenset[int]:
    """Ids that do not stand for text: special, unknown and unused pieces.

    In addition to `special_ids`, they include pieces that only the file calls special.
    """
    unused = (i for i, piece in enumerate(self.pieces) if _UNUSED.fullmatch(piece))
    return frozenset({*self.special_ids, self.unk_id, *self._marked_ids(), *unused} - {-1})

  @abc.abstractmethod
  def _marked_ids(self) -> Iterable[int]:
    """Returns the ids that the library's tokenizer calls special, unknown or unused."""

  def continues_word(self, rule: Callable[[bytes], bool] = words.is_continuation) -> np.ndarray:
    """Returns which pieces continue the word before them, bool [vocab_size].

    After a piece of `ends_word`, they start a word. If the pieces carry no mark of their own
    (SentencePiece, byte-level BPE), a piece that begins with punctuation or with a character of a
    script without spaces starts a word, as in BERT.

    Args:
      rule: UTF-8 of a piece without marks -> whether it continues a word.
    """
    return self._tell_pieces(self._continues_word, rule)

  def ends_word(self) -> np.ndarray:
    """Returns after which pieces a word starts in any case, bool [vocab_size].

    If the pieces carry no mark of their own, these are those that end with punctuation, as in BERT,
    or with a character of a script without spaces.
    """
    return self._tell_pieces(self._ends_word, words.ends_word)

  def _tell_pieces(self, by_mark: Callable[[str], bool],
                   by_bytes: Callable[[bytes], bool]) -> np.ndarray:
    """Returns what holds for which pieces, bool [vocab_size]; for special ones it never does."""
    named = {*self.special_ids, self.unk_id}
    found = np.zeros(self.vocab_size, bool)
    for i, piece in enumerate(self.pieces):
      if i not in named:
        spelled = self.piece_bytes(piece)
        found[i] = by_mark(piece) if spelled is None else by_bytes(spelled)
    return found

  @property
  @abc.abstractmethod
  def user_symbols(self) -> tuple[str, ...]:
    """Pieces that are matched in texts before all others, and are not special."""

  @property
  @abc.abstractmethod
  def is_unchanged(self) -> bool:
    """Whether the file itself keeps the promises, so that nothing had to be removed from it."""

  @abc.abstractmethod
  def show(self, extra: Collection[str], roles: Collection[str]) -> bytes:
    """Returns the content of the file with special tokens that have no role as parts of texts.

    Args:
      extra: special tokens according to the folder of the file.
      roles: those that have a role there; those with a role here stay special too.
    """

  def find_leak(self) -> promises.Leak | None:
    """Returns a text that yields a special id; None: there is none, as promised."""
    return promises.find_leak(self._encode, self._specials)

  @property
  def _specials(self) -> dict[int, str]:
    return {i: self.pieces[i] for i in self.special_ids}

  def fingerprint(self) -> str:
    """Returns the SHA-256 (hex) of the tokenizer's file, and of `names` if there are any."""
    names = json.dumps(self.names, sort_keys=True).encode() if self.names else b""
    return hashlib.sha256(self.data + names).hexdigest()

  def replaced(self, data: bytes, names: Mapping[str, str]) -> Self:
    """Returns a tokenizer of the same kind and the same source with another content.

    Args:
      data, names: see `Tokenizer`.
    """
    changed = type(self)(data, names)
    changed.shown, changed.note = self.shown, self.note
    return changed

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the tokenizer's file, and special_tokens_map.json if it has `names` or `shown`.

    Args:
      folder: where to write it; created if it does not exist.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / self.file_name).write_bytes(self.data)
    if self.names or self.shown:
      files.write_json(folder / hf_files.SPECIALS, {
          key: self.names[role] for key, role in hf_files.ROLES.items() if role in self.names}
          | ({hf_files.SHOWN: self.shown} if self.shown else {}))
