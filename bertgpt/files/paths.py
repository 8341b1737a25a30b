"""Paths on a disk or in a bucket, and local copies of files and folders in a bucket."""

import atexit
import contextlib
import errno
import fnmatch
import functools
import io
import os
import pathlib
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.files.bucket import SCHEME, BucketPath, in_parallel
from bertgpt.files.gcs import Info


def make_path(text: str | os.PathLike) -> pathlib.Path:
  """Returns the absolute path of a file or folder on a disk, or in a bucket.

  Args:
    text: path as a user gives it, or gs://bucket/name.
  Returns:
    A `pathlib.Path`, or a `BucketPath`, which has the methods that runs and corpora use. The type
    hint is `pathlib.Path`, so that functions for both need only one type.
  Raises:
    ConfigError: the path is in a storage that is neither.
  """
  name = os.fspath(text)
  if problem := find_problem(name):
    raise ConfigError(problem)
  if is_remote(name):
    return typing.cast(pathlib.Path, BucketPath(name))
  return expand(name).absolute()


def expand(name: str | os.PathLike) -> pathlib.Path:
  """Returns a local path, with the home folder instead of ~ or ~USER at its start.

  Args:
    name: path as a user gives it.
  Raises:
    ConfigError: there is no such user, or no home folder.
  """
  try:
    return pathlib.Path(name).expanduser()
  except RuntimeError as e:
    if os.fspath(name).split("/")[0] == "~":
      raise ConfigError(f"{name}: this user has no home folder. Set HOME, or give a path without ~"
                        ) from e
    raise ConfigError(f"{name}: there is no user of this name. Write ./{name} for a folder whose "
                      "name begins with ~") from e


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Adds a path to every OSError that names no file, such as that of a write to an open file.

  Args:
    path: the file.
  Raises:
    OSError: raised inside the context; names a file.
  """
  try:
    yield
  except OSError as e:
    if e.filename is not None or e.errno is None:
      raise
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def refuse_dangling(path: pathlib.Path, name: str) -> None:
  """Checks that neither a path nor one of its parents is a link to a place that does not exist.

  Args:
    path: a file or folder, which need not exist; a bucket has no links.
    name: the path as the message shows it, for example with its flag.
  Raises:
    StorageError: there is such a link, for example to a disk that is not mounted.
  """
  for place in () if is_remote(path) else (path, *path.parents):
    if place.is_symlink() and not place.exists():
      subject = "" if place == path else f"{place} "
      raise StorageError(f"{name}: {subject}is a link to {os.readlink(place)}, which is not there. "
                         "Mount it, or remove the link")


def has_file(path: pathlib.Path) -> bool:
  """Returns whether there is a file at a path, which need not exist.

  Whoever takes a file for optional must not take a link to a missing file for no file: a cache of
  huggingface_hub that was copied incompletely consists of such links.

  Args:
    path: path on a disk or in a bucket.
  Raises:
    DataError: the name is there, but is not that of a file.
  """
  if path.is_file():
    return True
  if path.is_symlink() or path.exists():
    raise DataError(f"{path}: is a folder, or a link to a missing file. Copy the folder again")
  return False


def require_utf8(path: str | os.PathLike) -> None:
  """Checks that the name of a folder is UTF-8: ArrayRecord and TensorStore take no other.

  Args:
    path: the folder.
  Raises:
    ConfigError: it is not.
  """
  try:
    os.fspath(path).encode()
  except UnicodeEncodeError as e:
    raise ConfigError(f"{path!s}: is not valid UTF-8, so nothing can be written there. "
                      "Rename the folder, or give another one") from e


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is in a bucket."""
  return os.fspath(path).startswith(SCHEME)


def find_problem(path: str) -> str | None:
  """Returns why a path can be neither read nor written; None if it is on a disk or gs://.

  Args:
    path: value of a flag or field.
  """
  if path.startswith("s3://"):
    return (f"{path}: s3:// is not read or written directly. Mount the bucket for text and corpora "
            "(mountpoint-s3) and give the local path; for a workdir, use gs:// or a disk")
  if path.startswith(SCHEME):
    return None if path.removeprefix(SCHEME).partition("/")[0] else (
        f"{path}: names no bucket. Write gs://BUCKET/NAME")
  if "://" in path:
    return (f"{path}: only local paths and gs:// are read and written. Mount the storage, or use "
            "a local or NFS path")
  return None


def open_read(path: str | os.PathLike) -> io.BufferedReader:
  """Opens a file or an object for reading.

  Args:
    path: path on a disk or in a bucket.
  Raises:
    OSError: it cannot be opened.
  """
  if is_remote(path):
    return typing.cast(io.BufferedReader, BucketPath(os.fspath(path)).open())
  return open(path, "rb")


def raise_if_unanswered(error: Exception) -> None:
  """Raises StorageError if an error is that of a bucket that does not answer.

  Args:
    error: error of reading a file, which the caller would otherwise report as damage.
  """
  if isinstance(error, OSError) and is_remote(str(error.filename)) and error.errno in (
      errno.EIO, errno.EACCES):
    raise StorageError(f"{error.filename}: {error.strerror}. Run the same command again"
                       ) from error


def size_of(path: str | os.PathLike) -> int:
  """Returns the bytes of a file or an object."""
  if is_remote(path):
    return BucketPath(os.fspath(path)).stat().st_size
  return os.path.getsize(path)


def match_objects(pattern: str) -> dict[str, Info]:
  """Returns name -> entry of the objects that a glob matches, in the order of their names.

  Args:
    pattern: gs://BUCKET/GLOB; `**` stands for any number of folders. An object with exactly this
      name takes precedence.
  Raises:
    OSError: the storage does not answer.
    DataError: a name that matches is none of a file, see `_require_names_of_files`.
  """
  path = BucketPath(pattern)
  with contextlib.suppress(FileNotFoundError):
    return {str(path): path.stat()}
  parts = path.parts
  literal = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
  if not 0 < literal < len(parts):
    return {}
  folder = BucketPath("/".join(parts[:literal]))
  found = {name: info for name, info in sorted(folder.list_tree().items())
           if is_matched(name.split("/"), parts[literal:])}
  _require_names_of_files(folder, found)
  return {f"{folder}/{name}": info for name, info in found.items()}


def _require_names_of_files(folder: BucketPath, names: Iterable[str]) -> None:
  """Checks that objects can be found by their paths: a bucket takes names that a disk does not.

  Args:
    folder: folder in a bucket.
    names: names of objects, relative to the folder.
  Raises:
    DataError: a name has an empty part, or leads out of the folder.
  """
  for name in names:
    if not all(name.split("/")) or {".", ".."} & set(name.split("/")):
      raise DataError(f"{folder}: holds an object {name!r}, whose name has a part that no file can "
                      "have. Rename it")


def is_matched(names: Sequence[str], patterns: Sequence[str]) -> bool:
  """Returns whether the parts of a name match the parts of a glob, by the rules of `glob`.

  Args:
    names: the parts of the name of a file, as in ("a", "b.txt").
    patterns: the parts of the glob; "**" stands for any number of folders.
  """
  if not names or not patterns:
    return not names and not patterns
  is_hidden = names[0].startswith(".")
  if patterns[0] == "**":
    return (len(names) == 1 == len(patterns) and not is_hidden
            or is_matched(names, patterns[1:])
            or not is_hidden and len(names) > 1 and is_matched(names[1:], patterns))
  return (fnmatch.fnmatchcase(names[0], patterns[0])
          and (not is_hidden or patterns[0].startswith("."))
          and is_matched(names[1:], patterns[1:]))


def copy_locally(path: pathlib.Path,
                 is_read: Callable[[str], bool] | None = None) -> pathlib.Path:
  """Returns a path on a disk with the content of a file or folder, which is only read.

  A path on a disk is returned as it is. Others are downloaded, once per process, into a temporary
  folder that is removed at the end.

  Args:
    path: path on a disk or in a bucket; it need not exist.
    is_read: (name) -> whether a file of the folder is read, or is read together with the file at
      `path`; only these are copied. None: everything at `path` is copied, and nothing next to it.
  Raises:
    OSError: the storage does not answer.
  """
  if not isinstance(path, BucketPath):
    return path
  return download(path) if is_read is None else _download_some(path, is_read)


@functools.cache
def download(path: BucketPath) -> pathlib.Path:
  """Returns a local copy of an object or a folder, see `copy_locally`."""
  target = _place_of(path)
  if path.is_file():
    path.download(target)
  else:
    download_tree(path, target, path.list_tree())
  return target


@functools.cache
def _download_some(path: BucketPath, is_read: Callable[[str], bool]) -> pathlib.Path:
  is_file = path.is_file()
  folder = path.parent if is_file else path
  target = _place_of(folder)
  download_tree(folder, target, [entry.name for entry in folder.iterdir() if entry == path or (
      is_read(entry.name) and entry.is_file())])
  return target / path.name if is_file else target


def _place_of(path: BucketPath) -> pathlib.Path:
  place = _temporary_folder() / f"{abs(hash(path)):x}" / (path.name or "bucket")
  place.parent.mkdir(exist_ok=True)
  return place


def download_tree(path: BucketPath, target: pathlib.Path, names: Any) -> None:
  """Copies objects of a folder to a local folder.

  Args:
    path: folder in a bucket.
    target: local folder.
    names: names of the objects, relative to the folder.
  Raises:
    DataError: a name is none of a file, for example because it leads out of the folder.
  """
  names = list(names)
  _require_names_of_files(path, names)

  def fetch(name: str) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).download(target / name)

  in_parallel(fetch, names)


_folders: list[str] = []  # That `_temporary_folder` has made.


@functools.cache
def _temporary_folder() -> pathlib.Path:
  folder = tempfile.mkdtemp(prefix="bertgpt-")
  _folders.append(folder)  # Two threads may make one each.
  return pathlib.Path(folder)


@atexit.register
def remove_copies() -> None:
  """Removes this process's local copies. Call it before `os._exit`, which skips exit handlers."""
  while _folders:
    shutil.rmtree(_folders.pop(), ignore_errors=True)
  for cached in (download, _download_some, _temporary_folder):
    cached.cache_clear()
