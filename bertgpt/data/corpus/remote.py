"""A corpus in a bucket: its index is copied once per host, its shards are read in place.

The copy is in ~/.cache/bertgpt/indexes (or in $XDG_CACHE_HOME/bertgpt/indexes), under the hash of
the manifest. The first process of the host that needs it downloads and hashes the files, while the
others wait; then all map them into memory. The copy can be deleted at any time. The lengths of the
sentences, which are most of an index, are a copy of their own: rows of running text need none.

Documents are read with one request each, many at a time. The reader of array_record is not used: it
opens a stream to the end of the shard for every document, and takes a missing shard for an empty
one. The places of the documents are read from the footers of the shards when the index is copied.
Because of `writer.WRITER_OPTIONS`, every document is a separate Riegeli chunk without compression
(riegeli/doc/riegeli_records_file_format.md; array_record/cpp/layout.proto for the footer).
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from bertgpt import console, files
from bertgpt.data.text.digests import sha256_file
from bertgpt.errors import DataError, StorageError
from bertgpt.files import bucket

BLOCK_BYTES = 2**16  # A Riegeli file has a header at every multiple of this.
PARALLEL = 64  # Documents are small: a request takes one round trip to the storage.
BLOCK_HEADER_BYTES, CHUNK_HEADER_BYTES = 24, 40
PLACE_BYTES = 8  # In the copy, per document.


def copy_index(path: bucket.BucketPath, manifest: dict) -> pathlib.Path:
  """Returns a local folder with the places and lengths of documents, and the tokenizer.

  Args:
    path: folder of the corpus in a bucket.
    manifest: content of its manifest.json.
  Raises:
    DataError: a file is missing, or differs from the manifest.
    StorageError: the storage does not answer, or the copy cannot be written.
  """
  shards = {s["file"] for info in manifest["splits"].values() for s in info["shards"]}
  sentences = {name for split in manifest["splits"] for name in sentence_files(split)}
  return _copy_once(path, manifest, "", sorted(manifest["files"].keys() - shards - sentences),
                    [*manifest["splits"]])


def copy_sentences(path: bucket.BucketPath, manifest: dict, split: str) -> pathlib.Path:
  """Returns a local folder with the lengths of the sentences of a split.

  Args:
    path: folder of the corpus in a bucket.
    manifest: content of its manifest.json.
    split: a split of the manifest.
  Raises:
    DataError: a file is missing, or differs from the manifest.
    StorageError: the storage does not answer, or the copy cannot be written.
  """
  return _copy_once(path, manifest, f"-{split}-sentences", sentence_files(split), [])


def sentence_files(split: str) -> list[str]:
  """Returns the files of an index that only rows made of sentences need.

  Args:
    split: 'train' or 'validation'.
  """
  return [f"{split}-{name}.npy" for name in ("document_offsets", "sentence_lengths")]


def _copy_once(path: bucket.BucketPath, manifest: dict, suffix: str, names: Sequence[str],
               splits: Sequence[str]) -> pathlib.Path:
  """Returns a local folder with some files of a corpus, and the places of documents of splits."""
  key = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:20] + suffix
  folder, sizes = find_cache() / "indexes" / key, {n: manifest["files"][n]["bytes"] for n in names}
  if _is_complete(folder, sizes, splits):
    return folder

  def wait(holder: files.Holder) -> None:
    console.say(f"note: waiting for {holder}, which copies the index of {path}")

  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.with_name(f".{key}.lock"), wait):
      if not _is_complete(folder, sizes, splits):
        files.remove_tree(folder)  # Some systems delete old files of a cache one by one.
        files.remove_leftovers(folder.parent, key)
        num_documents = sum(manifest["splits"][split]["documents"] for split in splits)
        _check_space(path, folder.parent, sum(sizes.values()) + PLACE_BYTES * num_documents)
        with files.publish_when_done(folder) as scratch:
          _copy(path, manifest, scratch, names, splits)
  except OSError as e:
    raise StorageError(f"{e.filename or folder}: {e.strerror}. The index of {path} was not copied. "
                       "XDG_CACHE_HOME names another place for the copy") from e
  return folder


def _is_complete(folder: pathlib.Path, sizes: Mapping[str, int], splits: Sequence[str]) -> bool:
  """Returns whether a copy has files of these sizes, and the places of documents of splits."""
  return (all((folder / name).is_file() and (folder / name).stat().st_size == size
              for name, size in sizes.items())
          and all((folder / places_file(split)).is_file() for split in splits))


def _check_space(path: bucket.BucketPath, folder: pathlib.Path, needed: int) -> None:
  """Checks that a disk has room for a copy, which may have tens of gigabytes.

  Raises:
    StorageError: it has not.
  """
  if (free := shutil.disk_usage(folder).free) < needed:
    raise StorageError(f"{folder}: a copy of the index of {path} needs {needed / 1e9:.2f} GB, and "
                       f"{free / 1e9:.2f} GB are free. Free more, or name another place for it "
                       "with XDG_CACHE_HOME")


def find_cache() -> pathlib.Path:
  """Returns the folder of files that all runs of a user on this host share."""
  return files.expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bertgpt"


def _copy(path: bucket.BucketPath, manifest: dict, folder: pathlib.Path, names: Sequence[str],
          splits: Sequence[str]) -> None:
  try:
    files.download_tree(path, folder, names)
  except FileNotFoundError as e:
    raise DataError(f"{e.filename}: missing. Delete the corpus and prepare it again") from e
  for name in names:
    if sha256_file(folder / name) != manifest["files"][name]["sha256"]:
      raise DataError(f"{path / name}: damaged (its SHA-256 differs from the manifest). "
                      "Delete the corpus and prepare it again")
  for split in splits:
    info = manifest["splits"][split]
    places = bucket.in_parallel(
        lambda shard: find_places(path / shard["file"], shard["documents"]), info["shards"])
    np.save(folder / places_file(split), np.concatenate([np.zeros(0, np.int64), *places]))


def places_file(split: str) -> str:
  """Returns the file of the places of documents, in the copy of an index.

  Args:
    split: 'train' or 'validation'.
  """
  return f"{split}-places.npy"


def read_record(shard: bucket.BucketPath, start: int, end: int) -> bytes:
  """Returns a record of a shard.

  Args:
    shard: ArrayRecord file.
    start, end: places of this record and of the next one, from `find_places`.
  Raises:
    FileNotFoundError: there is no such shard.
    OSError: the storage does not answer.
    ValueError: there is no record at this place.
  """
  records = _read_chunk(shard.read_range(start, end), start)
  if len(records) != 1:
    raise ValueError(f"{len(records)} records at byte {start}")
  return records[0]


def find_places(shard: bucket.BucketPath, num_documents: int) -> np.ndarray:
  """Returns where the records of a shard begin and, as the last entry, where the last one ends.

  Args:
    shard: ArrayRecord file.
    num_documents: records that it must hold.
  Returns:
    int64 [num_documents + 1], bytes.
  Raises:
    DataError: it holds another number of records, or is damaged.
  """
  try:
    size = shard.stat().st_size
    last = size - BLOCK_BYTES
    postscript = _read_chunk(shard.read_range(max(0, last), size), last)[-1]
    end = _varint(postscript, 1)
    footer = _read_chunk(shard.read_range(end, last), end)
  except FileNotFoundError as e:
    raise DataError(f"{shard}: missing. Delete the corpus and prepare it again") from e
  except (ValueError, IndexError) as e:
    raise DataError(f"{shard}: damaged ({e}). Delete the corpus and prepare it again") from e
  starts = [_varint(value, 1) for value in footer[1:]]  # The first record is about the file.
  if len(starts) != num_documents:
    raise DataError(f"{shard}: holds {len(starts)} documents instead of {num_documents}. Prepare "
                    "the corpus again")
  return np.array([*starts, end], np.int64)


def _read_chunk(data: bytes, place: int) -> list[bytes]:
  """Returns the records of a chunk of Riegeli.

  Args:
    data: bytes of the file from the chunk on, to its end or beyond.
    place: byte of the file at which they start.
  """
  data = _without_block_headers(data, place)
  size = int.from_bytes(data[8:16], "little")
  num_records = int.from_bytes(data[25:32], "little")
  body = data[CHUNK_HEADER_BYTES:CHUNK_HEADER_BYTES + size]
  if data[24:25] != b"r" or body[:1] != b"\0" or len(body) != size:
    raise ValueError(f"no uncompressed records at byte {place}")
  sizes_bytes, position = _read_varint(body, 1)
  values, sizes = position + sizes_bytes, []
  while position < values:
    length, position = _read_varint(body, position)
    sizes.append(length)
  ends = np.cumsum([values, *sizes]).tolist()
  if len(sizes) != num_records or ends[-1] != len(body):
    raise ValueError(f"damaged records at byte {place}")
  return [body[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _without_block_headers(data: bytes, place: int) -> bytes:
  parts, position = [], 0
  while position < len(data):
    offset = (place + position) % BLOCK_BYTES
    if offset < BLOCK_HEADER_BYTES:
      position += BLOCK_HEADER_BYTES - offset
      continue
    parts.append(data[position:position + BLOCK_BYTES - offset])
    position += BLOCK_BYTES - offset
  return b"".join(parts)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
  """Returns a base-128 varint and the position after it."""
  value = shift = 0
  while True:
    byte = data[position]
    value |= (byte & 0x7F) << shift
    position, shift = position + 1, shift + 7
    if byte < 0x80:
      return value, position


def _varint(message: bytes, number: int) -> int:
  """Returns the first field of a protobuf message: a varint, with this field number."""
  if not message or message[0] != number << 3:
    raise ValueError("an unknown footer")
  return _read_varint(message, 1)[0]
