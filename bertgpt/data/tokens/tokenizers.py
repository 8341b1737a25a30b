"""Text to token ids and back: one small interface over SentencePiece and `tokenizers`.

| `config.tokenizer.kind` | trained by `training`   | also loaded from                        |
|-------------------------|-------------------------|-----------------------------------------|
| `sentencepiece`         | unigram or BPE          | any `*.model`                           |
| `wordpiece`             | with BERT's normalizer  | BERT's `vocab.txt`                      |
| `bpe`                   | byte-level, as in GPT-2 | `encoder.json` with `vocab.bpe`, or     |
|                         |                         | `vocab.json` with `merges.txt`          |
| `gpt1_bpe`              | not trained here        | GPT-1's `vocab.json`, `merges.txt`      |
| `unigram`               | not trained here        | nothing else; ALBERT's                  |

All except SentencePiece are also loaded from a `tokenizer.json` of Hugging Face. Trained tokenizers
begin with the ids of `SPECIAL_PIECES`, so that one tokenizer serves BERT and GPT. A saved tokenizer
is a folder with one file, `tokenizer.model` or `tokenizer.json`, which other programs can read too.

Every tokenizer keeps two promises, whatever its file says. Text never yields a special id, even if
it contains "[MASK]": what would yield one is taken out of the library's tokenizer, but stays in the
file. And the same text always has the same ids: the dropout of BPE is turned off.

Sources: SentencePiece, Kudo and Richardson 2018 (arXiv:1808.06226); WordPiece, Devlin et al. 2018
(arXiv:1810.04805) and google-research/bert; byte-level BPE, openai/gpt-2, 2019; GPT-1's BPE,
openai/finetune-transformer-lm, 2018.
"""

import abc
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import tokenizers

from bertgpt import files
from bertgpt.data.tokens import batching, hf_files, pipelines, promises, reading
from bertgpt.data.tokens.words import (
    bytes_of_byte_level,
    bytes_of_sentencepiece,
    ends_word,
    is_continuation,
    join_cjk,
)
from bertgpt.errors import DataError, one_line

# Special tokens: role -> possible names. The first name that is in the vocabulary is used. eod is
# the end of a document for GPT; in BERT's vocabularies, [SEP] serves as eod.
SPECIAL_PIECES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "eod": ("<|endoftext|>", "</s>", "[SEP]"),
}
NEW_SPECIALS = [names[0] for names in SPECIAL_PIECES.values()]
_UNKNOWN = "\ua66e" * 300  # A word that no vocabulary knows: with some files, libraries fail there.
_ENCODE_CHARS = 1 << 20  # Characters per call: `tokenizers` needs about 200 bytes per token.


class Tokenizer(abc.ABC):
  """A trained tokenizer.

  Args:
    data: content of the tokenizer's file.
    names: role in `SPECIAL_PIECES` -> piece, for roles that have other pieces than those there.

  Attributes:
    data: content of the tokenizer's file.
    names: as above.
    kind: `config.tokenizer.kind`.
    file_name: name of the file that `save` writes.
    keeps_space: whether it learns indentation and blank lines, which others ignore.
    vocab_size: number of ids.
    roles: special ids by role; -1: the vocabulary has none.
    pad_id, unk_id, cls_id, sep_id, mask_id, eod_id: the same.
    special_ids: sorted ids that `encode` never returns; [UNK] is not one of them.
    note: what a user should know about the file that it was loaded from, or ''.
  """

  kind: ClassVar[str]
  file_name: ClassVar[str]
  keeps_space: ClassVar[bool] = False
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
    if "unk" not in self.names and self._unknown_piece in id_of:
      self.roles["unk"] = id_of[self._unknown_piece]
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, self.eod_id = (
        self.roles.values())
    self.special_ids = tuple(sorted({*self.roles.values()} - {-1, self.unk_id}))
    self.vocab_size = len(self.pieces)

  def __reduce__(self):
    return type(self), (self.data, self.names)

  @functools.cached_property
  @abc.abstractmethod
  def library(self) -> Any:
    """The tokenizer of the library, in which what would break the promises is turned off."""

  @functools.cached_property
  @abc.abstractmethod
  def pieces(self) -> tuple[str, ...]:
    """The pieces of the vocabulary by id, as the library writes them."""

  @property
  @abc.abstractmethod
  def _unknown_piece(self) -> str | None:
    """The piece for what the vocabulary lacks; None: there is none."""

  @abc.abstractmethod
  def _encode(self, texts: list[str]) -> list[list[int]]:
    """Returns the ids of every text."""

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """Returns the text of ids that are not special."""

  @abc.abstractmethod
  def _continues_word(self, piece: str, is_former: bool) -> bool:
    """Returns whether a piece that is not special continues the word before it."""

  @abc.abstractmethod
  def _ends_word(self, piece: str) -> bool:
    """Returns whether a word starts after a piece that is not special, whatever comes."""

  @abc.abstractmethod
  def spell(self, text: str) -> str:
    """Returns what pieces are looked for in: the text, normalized and with their spaces."""

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

  def continues_word(self, is_former: bool = False) -> np.ndarray:
    """Returns which pieces continue the word before them, bool [vocab_size].

    After a piece of `ends_word`, they start a word. If the pieces carry no mark of their own
    (SentencePiece, byte-level BPE), a piece that begins with punctuation or with a character of a
    script without spaces starts a word, as in BERT.

    Args:
      is_former: whether to decide as version 0.1 did, see `words.is_continuation`.
    """
    named = {*self.special_ids, self.unk_id}
    return np.array([i not in named and self._continues_word(piece, is_former)
                     for i, piece in enumerate(self.pieces)])

  def ends_word(self) -> np.ndarray:
    """Returns after which pieces a word starts in any case, bool [vocab_size].

    If the pieces carry no mark of their own, these are those that end with punctuation, as in BERT,
    or with a character of a script without spaces.
    """
    named = {*self.special_ids, self.unk_id}
    return np.array([i not in named and self._ends_word(piece)
                     for i, piece in enumerate(self.pieces)])

  @property
  @abc.abstractmethod
  def user_symbols(self) -> tuple[str, ...]:
    """Pieces that are looked for in texts before all others, and are not special."""

  @property
  @abc.abstractmethod
  def is_unchanged(self) -> bool:
    """Whether the file keeps the promises itself, so that nothing had to be taken out of it."""

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

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the tokenizer's file, and special_tokens_map.json if it has `names`.

    Args:
      folder: where to write it; created if it does not exist.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / self.file_name).write_bytes(self.data)
    if self.names:
      files.write_json(folder / hf_files.SPECIALS, {
          key: self.names[role] for key, role in hf_files.ROLES.items() if role in self.names})


class SentencePiece(Tokenizer):
  """A SentencePiece model, unigram or BPE, which includes its normalizer."""

  kind = "sentencepiece"
  file_name = "tokenizer.model"

  @functools.cached_property
  def _file_processor(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self.data)

  @functools.cached_property
  def safe_data(self) -> bytes:
    """The content of the file with the special pieces as control symbols."""
    others = [i for i in self.special_ids if not self._file_processor.is_control(i)]
    return promises.make_control(self.data, others) if others else self.data

  @functools.cached_property
  def library(self) -> sentencepiece.SentencePieceProcessor:
    if self.is_unchanged:
      return self._file_processor
    return sentencepiece.SentencePieceProcessor(model_proto=self.safe_data)

  @property
  def user_symbols(self):
    return promises.user_symbols(self.safe_data)

  @property
  def is_unchanged(self):
    return self.safe_data is self.data

  @functools.cached_property
  def pieces(self) -> tuple[str, ...]:
    processor = self._file_processor
    return tuple(processor.id_to_piece(list(range(processor.vocab_size()))))

  @property
  def _unknown_piece(self):
    return self.pieces[self._file_processor.unk_id()]

  def _encode(self, texts):
    threads = 1 if batching.is_worker() else os.cpu_count()
    return self.library.encode(texts, num_threads=threads)

  def _decode(self, ids):
    return self.library.decode(ids)

  def spell(self, text):
    return self.library.normalize(text)

  def _continues_word(self, piece, is_former):
    return is_continuation(bytes_of_sentencepiece(piece), is_former)

  def _ends_word(self, piece):
    return ends_word(bytes_of_sentencepiece(piece))


class _Json(Tokenizer):
  """The common part of WordPiece and the BPEs: the library and its file."""

  file_name = "tokenizer.json"

  @functools.cached_property
  def _file_library(self) -> tokenizers.Tokenizer:
    return pipelines.make_deterministic(tokenizers.Tokenizer.from_buffer(self.data))

  @functools.cached_property
  def _file_leak(self) -> promises.Leak | None:
    return promises.find_leak(lambda texts: pipelines.ids_of(self._file_library, texts),
                              self._specials)

  def find_leak(self):
    return self._file_leak if self.is_unchanged else super().find_leak()

  @functools.cached_property
  def library(self) -> tokenizers.Tokenizer:
    if not self._file_leak:
      return self._file_library
    return pipelines.make_deterministic(tokenizers.Tokenizer.from_str(
        promises.hide_pieces(self.data, self._specials.values())))

  @property
  def user_symbols(self):
    added = self._file_library.get_added_tokens_decoder()
    return tuple(token.content for i, token in added.items()
                 if not token.special and i not in self.special_ids)

  @property
  def is_unchanged(self):
    return self.library is self._file_library

  @functools.cached_property
  def pieces(self) -> tuple[str, ...]:
    ids = self._file_library.get_vocab()
    if sorted(ids.values()) != list(range(len(ids))):
      raise ValueError("its ids are not consecutive from 0")
    return tuple(sorted(ids, key=ids.get))

  @property
  def _unknown_piece(self):
    return self._file_library.model.unk_token

  def _encode(self, texts):
    if batching.is_worker():
      os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return pipelines.ids_of(self.library, texts)

  def _decode(self, ids):
    return self.library.decode(ids, skip_special_tokens=False)

  def spell(self, text):
    normalizer, splitter = self.library.normalizer, self.library.pre_tokenizer
    normal = normalizer.normalize_str(text) if normalizer else text
    return "".join(word for word, _ in splitter.pre_tokenize_str(normal)) if splitter else normal


class WordPiece(_Json):
  """BERT's tokenizer: words, punctuation and CJK characters, cut into pieces.

  Each is cut into the longest pieces of the vocabulary, from the left.
  """

  kind = "wordpiece"

  def _decode(self, ids):
    return join_cjk(super()._decode(ids))

  def _continues_word(self, piece, is_former):
    return piece.startswith("##")

  def _ends_word(self, piece):
    return False


class ByteBPE(_Json):
  """GPT-2's tokenizer: its pieces consist of bytes, so that it can represent every text."""

  kind = "bpe"
  keeps_space = True
  _between_specials = ""

  def _continues_word(self, piece, is_former):
    return is_continuation(bytes_of_byte_level(piece), is_former)

  def _ends_word(self, piece):
    return ends_word(bytes_of_byte_level(piece))


class Gpt1BPE(_Json):
  """GPT-1's tokenizer: BPE within lower-cased words, whose last pieces are marked."""

  kind = "gpt1_bpe"

  def _continues_word(self, piece, is_former):
    return True  # Unless the piece before it ends a word.

  def _ends_word(self, piece):
    return piece.endswith(pipelines.END_OF_WORD)


class Unigram(_Json):
  """ALBERT's tokenizer: a unigram model of SentencePiece, behind a normalizer in the file."""

  kind = "unigram"

  @property
  def _unknown_piece(self):
    return self.pieces[json.loads(self.data)["model"]["unk_id"]]

  _continues_word = SentencePiece._continues_word
  _ends_word = SentencePiece._ends_word


# ----------------------------------------------------------------- loading


# `config.tokenizer.kind` -> class.
KINDS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (SentencePiece, WordPiece, ByteBPE, Gpt1BPE, Unigram)}


def load_tokenizer(path: str | os.PathLike, lowercase: bool | None = None,
                   is_saved: bool = False) -> Tokenizer:
  """Loads a tokenizer from a file of the table above, or from a folder with such a file.

  Settings in the files next to it are applied: tokenizer_config.json, special_tokens_map.json and
  added_tokens.json.

  Args:
    path: file or folder.
    lowercase: whether a vocab.txt lower-cases text, if no file next to it says so; None: infer it
      from the pieces. Other formats store it.
    is_saved: whether `Tokenizer.save` wrote the file, whose pieces then are not checked again.
  Raises:
    DataError: there is no tokenizer at `path`, it belongs to a class that tokenizes differently,
      a text yields a special id, or no text yields some of the pieces; the message names the file.
  """
  file, kind, data, names, note = reading.read(
      pathlib.Path(path).expanduser(), lowercase, is_saved)
  try:
    tokenizer = KINDS[kind](data)
    found = {role: tokenizer.pieces[i] for role, i in tokenizer.roles.items() if i >= 0}
    if others := reading.choose_names(names, tokenizer.pieces, found, tokenizer._unknown_piece):
      tokenizer = KINDS[kind](data, others)
    tokenizer.encode([_UNKNOWN])
    leak = tokenizer.find_leak()
  except Exception as e:  # Both libraries raise plain Exceptions.
    raise DataError(f"{file}: is not a tokenizer ({one_line(e)}). Give {reading.FORMS}") from e
  if leak:
    raise DataError(f"{file}: the text {leak.text!r} " + (
        f"yields the special token {leak.name}. Give a tokenizer whose special tokens are not part "
        "of texts" if leak.name else
        "yields no token. Give a tokenizer with an unknown token or byte fallback"))
  tokenizer.note = note
  return tokenizer
