"""Writes a prepared corpus: shards, index arrays, TFDS' description and the manifest.

The layout itself is `bertgpt.data.corpus.corpus`'s.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from array_record.python import array_record_module

from bertgpt.data.corpus.corpus import (
    DATASET_NAME,
    INDEX_DTYPES,
    MANIFEST,
    index_file,
    open_shard,
    sha256_file,
    shard_file,
)
from bertgpt.errors import one_line

SHARD_BYTES = 2**28
PERCENTILES = (5, 50, 95, 99, 100)
MAX_COUNTED_LENGTH = 2**20  # Longer documents are this long to the percentiles.
# Uncompressed: 20% larger than zstd, but six times as fast to write, twice as fast to read.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class EncodedDocument:
  """A document ready to be written."""

  key: int                      # 64-bit hash of its text
  record: bytes                 # by `encode_record`
  sentence_lengths: np.ndarray  # int32 [S], tokens, each at least 1
  text_bytes: int               # UTF-8, of the text that became tokens
  num_unknown: int              # tokens that are the unknown token
  max_id: int


class SplitWriter:
  """Writes the shards and index arrays of one split, in constant memory."""

  def __init__(self, folder: pathlib.Path, split: str):
    self.num_documents = 0
    self._folder, self._split = folder, split
    self._totals = {"sentences": 0, "tokens": 0, "text_bytes": 0, "unknown": 0, "max_id": 0}
    self._shards: list[dict] = []
    self._writer = None
    self._index = {name: _ArrayWriter(folder / index_file(split, name), dtype)
                   for name, dtype in INDEX_DTYPES.items()}
    self._index["document_offsets"].append(0)

  def write(self, document: EncodedDocument) -> None:
    """Adds a document.

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
    totals["max_id"] = max(totals["max_id"], document.max_id)
    self._index["document_offsets"].append(totals["sentences"])
    self._index["document_lengths"].append(num_tokens)
    self._index["sentence_lengths"].append(document.sentence_lengths)

  def finish(self) -> dict:
    """Closes all files and gives the shards their names; the split's part of the manifest.

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
    """The name of a shard as long as their number is not known."""
    return self._folder / f"{self._split}-{number}.new"

  def _start_shard(self) -> None:
    self._end_shard()
    file = os.fspath(self._new_shard(len(self._shards)))
    self._writer = array_record_module.ArrayRecordWriter(file, WRITER_OPTIONS)
    self._shards.append({"documents": 0, "bytes": 0})

  def _end_shard(self) -> None:
    """Closes the shard and counts what reached the disk: a full one is not always reported."""
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
    """Lengths that these percents of the array do not exceed, by counting: O(1) memory."""
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
  """array_record raises RuntimeError for a full disk and the like."""
  try:
    yield
  except RuntimeError as e:
    raise OSError(errno.EIO, f"not written ({one_line(e)})", os.fspath(file)) from e


class _ArrayWriter:
  """Writes a one-dimensional .npy file of a length that is known only at the end."""

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
    # NumPy pads the header so that the first axis can grow and the header still fits.
    np.lib.format.write_array_header_1_0(
        self._file, {"descr": self._dtype, "fortran_order": False, "shape": (self._length,)})


def write_metadata(folder: pathlib.Path, manifest: dict) -> dict:
  """Writes TFDS' description and, last of all, the manifest; returns it with `files` added.

  Args:
    manifest: all but `files`.
  """
  _write_tfds_metadata(folder, manifest)
  files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
  manifest = manifest | {"files": {
      name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
      for name in files}}
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
  return manifest


def _write_tfds_metadata(folder: pathlib.Path, manifest: dict) -> None:
  # Imported here: it takes a third of a second, and reading a corpus does not need it.
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
