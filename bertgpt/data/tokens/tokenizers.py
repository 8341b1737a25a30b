"""Text to token ids and back: one small interface over SentencePiece and `tokenizers`.

| `config.tokenizer.kind` | trained by `training`   | also loaded from                        |
|-------------------------|-------------------------|-----------------------------------------|
| `sentencepiece`         | unigram or BPE          | any `*.model`                           |
| `wordpiece`             | with BERT's normalizer  | BERT's `vocab.txt`                      |
| `bpe`                   | byte-level, as in GPT-2 | `encoder.json` with `vocab.bpe`, or     |
|                         |                         | `vocab.json` with `merges.txt`          |

WordPiece and BPE are also loaded from a `tokenizer.json` of Hugging Face. Trained tokenizers begin
with the ids of `SPECIAL_PIECES`, so that one tokenizer serves BERT and GPT. Text never yields a
special id, even if it contains "[MASK]". A saved tokenizer is a folder with one file,
`tokenizer.model` or `tokenizer.json`, which other programs can read too.

Sources: SentencePiece, Kudo and Richardson 2018 (arXiv:1808.06226); WordPiece, Devlin et al. 2018
(arXiv:1810.04805) and google-research/bert; byte-level BPE, openai/gpt-2, 2019.
"""

import abc
import functools
import hashlib
import itertools
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bertgpt import files
from bertgpt.data.tokens.words import BYTE_OF_CHAR, is_continuation, join_cjk
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
_ENCODE_CHARS = 1 << 20  # Characters per call: `tokenizers` needs about 200 bytes per token.


class Tokenizer(abc.ABC):
  """A trained tokenizer.

  Args:
    data: content of the tokenizer's file.

  Attributes:
    data: content of the tokenizer's file.
    kind: `config.tokenizer.kind`.
    file_name: name of the file that `save` writes.
    vocab_size: number of ids.
    pad_id, unk_id, cls_id, sep_id, mask_id, eod_id: special ids; -1: the vocabulary has none.
    special_ids: sorted ids that `encode` never returns; [UNK] is not one of them.
  """

  kind: ClassVar[str]
  file_name: ClassVar[str]
  _between_specials: ClassVar[str] = " "

  def __init__(self, data: bytes):
    self.data = data
    id_of = {piece: i for i, piece in enumerate(self.pieces)}
    ids = [next((id_of[name] for name in names if name in id_of), -1)
           for names in SPECIAL_PIECES.values()]
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, self.eod_id = ids
    self.special_ids = tuple(sorted({i for i in ids if i not in (-1, self.unk_id)}))
    self.vocab_size = len(self.pieces)

  def __reduce__(self):
    return type(self), (self.data,)

  @functools.cached_property
  @abc.abstractmethod
  def pieces(self) -> tuple[str, ...]:
    """The pieces of the vocabulary by id, as the library writes them."""

  @abc.abstractmethod
  def _encode(self, texts: list[str]) -> list[list[int]]:
    """Returns the ids of every text."""

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """Returns the text of ids that are not special."""

  @abc.abstractmethod
  def _continues_word(self, piece: str) -> bool:
    """Returns whether a piece that is not special continues the word before it."""

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the token ids of every text, int32 [tokens] each, without special ids.

    Uses all cores, but only one thread in a worker process of `multiprocessing`.

    Args:
      texts: any texts; lone surrogates are encoded as '?'.
    """
    arrays = []
    for batch in _batches(texts, _ENCODE_CHARS):
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

  def continues_word(self) -> np.ndarray:
    """Returns which pieces continue the word before them, bool [vocab_size].

    If the pieces carry no mark of their own (SentencePiece, byte-level BPE), a piece that begins
    with punctuation or with a character of a script without spaces starts a word, as in BERT.
    """
    named = {*self.special_ids, self.unk_id}
    return np.array([i not in named and self._continues_word(piece)
                     for i, piece in enumerate(self.pieces)])

  def fingerprint(self) -> str:
    """Returns the SHA-256 (hex) of the tokenizer's file."""
    return hashlib.sha256(self.data).hexdigest()

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the tokenizer's file.

    Args:
      folder: where to write it; created if it does not exist.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / self.file_name).write_bytes(self.data)


class SentencePiece(Tokenizer):
  """A SentencePiece model, unigram or BPE, which includes its normalizer."""

  kind = "sentencepiece"
  file_name = "tokenizer.model"

  @functools.cached_property
  def _processor(self):
    return sentencepiece.SentencePieceProcessor(model_proto=self.data)

  @functools.cached_property
  def pieces(self) -> tuple[str, ...]:
    return tuple(self._processor.id_to_piece(list(range(self._processor.vocab_size()))))

  def _encode(self, texts):
    threads = 1 if _is_worker() else os.cpu_count()
    return self._processor.encode(texts, num_threads=threads)

  def _decode(self, ids):
    return self._processor.decode(ids)

  def _continues_word(self, piece):
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    part = bytes.fromhex(byte[1]) if byte else piece.encode()
    return not piece.startswith("\u2581") and is_continuation(part)


class _Json(Tokenizer):
  """The common part of WordPiece and byte-level BPE: the library and its file."""

  file_name = "tokenizer.json"

  @functools.cached_property
  def _tokenizer(self):
    tokenizer = tokenizers.Tokenizer.from_buffer(self.data)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer

  @functools.cached_property
  def pieces(self) -> tuple[str, ...]:
    ids = self._tokenizer.get_vocab()
    if sorted(ids.values()) != list(range(len(ids))):
      raise ValueError("its ids are not consecutive from 0")
    return tuple(sorted(ids, key=ids.get))

  def _encode(self, texts):
    if _is_worker():
      os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def _decode(self, ids):
    return self._tokenizer.decode(ids, skip_special_tokens=False)


class WordPiece(_Json):
  """BERT's tokenizer: words, punctuation and CJK characters, cut into pieces.

  Each is cut into the longest pieces of the vocabulary, from the left.
  """

  kind = "wordpiece"

  def _decode(self, ids):
    return join_cjk(super()._decode(ids))

  def _continues_word(self, piece):
    return piece.startswith("##")


class ByteBPE(_Json):
  """GPT-2's tokenizer: its pieces consist of bytes, so that it can represent every text."""

  kind = "bpe"
  _between_specials = ""

  def _continues_word(self, piece):
    # Pieces added to the vocabulary of GPT-2 need not be made of bytes.
    return BYTE_OF_CHAR.keys() >= set(piece) and is_continuation(
        bytes(BYTE_OF_CHAR[c] for c in piece))


def _is_worker() -> bool:
  return multiprocessing.parent_process() is not None


def _batches(texts: Sequence[str], max_chars: int) -> Iterator[list[str]]:
  batch, chars = [], 0
  for text in texts:
    if batch and chars + len(text) > max_chars:
      yield batch
      batch, chars = [], 0
    batch.append(text)
    chars += len(text)
  if batch:
    yield batch


# ----------------------------------------------------------------- loading


# Characters; a longer word is [UNK]. The limit of BERT in `tokenizers`; google-research/bert has
# 200.
_MAX_WORD = 100


def bert_pipeline(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
  """Returns BERT's tokenizer as the library has it.

  Args:
    vocabulary: ids by piece; empty: still to be trained.
    lowercase: whether text is lower-cased and its accents are stripped.
  """
  tokenizer = tokenizers.Tokenizer(models.WordPiece(
      vocabulary, unk_token="[UNK]", max_input_chars_per_word=_MAX_WORD))
  # strip_accents=None: accents are stripped if the text is lower-cased, as in google-research/bert.
  tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=None, lowercase=lowercase)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  return tokenizer


def byte_bpe_pipeline(model: models.BPE) -> tokenizers.Tokenizer:
  """Returns GPT-2's tokenizer as the library has it.

  Args:
    model: pieces and merges; empty: still to be trained.
  """
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def serialize(tokenizer: tokenizers.Tokenizer) -> bytes:
  """Returns the content of `tokenizer.json`."""
  return tokenizer.to_str(pretty=True).encode()


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """Loads a tokenizer from a file of the table above, or from a folder with such a file.

  With a BERT `vocab.txt`, text is lower-cased and its accents are stripped, unless at least 1% of
  the pieces have capital letters.

  Args:
    path: file or folder.
  Raises:
    DataError: there is no tokenizer at `path`; the message names the file.
  """
  path = pathlib.Path(path).expanduser()
  files = [path] if path.is_file() else [path / name for name in _FILE_NAMES]
  for file in files:
    loader = next((load for ending, load in _LOADERS.items() if file.name.endswith(ending)), None)
    if file.is_file() and loader:
      return _load(loader, file)
  raise DataError(f"{path}: no tokenizer there. Give {_FORMS}")


def _load(loader: Callable[[pathlib.Path], Tokenizer], file: pathlib.Path) -> Tokenizer:
  try:
    return loader(file)
  except DataError:
    raise
  except Exception as e:  # Both libraries raise plain Exceptions.
    raise DataError(f"{file}: is not a tokenizer ({one_line(e)}). Give {_FORMS}") from e


_JSON_KINDS = {("WordPiece", "WordPiece"): WordPiece, ("BPE", "ByteLevel"): ByteBPE}


def _load_json(file: pathlib.Path) -> Tokenizer:
  data = file.read_bytes()
  content = files.parse_json(data)
  kind, decoder = content["model"]["type"], (content["decoder"] or {}).get("type")
  if (kind, decoder) not in _JSON_KINDS:
    raise DataError(f"{file}: a model of type {kind} with decoder {decoder} is not supported. "
                    "Give a WordPiece or a byte-level BPE")
  return _JSON_KINDS[kind, decoder](data)


def _load_sentencepiece(file: pathlib.Path) -> SentencePiece:
  data = file.read_bytes()
  if not data:  # The library would accept it as a model.
    raise ValueError("the file is empty")
  return SentencePiece(data)


def _load_bert_vocabulary(file: pathlib.Path) -> WordPiece:
  # splitlines() would cut at U+2028, which is a piece of some vocabularies.
  lines = file.read_bytes().decode().removesuffix("\n").split("\n")
  pieces = [line.removesuffix("\r") for line in lines]
  if missing := [name for name in NEW_SPECIALS[:4] if name not in pieces]:
    raise DataError(f"{file}: is not a BERT vocabulary. It lacks {', '.join(missing)}")
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  if len(vocabulary) < len(pieces):
    raise DataError(f"{file}: is not a BERT vocabulary. It names a piece twice")
  lowercase = sum(p != p.lower() for p in pieces if not p.startswith("[")) < len(pieces) / 100
  return WordPiece(serialize(bert_pipeline(vocabulary, lowercase)))


def _load_gpt2(file: pathlib.Path, ending: str, merges_ending: str) -> ByteBPE:
  merges = file.with_name(file.name.removesuffix(ending) + merges_ending)
  if not merges.is_file():
    raise DataError(f"{file}: the merges are missing. Put {merges.name} into the same folder")
  model = models.BPE.from_file(str(file), str(merges))
  return ByteBPE(serialize(byte_bpe_pipeline(model)))


_LOADERS: dict[str, Callable[[pathlib.Path], Tokenizer]] = {
    "tokenizer.json": _load_json,
    ".model": _load_sentencepiece,
    ".txt": _load_bert_vocabulary,
    "encoder.json": lambda file: _load_gpt2(file, "encoder.json", "vocab.bpe"),
    "vocab.json": lambda file: _load_gpt2(file, "vocab.json", "merges.txt"),
}
_FILE_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "encoder.json", "vocab.json")
_FORMS = f"a *.model, or a file or folder with one of {', '.join(_FILE_NAMES)}"
