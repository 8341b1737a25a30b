"""Text to token ids and back: one small interface over SentencePiece and `tokenizers`.

| `config.tokenizer.kind` | trained by `training`   | also loaded from                        |
|-------------------------|-------------------------|-----------------------------------------|
| `sentencepiece`         | unigram or BPE          | any `*.model`                           |
| `wordpiece`             | with BERT's normalizer  | BERT's `vocab.txt`                      |
| `bpe`                   | byte-level, as in GPT-2 | `encoder.json` with `vocab.bpe`, or     |
|                         |                         | `vocab.json` with `merges.txt`          |
| `gpt1_bpe`              | not trained here        | GPT-1's `vocab.json`, `merges.txt`      |
| `unigram`               | not trained here        | nothing else; ALBERT's                  |
| `words`                 | the most frequent words | nothing else; for models that read the  |
|                         |                         | characters of words (ELMo)              |

All except SentencePiece are also loaded from a `tokenizer.json` of Hugging Face. Trained tokenizers
begin with the ids of `SPECIAL_PIECES`, so that one tokenizer serves BERT and GPT. A saved tokenizer
is a folder with one file, `tokenizer.model` or `tokenizer.json`, which other programs can read too.

Every tokenizer keeps two promises, whatever its file says. Text never yields a special id, even if
it contains "[MASK]": everything that would yield one is removed from the library's tokenizer, but
stays in the file. Special tokens without a role, such as "[E1]", are parts of texts, as in
`transformers`. And the same text always has the same ids: the dropout of BPE is turned off.

Sources: SentencePiece, Kudo and Richardson 2018 (arXiv:1808.06226); WordPiece, Devlin et al. 2018
(arXiv:1810.04805) and google-research/bert; byte-level BPE, openai/gpt-2, 2019; GPT-1's BPE,
openai/finetune-transformer-lm, 2018.
"""

import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_pb2

from bertgpt import files
from bertgpt.data.tokens import batching, pipelines, promises, reading
from bertgpt.data.tokens.tokenizer import NEW_SPECIALS, SPECIAL_PIECES, Tokenizer
from bertgpt.data.tokens.words import (
  bytes_of_byte_level,
  bytes_of_sentencepiece,
  join_cjk,
)
from bertgpt.errors import DataError, one_line, without_panics

__all__ = ["KINDS", "NEW_SPECIALS", "SPECIAL_PIECES", "ByteBPE", "Gpt1BPE", "SentencePiece",
           "Tokenizer", "Unigram", "WordPiece", "Words", "load_tokenizer"]

_protos: Any = sentencepiece_pb2  # Its classes are made when it is imported.
_UNKNOWN = "\ua66e" * 300  # A word that no vocabulary has; with some files, libraries fail on it.


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

  @functools.cached_property
  def library_without_prefix(self) -> sentencepiece.SentencePieceProcessor:
    """The library's tokenizer, but without the space that it may put before a text."""
    return sentencepiece.SentencePieceProcessor(
        model_proto=promises.without_prefix(self.safe_data))

  @property
  def user_symbols(self):
    return promises.user_symbols(self.safe_data)

  def show(self, extra, roles):
    others = [i for i, piece in enumerate(self.pieces) if piece in extra and piece not in roles
              and i not in self.special_ids and self._file_processor.is_control(i)]
    return promises.make_user_symbols(self.data, others) if others else self.data

  @property
  def is_unchanged(self):
    return self.safe_data is self.data

  @functools.cached_property
  def pieces(self) -> tuple[str, ...]:
    processor = self._file_processor
    return tuple(processor.id_to_piece(list(range(processor.vocab_size()))))

  @property
  def unknown_piece(self):
    return self.pieces[self._file_processor.unk_id()]

  def _encode(self, texts):
    threads = 1 if batching.is_worker() else os.cpu_count()
    return self.library.encode(texts, num_threads=threads)

  def encode_with_spans(self, texts):
    encoded = []
    for text, data in zip(texts, self.library.encode(list(texts), out_type="serialized_proto"),
                          strict=True):
      pieces = _protos.SentencePieceText.FromString(data).pieces
      ids = np.array([piece.id for piece in pieces], np.int32)
      ends = np.array([(piece.begin, piece.end) for piece in pieces], np.int32).reshape(-1, 2)
      encoded.append((ids, _characters_of_bytes(text)[ends]))
    return encoded

  def _decode(self, ids):
    return self.library.decode(ids)

  def _marked_ids(self):
    tests = (self.library.is_control, self.library.is_unused, self.library.is_unknown)
    return [i for i in range(self.vocab_size) if any(test(i) for test in tests)]

  def spell(self, text):
    return self.library.normalize(text)

  def piece_bytes(self, piece):
    return bytes_of_sentencepiece(piece)


def _characters_of_bytes(text: str) -> np.ndarray:
  """Returns, for every byte of the UTF-8, the index of its character: int32 [bytes + 1]."""
  data = np.frombuffer(text.encode(), np.uint8)
  starts = np.cumsum((data & 0xC0) != 0x80, dtype=np.int32)
  return np.append(starts - 1, len(text)).astype(np.int32)


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

  @functools.cached_property
  def num_separators(self):
    # All but the one after the second text. A file without a template has none.
    ids = self._file_library.encode("", "").ids
    return max(1, ids.count(self.sep_id) - 1)

  def apply_template(self, text):
    return self._file_library.encode(text).ids

  @property
  def user_symbols(self):
    added = self._file_library.get_added_tokens_decoder()
    return tuple(token.content for i, token in added.items()
                 if not token.special and i not in self.special_ids)

  def show(self, extra, roles):
    ids = [*self.special_ids, *self.apply_template("")]
    unknown = [self.pieces[self.unk_id]] if self.unk_id >= 0 else []
    return promises.show_added(self.data, {*roles, *unknown, *(self.pieces[i] for i in ids)})

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
  def unknown_piece(self):
    return self._file_library.model.unk_token

  def _encode(self, texts):
    if batching.is_worker():
      os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return pipelines.ids_of(self.library, texts)

  def encode_with_spans(self, texts):
    return [(np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2))
            for e in self.library.encode_batch(list(texts), add_special_tokens=False)]

  def _decode(self, ids):
    return self.library.decode(ids, skip_special_tokens=False)

  def _marked_ids(self):
    return [i for i, token in self.library.get_added_tokens_decoder().items() if token.special]

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

  def _continues_word(self, piece):
    return piece.startswith("##")

  def _ends_word(self, piece):
    return False


class ByteBPE(_Json):
  """GPT-2's tokenizer: its pieces consist of bytes, so that it can represent every text."""

  kind = "bpe"
  keeps_space = True
  _between_specials = ""

  def piece_bytes(self, piece):
    return bytes_of_byte_level(piece)


class Gpt1BPE(_Json):
  """GPT-1's tokenizer: BPE within lower-cased words, whose last pieces are marked."""

  kind = "gpt1_bpe"

  def _continues_word(self, piece):
    return True  # Unless the piece before it ends a word.

  def _ends_word(self, piece):
    return piece.endswith(pipelines.END_OF_WORD)


class Unigram(_Json):
  """ALBERT's tokenizer: a unigram model of SentencePiece, behind a normalizer in the file."""

  kind = "unigram"

  @property
  def unknown_piece(self):
    return self.pieces[json.loads(self.data)["model"]["unk_id"]]

  piece_bytes = SentencePiece.piece_bytes


class Words(_Json):
  """Whole words, numbers and runs of punctuation; those outside the vocabulary are [UNK]."""

  kind = "words"
  has_words = True

  def _continues_word(self, piece):
    return False

  def _ends_word(self, piece):
    return True

  def unknown_words(self, texts: Iterable[str]) -> list[str]:
    """Returns the words of texts that the vocabulary lacks, in the order of their occurrence.

    Args:
      texts: any texts.
    """
    normalizer, splitter = self.library.normalizer, self.library.pre_tokenizer
    known, found = set(self.pieces), {}
    for text in texts:
      text = text.encode(errors="replace").decode()
      text = normalizer.normalize_str(text) if normalizer else text
      found |= {word: None for word, _ in splitter.pre_tokenize_str(text) if word not in known}
    return list(found)

  def with_words(self, words: Sequence[str]) -> "Words":
    """Returns a tokenizer with more words, whose ids follow those of the vocabulary.

    Args:
      words: words that the vocabulary lacks.
    """
    content = json.loads(self.data)
    content["model"]["vocab"] |= {word: self.vocab_size + i for i, word in enumerate(words)}
    return Words(json.dumps(content, ensure_ascii=False, indent=2).encode(), self.names)


class RecordingWords(Words):
  """`Words` that records the words that it lacks, in the order in which texts are encoded.

  Attributes:
    recorded: the words recorded so far, as keys.
  """

  def __init__(self, data: bytes, names: Mapping[str, str] | None = None):
    super().__init__(data, names)
    self.recorded: dict[str, None] = {}

  def encode(self, texts):
    self.recorded |= dict.fromkeys(self.unknown_words(texts))
    return super().encode(texts)

  def encode_with_spans(self, texts):
    self.recorded |= dict.fromkeys(self.unknown_words(texts))
    return super().encode_with_spans(texts)


# ----------------------------------------------------------------- loading


# `config.tokenizer.kind` -> class.
KINDS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (SentencePiece, WordPiece, ByteBPE, Gpt1BPE, Unigram, Words)}


def load_tokenizer(path: str | os.PathLike, lowercase: bool | None = None,
                   is_saved: bool = False) -> Tokenizer:
  """Loads a tokenizer from a file of the table above, or from a folder with such a file.

  Settings in the files next to it are applied: tokenizer_config.json, special_tokens_map.json and
  added_tokens.json.

  Args:
    path: file or folder.
    lowercase: whether a vocab.txt lower-cases text, if no file next to it says so; None: infer it
      from the pieces. Other formats store it.
    is_saved: whether `Tokenizer.save` wrote the file, or a run of an earlier version began with it.
      Then its pieces are not checked again, special tokens without a role are not found in texts,
      and what the folder does not say has no defaults.
  Raises:
    DataError: there is no tokenizer at `path`, it belongs to a class that tokenizes differently,
      a text yields a special id, or no text yields some of the pieces; the message names the file.
  """
  place = files.make_path(path) if files.is_remote(path) else files.expand(path)
  local = files.copy_locally(place, reading.is_read)

  def with_given_path(message: str) -> str:
    return message.replace(str(local), str(place)).replace(str(local.parent), str(place.parent))

  try:
    tokenizer = _load(local, lowercase, is_saved)
  except DataError as e:
    raise DataError(with_given_path(str(e))) from e
  tokenizer.note = with_given_path(tokenizer.note)
  return tokenizer


def _load(path: pathlib.Path, lowercase: bool | None, is_saved: bool) -> Tokenizer:
  """Loads a tokenizer from a disk; see `load_tokenizer`."""
  file, kind, data, hf, note = reading.read(path, lowercase, is_saved)
  try:
    with without_panics():
      tokenizer = KINDS[kind](data)
      found = {role: tokenizer.pieces[i] for role, i in tokenizer.roles.items() if i >= 0}
      others = reading.choose_names(hf.names, tokenizer.pieces, found, tokenizer.unknown_piece)
      if others:
        tokenizer = KINDS[kind](data, others)
      # `Tokenizer.save` writes special_tokens_map.json alone, with the roles of this program.
      is_ours = file.name == "tokenizer.json" and not (hf.settings or hf.extra)
      names_roles = bool(hf.settings or hf.extra or hf.roles) and not is_ours
      parts = hf.shown
      if names_roles and not is_saved:
        symbols = {*tokenizer.user_symbols} - hf.extra
        if (shown := tokenizer.show(hf.extra, hf.roles)) != data:
          tokenizer = KINDS[kind](shown, others)
        parts = parts or tuple(sorted({*tokenizer.user_symbols} - symbols))
      tokenizer.shown = parts
      tokenizer.encode([_UNKNOWN])
      leak = tokenizer.find_leak()
  except Exception as e:  # Both libraries raise plain Exceptions.
    raise DataError(f"{file}: is not a tokenizer ({one_line(e)}). Give {reading.FORMS}") from e
  if leak:
    raise DataError(f"{file}: the text {leak.text!r} " + (
        f"yields the special token {leak.name}. Give a tokenizer whose special tokens are not part "
        "of texts" if leak.name else
        "yields no token. Give a tokenizer with an unknown token or byte fallback"))
  absent = reading.describe_absent(hf, tokenizer.pieces)
  tokenizer.note = ". ".join(filter(None, (note, absent)))
  return tokenizer
