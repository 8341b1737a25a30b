"""The shards of a split, from which documents are read in any order."""

import contextlib
import errno
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from array_record.python import array_record_module

from bertgpt import files
from bertgpt.data.corpus import remote
from bertgpt.errors import DataError, StorageError, one_line
from bertgpt.files import bucket

# One thread and no readahead, as the documentation of array_record advises for random access.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 4096

# Open files that are left for everything else: checkpoints, sockets, libraries.
_OTHER_FILES = 512
# Error of the system -> remedy. array_record raises RuntimeError for all of them, with this text.
_REMEDIES = {os.strerror(number): "Check the storage" for number in (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENODEV, errno.ENOTCONN)}
_REMEDIES |= dict.fromkeys(map(os.strerror, (errno.EMFILE, errno.ENFILE)),
                           "Raise the limit of open files (ulimit -n)")
_REMEDIES[os.strerror(errno.ENOMEM)] = "Free memory of the host"

Decoded = TypeVar("Decoded")


class Shards:
  """The records of a split. Threads may share it."""

  def __init__(self, folder: pathlib.Path, infos: Sequence[Mapping[str, Any]],
               load_places: Callable[[], np.ndarray]):
    """Takes the shards from a manifest; no file is opened before it is read.

    On a disk, a shard stays open, as long as the system allows so many files: to open one again,
    ArrayRecord reads the places of all of its records, for 30 ms or more.

    Args:
      folder: folder of the corpus, on a disk or in a bucket.
      infos: 'file' and 'documents' of every shard, in order.
      load_places: in a bucket, returns where its records begin: int64, see `remote.find_places`.
    """
    self._paths = [folder / info["file"] for info in infos]
    self._ends = np.cumsum([info["documents"] for info in infos])
    self._is_remote, self._load_places = files.is_remote(folder), load_places

  def read(self, documents: np.ndarray, decode: Callable[[bytes, int], Decoded]) -> list[Decoded]:
    """Reads documents; fastest with many per call.

    Args:
      documents: int64 [N], indices of documents in the split.
      decode: decode(record, document) returns a document; raises ValueError if it is damaged.
    Returns:
      N documents.
    Raises:
      DataError: a shard is damaged.
      StorageError: a shard cannot be read, for another reason.
    """
    shards = np.searchsorted(self._ends, documents, side="right")
    read = self._read_remotely if self._is_remote else self._read_locally
    return read(shards, documents, decode)

  def _read_locally(self, shards: np.ndarray, documents: np.ndarray, decode: Callable) -> list:
    found = [None] * len(documents)
    for shard in np.unique(shards).tolist():
      places = np.flatnonzero(shards == shard)
      at = documents[places] - (self._ends[shard - 1] if shard else 0)
      with _explaining(self._paths[shard]):
        for place, record in zip(places, self._read_shard(shard, at.tolist()), strict=True):
          found[place] = decode(record, int(documents[place]))
    return found

  def _read_shard(self, shard: int, at: list[int]) -> list[bytes]:
    try:
      return self._open(shard).read(at)
    except RuntimeError:
      # A reader that has failed once fails forever. Training ends anyway, so all may be closed.
      self._open.cache_clear()
      raise

  def _read_remotely(self, shards: np.ndarray, documents: np.ndarray, decode: Callable) -> list:
    def read(shard: int, start: int, end: int, document: int) -> Any:
      with _explaining(self._paths[shard]):
        return decode(remote.read_record(self._paths[shard], start, end), document)

    at = documents + shards  # Every earlier shard has one more place than it has documents.
    jobs = zip(*(x.tolist() for x in (shards, self._places[at], self._places[at + 1], documents)),
               strict=True)
    return bucket.in_parallel(lambda job: read(*job), jobs, remote.PARALLEL)

  @functools.cached_property
  def _places(self) -> np.ndarray:
    return self._load_places()

  @functools.cached_property
  def _open(self) -> Any:
    """Function of the index of a shard that returns its reader, with the cache's methods."""
    num_open = allow_files(len(self._paths))
    return functools.lru_cache(num_open)(lambda shard: open_shard(self._paths[shard]))


def open_shard(path: pathlib.Path) -> array_record_module.ArrayRecordReader:
  """Opens an ArrayRecord file for random access."""
  return array_record_module.ArrayRecordReader(
      os.fspath(path), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES)


def allow_files(number: int) -> int:
  """Raises the limit of open files of this process for a split, as far as the system lets it.

  Args:
    number: shards of the split.
  Returns:
    How many of them may be open: `number` or less, and at least 8.
  """
  limit = files.raise_open_limit(2 * number + _OTHER_FILES)  # A run reads two splits.
  return max(8, min(number, (limit - min(_OTHER_FILES, limit // 2)) // 2))


@contextlib.contextmanager
def _explaining(path: pathlib.Path) -> Iterator[None]:
  """Turns the errors of reading a shard into those of `Shards.read`."""
  try:
    yield
  except (IndexError, OSError, RuntimeError, ValueError) as e:
    files.raise_if_unanswered(e)
    if problem := _find_problem(path, str(e)):
      remedy = _REMEDIES.get(problem, "Check the storage")
      raise StorageError(f"{path}: cannot be read ({problem}). {remedy}, then run the same command "
                         "again") from e
    raise DataError(f"{path}: damaged ({one_line(e)}). Delete the corpus and prepare it again"
                    ) from e


def _find_problem(path: pathlib.Path, error: str) -> str | None:
  """Returns why a shard cannot be read, if not because of its content; otherwise None."""
  if not files.is_remote(path):
    try:
      path.open("rb").close()
    except FileNotFoundError as e:  # A single file that is missing is a damaged corpus.
      return None if path.parent.is_dir() else e.strerror
    except OSError as e:
      return e.strerror
  return next((text for text in _REMEDIES if text in error), None)
