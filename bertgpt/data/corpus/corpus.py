"""A prepared corpus: its layout on disk, and how a split of it is read.

A corpus is a folder with
  - an ordinary TFDS dataset (ArrayRecord shards, `features.json`, `dataset_info.json`)
    whose examples are documents: `tokens` and `sentence_lengths`;
  - `<split>-<name>.npy`, the lengths of all documents and sentences, mapped into memory;
  - `tokenizer/`, the tokenizer that the ids belong to;
  - `manifest.json`: source and options, counts, and size and SHA-256 of every file.

`bertgpt.data.corpus.prepare` makes a corpus from raw text with `bertgpt.data.corpus.writer`.
"""

import dataclasses
import functools
import mmap
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bertgpt import files
from bertgpt.data.corpus import file_checks, remote, shards
from bertgpt.data.tokens import unknown
from bertgpt.errors import DataError
from bertgpt.files.wire_format import nested, nested_header

# Version 1 left out blank lines and white space at the ends of lines, and its ids are those of the
# single sentences. The files are the same.
FORMAT_VERSION = 2
FORMAT_VERSIONS = (2, 1)
DATASET_NAME = "bertgpt_corpus"
SPLITS = ("train", "validation")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
INDEX_DTYPES = {"document_offsets": "<i8", "document_lengths": "<i8", "sentence_lengths": "<i4"}


# ------------------------------------------------------------------ layout


def index_file(split: str, name: str) -> str:
  """Returns the file of an index array, relative to the corpus.

  Args:
    split: one of `SPLITS`.
    name: key of `INDEX_DTYPES`.
  """
  return f"{split}-{name}.npy"


def shard_file(split: str, shard: int, num_shards: int) -> str:
  """Returns the file of an ArrayRecord shard, named as TFDS expects it.

  Args:
    split: one of `SPLITS`.
    shard: index of the shard, from 0.
    num_shards: number of shards of the split.
  """
  return f"{DATASET_NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"


def token_dtype(vocab_size: int) -> str:
  """Returns the narrowest of uint16 and int32 (little-endian) that holds every id.

  Args:
    vocab_size: number of ids.
  """
  return "<u2" if vocab_size <= 2**16 else "<i4"


def encode_record(tokens: np.ndarray, sentence_lengths: np.ndarray) -> bytes:
  """Returns a document as the `tf.train.Example` that TFDS writes for the features of a corpus.

  It is written by hand for two reasons. Protobuf serializes a map in no fixed order, but a corpus
  must have the same bytes every time. And with `tokens` as the last feature, their values are the
  tail of the record, so `tokens_of_record` needs no parser.

  Args:
    tokens: [N] in the token dtype of the corpus.
    sentence_lengths: int32 [S], tokens; their sum is N.
  """
  return nested(1, _feature("sentence_lengths", sentence_lengths) + _feature("tokens", tokens))


def tokens_of_record(record: bytes, length: int, dtype: str) -> np.ndarray:
  """Returns the tokens of a record made by `encode_record`, without a copy.

  Args:
    record: the whole record.
    length: tokens of the document.
    dtype: token dtype of the corpus.
  Returns:
    [length] of `dtype`, read-only.
  Raises:
    ValueError: the record does not end in `length` tokens.
  """
  num_bytes = length * np.dtype(dtype).itemsize
  start = len(record) - num_bytes
  header = nested_header(1, num_bytes)
  if record[max(0, start - len(header)):max(0, start)] != header:
    raise ValueError(f"the record does not end in {length} tokens")
  return np.frombuffer(record, dtype, length, start)


def _feature(name: str, array: np.ndarray) -> bytes:
  bytes_list = nested(1, nested(1, array.tobytes()))  # Feature.bytes_list of one value.
  return nested(1, nested(1, name.encode()) + nested(2, bytes_list))  # An entry of the map.


# ----------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """One split of a prepared corpus of D documents and S sentences; see `open_corpus`.

  It is pickled as its path, and a reader process maps the index arrays again.

  Attributes:
    path: folder of the corpus, on a disk or in a bucket (see `remote`).
    split: 'train' or 'validation'.
    manifest: content of manifest.json.
    document_lengths: int64 [D], tokens of every document, at least 1.
  """

  path: pathlib.Path
  split: str
  manifest: dict
  document_lengths: np.ndarray

  def __len__(self) -> int:
    return len(self.document_lengths)

  def __reduce__(self):
    return _load_split, (self.path, self.split)

  @property
  def document_offsets(self) -> np.ndarray:
    """Places of the documents in `sentence_lengths`: int64 [D+1].

    The sentences of document d are `sentence_lengths[document_offsets[d]:document_offsets[d + 1]]`.
    """
    return self._sentences[0]

  @property
  def sentence_lengths(self) -> np.ndarray:
    """Tokens of every sentence, at least 1, document by document: int32 [S]."""
    return self._sentences[1]

  def open_sentences(self) -> None:
    """Opens the lengths of sentences now; otherwise, they are opened when they are first read.

    Raises:
      DataError: they do not fit the manifest.
      StorageError: they are in a bucket, and cannot be copied.
    """
    _ = self._sentences

  @functools.cached_property
  def _sentences(self) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and lengths of the sentences, see `open_sentences`."""
    folder = (remote.copy_sentences(self.path, self.manifest, self.split)
              if isinstance(self.path, files.BucketPath) else self.path)
    offsets, lengths = (np.load(folder / name, mmap_mode="r")
                        for name in remote.sentence_files(self.split))
    _check_counts(self, {"documents": (len(offsets) - 1,),
                         "sentences": (len(lengths), int(offsets[-1]))})
    return offsets, lengths

  @functools.cached_property
  def local(self) -> pathlib.Path:
    """Folder on a disk with the tokenizer and the index of documents: `path`, or a copy of them."""
    return find_index(self.path, self.manifest)

  @property
  def num_sentences(self) -> int:
    """Sentences of the split."""
    return self._split_info["sentences"]

  @property
  def num_tokens(self) -> int:
    """Tokens of the split."""
    return self._split_info["tokens"]

  @property
  def num_bytes(self) -> int:
    """UTF-8 bytes of the text that became the tokens of the split."""
    return self._split_info["text_bytes"]

  @property
  def has_much_unknown(self) -> bool:
    """Whether the tokenizer does not know a large share of the text of the split."""
    info = self._split_info
    if "unknown_bytes" not in info:  # An earlier version counted only tokens.
      return info.get("unknown", 0) > unknown.MAX_SHARE * info["tokens"]
    return info["unknown_bytes"] > unknown.MAX_SHARE * info["text_bytes"]

  @property
  def token_dtype(self) -> np.dtype:
    """Dtype in which token ids are stored: uint16 or int32."""
    return np.dtype(self.manifest["token_dtype"])

  @functools.cached_property
  def identity(self) -> str:
    """Identity of the corpus, see `file_checks.identify`."""
    return file_checks.identify(self.manifest)

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The `Tokenizer` of `bertgpt.data.tokens.tokenizers` that made the ids.

    Raises:
      DataError: the tokenizer in the folder is not the one that the corpus was made with.
    """
    # Imported here: processes that only read ids need not load the tokenizer libraries.
    from bertgpt.data.tokens import tokenizers

    tokenizer = tokenizers.load_tokenizer(self.local / TOKENIZER, is_saved=True)
    if tokenizer.fingerprint() != self.manifest["tokenizer"]["fingerprint"]:
      raise DataError(f"{self.path / TOKENIZER}: not the tokenizer this corpus was prepared with. "
                      "Delete the corpus and prepare it again")
    return tokenizer

  @functools.cached_property
  def vocabulary(self) -> Any:
    """The `Vocabulary` of `bertgpt.data.tokens.vocabulary`, with the word rule of the format."""
    from bertgpt.data.tokens.vocabulary import make_vocabulary

    return make_vocabulary(self.tokenizer, has_former_words=self.manifest["format_version"] == 1)

  def tokens(self, documents: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Reads the token ids of whole documents; fastest with many documents per call.

    Args:
      documents: integers [N] in [0, D), in any order, possibly repeated.
    Returns:
      N read-only arrays of `token_dtype`, document_lengths[documents[i]] ids each.
    Raises:
      IndexError: an index of a document is out of range.
      DataError: a shard is damaged.
      StorageError: a shard cannot be read, for another reason.
    """
    documents = np.asarray(documents, np.int64)
    if documents.size and not (0 <= documents.min() and documents.max() < len(self)):
      raise IndexError(f"documents must be in [0, {len(self)})")
    dtype = self.manifest["token_dtype"]
    return self._shards.read(documents, lambda record, document: tokens_of_record(
        record, int(self.document_lengths[document]), dtype))

  @property
  def _split_info(self) -> dict:
    return self.manifest["splits"][self.split]

  @functools.cached_property
  def _shards(self) -> shards.Shards:
    return shards.Shards(self.path, self._split_info["shards"], lambda: np.load(
        self.local / remote.places_file(self.split), mmap_mode="r"))


def read_pieces(array: np.ndarray, size: int = 2**20) -> Iterator[np.ndarray]:
  """Yields an array in pieces; if the array is in a file, only one of them is in memory at a time.

  Args:
    array: [N]; if it is mapped into memory, the pages of a piece are released after it.
    size: entries of a piece.
  """
  for first in range(0, len(array), size):
    yield array[first:first + size]
    release(array)


def release(array: np.ndarray) -> None:
  """Releases the pages of an array that is mapped into memory; if needed, they are read again.

  The system maps megabytes around every entry that is read, so a window of a large index, with a
  thousand runs of documents, would otherwise keep gigabytes of it.
  """
  if isinstance(mapped := getattr(array, "_mmap", None), mmap.mmap):
    mapped.madvise(mmap.MADV_DONTNEED)


def sum_lengths(lengths: np.ndarray) -> int:
  """Returns the sum of an index array, integers [N]; see `read_pieces`."""
  return sum(int(piece.sum()) for piece in read_pieces(lengths))


# ----------------------------------------------------------------- opening


def is_corpus(path: pathlib.Path) -> bool:
  """Returns whether a folder holds a complete corpus, whose manifest is written last."""
  return (path / MANIFEST).is_file()


def open_corpus(path: str | os.PathLike, split: str) -> Corpus:
  """Opens one split, after checking the folder against its manifest.

  Only the size of shards is checked, because ArrayRecord detects damage when it reads them. The
  SHA-256 of a large file of the index is kept next to the corpus, and the file is read again only
  if it has changed (see `bertgpt.data.text.digests`).

  Args:
    path: folder written by `prepare`.
    split: 'train' or 'validation'.
  Raises:
    DataError: the folder holds no corpus, a corpus of another format version, or files that do not
      fit the manifest.
  """
  path = files.make_path(path) if files.is_remote(path) else files.expand(path)
  files.require_utf8(path)
  manifest = read_manifest(path)
  file_checks.check(path, manifest)
  if (names := [*manifest["splits"]]) == ["validation"] and split == "train":
    raise DataError(f"{path}: has no documents to train on, because it was prepared with "
                    "data.validation_fraction=1. Prepare it again with a smaller one, or name it "
                    "in data.corpora with eval.corpora=True, which only scores it")
  if split not in names:
    raise DataError(f"{path}: no split {split!r}. Choose one of {', '.join(names)}")
  corpus = _load_split(path, split)
  _check_index(corpus)
  return corpus


def read_manifest(path: pathlib.Path) -> dict:
  """Returns the manifest of a corpus.

  Args:
    path: folder of the corpus.
  Raises:
    DataError: there is no manifest, or it has another format version.
  """
  file = path / MANIFEST
  if not is_corpus(path):
    raise DataError(f"{path}: not a prepared corpus (no {MANIFEST}). Make one with "
                    "`bertgpt prepare`")
  manifest = files.read_json(file, "Name a prepared corpus, or prepare it in a new folder")
  if (version := manifest.get("format_version")) not in FORMAT_VERSIONS:
    raise DataError(f"{file}: has format version {version}, but this program reads "
                    f"{' and '.join(map(str, FORMAT_VERSIONS))}. Use the program that wrote it, or "
                    "prepare the text in a new folder")
  return manifest


def _load_split(path: pathlib.Path, split: str) -> Corpus:
  manifest = read_manifest(path)
  file = find_index(path, manifest) / index_file(split, "document_lengths")
  return Corpus(path, split, manifest, np.load(file, mmap_mode="r"))


def find_index(path: pathlib.Path, manifest: dict) -> pathlib.Path:
  """Returns the folder on a disk with the lengths of documents, copied once per host."""
  return remote.copy_index(path, manifest) if isinstance(path, files.BucketPath) else path


def _check_index(corpus: Corpus) -> None:
  info, manifest = corpus.manifest["splits"][corpus.split], corpus.manifest
  _check_counts(corpus, {
      "documents": (len(corpus), sum(shard["documents"] for shard in info["shards"])),
      "tokens": (sum_lengths(corpus.document_lengths),)})
  if info["max_id"] >= manifest["tokenizer"]["vocab_size"]:
    raise DataError(f"{corpus.path}: token id {info['max_id']} in {corpus.split} is beyond the "
                    f"vocabulary of {manifest['tokenizer']['vocab_size']}. "
                    "Delete the corpus and prepare it again")


def _check_counts(corpus: Corpus, counts: Mapping[str, Sequence[int]]) -> None:
  """Checks that an index holds what the manifest says: entry of a split -> counts found."""
  info = corpus.manifest["splits"][corpus.split]
  for name, found in counts.items():
    if set(found) != {info[name]}:
      raise DataError(f"{corpus.path}: the index of {corpus.split} holds {max(found)} {name}, but "
                      f"the manifest says {info[name]}. Delete the corpus and prepare it again")


# ------------------------------------------------------------------ report


def report(manifest: dict) -> str:
  """Returns lines of text about a corpus: its size, and what was skipped or replaced.

  Args:
    manifest: content of manifest.json.
  """
  made_with, splits = manifest["tokenizer"], manifest["splits"]
  rows = [("", *splits)]
  rows += [(label, *map(cell, splits.values())) for label, cell in _REPORT_ROWS]
  lines = [f"source     {manifest['source']}",
           f"tokenizer  {made_with['kind']}, {made_with['vocab_size']:,} ids, "
           f"fingerprint {made_with['fingerprint'][:12]}"]
  lines += [f"{label:<18}" + "".join(f" {cell:>29}" for cell in cells) for label, *cells in rows]
  notes = [f"note: {what}: {count:,}" for what, count in manifest["skipped"].items()]
  if manifest["format_version"] == 1:
    notes.append("note: format version 1, without the blank lines and indentation of the text")
  return "\n".join([*lines, *(notes or ["nothing was skipped or replaced"])])


def describe_unknown(manifest: dict) -> str:
  """Returns a warning if too much of a split is unknown to the tokenizer, otherwise ''.

  A list of words always lacks some, so there is none for it. Models that use such a list read words
  by their characters.

  Args:
    manifest: content of manifest.json.
  """
  share, of_what, split = max(
      (info.get(part, 0) / max(1, info[whole]), of_what, split)
      for split, info in manifest["splits"].items()
      for part, whole, of_what in (("unknown", "tokens", "tokens"),
                                   ("unknown_bytes", "text_bytes", "text")))
  if share <= unknown.MAX_SHARE or manifest["tokenizer"]["kind"] == "words":
    return ""
  return (f"WARNING: the tokenizer does not know {share:.1%} of the {of_what} in the {split} "
          "split. Set tokenizer.path to another one, or to '' to train one. For a vocab.txt, "
          "check case and accents. If words have more than 100 characters, as in text without "
          "spaces, use tokenizer.kind='sentencepiece' or 'bpe'")


def _share_of_bytes(split: dict) -> str:
  if "unknown_bytes" not in split:  # An earlier version did not count them.
    return "-"
  return f"{split['unknown_bytes'] / split['text_bytes']:.4%}"


def _percentiles(split: dict, name: str) -> str:
  return ", ".join(f"{length:,}" for length in split[f"{name}_length_percentiles"].values())


_REPORT_ROWS = (
    ("documents", lambda split: f"{split['documents']:,}"),
    ("sentences", lambda split: f"{split['sentences']:,}"),
    ("tokens", lambda split: f"{split['tokens']:,}"),
    ("bytes per token", lambda split: f"{split['text_bytes'] / split['tokens']:.3f}"),
    ("unknown tokens", lambda split: f"{split['unknown'] / split['tokens']:.4%}"),
    ("  bytes of text", _share_of_bytes),
    ("length percentiles", lambda split: ", ".join(split["document_length_percentiles"])),
    ("  of documents", lambda split: _percentiles(split, "document")),
    ("  of sentences", lambda split: _percentiles(split, "sentence")),
)
