"""Writer of a prepared corpus: shards, index arrays, metadata of TFDS and the manifest.

`bertgpt.data.corpus.corpus` describes the layout.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module

from bertgpt.data.corpus.corpus import (
  DATASET_NAME,
  INDEX_DTYPES,
  MANIFEST,
  index_file,
  shard_file,
)
from bertgpt.data.corpus.shards import open_shard
from bertgpt.data.text.digests import sha256_file
from bertgpt.errors import one_line
from bertgpt.files import write_json

SHARD_BYTES = 2**28
PERCENTILES = (5, 50, 95, 99, 100)
MAX_COUNTED_LENGTH = 2**20  # Tokens; the percentiles count longer documents with this length.
# Uncompressed records are 20% larger than with zstd, but six times as fast to write and twice as
# fast to read.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class EncodedDocument:
  """A document that is ready to be written.

  Attributes:
    key: 64-bit hash of its text.
    record: tokens and sentence lengths, made by `encode_record`.
    sentence_lengths: int32 [S], tokens of every sentence, at least 1.
    text_bytes: UTF-8 bytes of the text that became tokens.
    num_unknown: number of unknown tokens.
    unknown_bytes: UTF-8 bytes of the text that they stand for.
    max_id: largest token id.
  """

  key: int
  record: bytes
  sentence_lengths: np.ndarray
  text_bytes: int
  num_unknown: int
  unknown_bytes: int
  max_id: int


class SplitWriter:
  """Writer of the shards and index arrays of one split, in constant memory.

  Args:
    folder: folder of the corpus.
    split: 'train' or 'validation'.

  Attributes:
    num_documents: documents written so far.
  """

  def __init__(self, folder: pathlib.Path, split: str):
    self.num_documents = 0
    self._folder, self._split = folder, split
    self._totals = {"sentences": 0, "tokens": 0, "text_bytes": 0, "unknown": 0,
                    "unknown_bytes": 0, "max_id": 0}
    self._shards: list[dict] = []
    self._writer: Any = None
    self._index = {name: _ArrayWriter(folder / index_file(split, name), dtype)
                   for name, dtype in INDEX_DTYPES.items()}
    self._index["document_offsets"].append(0)

  def write(self, document: EncodedDocument) -> None:
    """Appends a document to the split.

    Args:
      document: document to write; the key is not written.
    Raises:
      OSError: a file could not be written.
    """
    if self._writer is None or self._shards[-1]["bytes"] >= SHARD_BYTES:
      self._start_shard()
    with _as_os_error(self._new_shard(len(self._shards) - 1)):
      self._writer.write(document.record)
    self._shards[-1]["documents"] += 1
    self._shards[-1]["bytes"] += len(document.record)
    num_tokens, totals = int(document.sentence_lengths.sum()), self._totals
    self.num_documents += 1
    totals["sentences"] += len(document.sentence_lengths)
    totals["tokens"] += num_tokens
    totals["text_bytes"] += document.text_bytes
    totals["unknown"] += document.num_unknown
    totals["unknown_bytes"] += document.unknown_bytes
    totals["max_id"] = max(totals["max_id"], document.max_id)
    self._index["document_offsets"].append(totals["sentences"])
    self._index["document_lengths"].append(num_tokens)
    self._index["sentence_lengths"].append(document.sentence_lengths)

  def finish(self) -> dict:
    """Closes all files and gives the shards their final names.

    Returns:
      The part of the manifest about the split.
    Raises:
      OSError: a file could not be written.
    """
    self._end_shard()
    for array in self._index.values():
      array.close()
    for number, shard in enumerate(self._shards):
      shard["file"] = shard_file(self._split, number, len(self._shards))
      os.rename(self._new_shard(number), self._folder / shard["file"])
    return {"documents": self.num_documents, **self._totals, "shards": self._shards,
            "document_length_percentiles": self._percentiles("document_lengths"),
            "sentence_length_percentiles": self._percentiles("sentence_lengths")}

  def _new_shard(self, number: int) -> pathlib.Path:
    """Returns the name of a shard until the number of shards is known."""
    return self._folder / f"{self._split}-{number}.new"

  def _start_shard(self) -> None:
    self._end_shard()
    file = os.fspath(self._new_shard(len(self._shards)))
    self._writer = array_record_module.ArrayRecordWriter(file, WRITER_OPTIONS)
    self._shards.append({"documents": 0, "bytes": 0})

  def _end_shard(self) -> None:
    """Closes the shard and counts its records, because a full disk is not always reported."""
    if self._writer is None:
      return
    file, shard = self._new_shard(len(self._shards) - 1), self._shards[-1]
    with _as_os_error(file):
      self._writer.close()
      num_written = open_shard(file).num_records()
    if num_written != shard["documents"]:
      raise OSError(errno.EIO, f"holds {num_written} of {shard['documents']} documents",
                    os.fspath(file))

  def _percentiles(self, name: str) -> dict[str, int]:
    """Returns percentiles of an index array: percent -> length.

    Counting the lengths takes constant memory, whatever the size of the array.
    """
    array = np.load(self._folder / index_file(self._split, name), mmap_mode="r")
    counts = np.zeros(MAX_COUNTED_LENGTH + 1, np.int64)
    for start in range(0, len(array), MAX_COUNTED_LENGTH):
      lengths = np.minimum(array[start:start + MAX_COUNTED_LENGTH], MAX_COUNTED_LENGTH)
      counts += np.bincount(lengths, minlength=len(counts))
    ranks = np.ceil(np.array(PERCENTILES) / 100 * len(array))
    return dict(zip(map(str, PERCENTILES), np.searchsorted(counts.cumsum(), ranks).tolist(),
                    strict=True))


@contextlib.contextmanager
def _as_os_error(file: pathlib.Path) -> Iterator[None]:
  """Turns the RuntimeError that array_record raises, such as for a full disk, into an OSError."""
  try:
    yield
  except RuntimeError as e:
    raise OSError(errno.EIO, f"not written ({one_line(e)})", os.fspath(file)) from e


class _ArrayWriter:
  """Writer of a one-dimensional .npy file whose length is known only at the end."""

  def __init__(self, path: pathlib.Path, dtype: str):
    self._file, self._dtype, self._length = open(path, "wb"), dtype, 0
    self._write_header()

  def append(self, values) -> None:
    values = np.atleast_1d(np.asarray(values, self._dtype))
    self._file.write(values.tobytes())
    self._length += len(values)

  def close(self) -> None:
    self._file.seek(0)
    self._write_header()
    self._file.close()

  def _write_header(self) -> None:
    # NumPy pads the header, so that it still fits after the first axis has grown.
    np.lib.format.write_array_header_1_0(
        self._file, {"descr": self._dtype, "fortran_order": False, "shape": (self._length,)})


def write_metadata(folder: pathlib.Path, manifest: dict) -> dict:
  """Writes the metadata of TFDS and, as the last file, the manifest.

  Args:
    folder: folder of the corpus with all other files.
    manifest: content of the manifest without `files`.
  Returns:
    The manifest with `files`: name -> size in bytes and SHA-256.
  """
  _write_tfds_metadata(folder, manifest)
  files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
  manifest = manifest | {"files": {
      name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
      for name in files}}
  write_json(folder / MANIFEST, manifest, indent=1)
  return manifest


def _write_tfds_metadata(folder: pathlib.Path, manifest: dict) -> None:
  # Imported here because it takes a third of a second, and reading a corpus does not need it.
  import tensorflow_datasets as tfds

  def tensor(dtype):
    return tfds.features.Tensor(shape=(None,), dtype=np.dtype(dtype).type,
                                encoding=tfds.features.Encoding.BYTES)

  template = tfds.core.ShardedFileTemplate(
      data_dir=folder, dataset_name=DATASET_NAME, filetype_suffix="array_record")
  split_infos = [
      tfds.core.SplitInfo(name=name, shard_lengths=[s["documents"] for s in split["shards"]],
                          num_bytes=sum(s["bytes"] for s in split["shards"]),
                          filename_template=template)
      for name, split in manifest["splits"].items()]
  tfds.folder_dataset.write_metadata(
      data_dir=folder, check_data=False, split_infos=split_infos, disable_shuffling=True,
      features={"sentence_lengths": tensor("int32"), "tokens": tensor(manifest["token_dtype"])},
      description="Token ids of whole documents, and how many belong to each sentence.")
