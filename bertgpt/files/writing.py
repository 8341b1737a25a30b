"""Files and folders that are written completely or not at all, on a disk or in a bucket."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from bertgpt.errors import ConfigError
from bertgpt.files.bucket import MANIFEST, BucketPath, in_parallel
from bertgpt.files.parsing import without_nonfinite

_UNFINISHED = ".unfinished-"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # Errors of a write.
# Errors of os.link if the file system has no hard links, or none for this user or file.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file that holds either the new or the old content, even after a crash.

  Args:
    path: file in an existing folder; replaced if it exists.
    content: bytes, or text, which is encoded as UTF-8 with its line ends unchanged. Surrogates are
      written as escapes.
  Raises:
    OSError: the file could not be written; the error names `path`.
  """
  if isinstance(content, str):  # Names of files may hold bytes that are not UTF-8.
    content = content.encode(errors="backslashreplace")
  if isinstance(path, BucketPath):
    path.write_bytes(content)
    return
  try:
    with publish_when_done(path) as scratch:
      scratch.write_bytes(content)
  except OSError as e:  # The error of a write to an open file does not name the file.
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def write_json(path: pathlib.Path, content: Any, *, indent: int | None = 2,
               **options: Any) -> None:
  """Writes a JSON file with `write_atomically`.

  Args:
    path: file in an existing folder; replaced if it exists.
    content: JSON values; numbers that are not finite, which JSON lacks, are written as null.
    indent: spaces per level; None: everything on one line.
    **options: options of `json.dumps`.
  """
  write_atomically(path, json.dumps(without_nonfinite(content), indent=indent, **options) + "\n")


@contextlib.contextmanager
def publish_when_done(path: pathlib.Path, flag: str = "", last: str = MANIFEST,
                      before: Callable[[], None] = lambda: None) -> Iterator[pathlib.Path]:
  """Yields a temporary path for a new file or folder, which is renamed to `path` at the end.

  The content is synchronized to the disk before it is renamed. It is removed if the block raises.
  If this process is killed, the content stays at the temporary path, which no other process uses.
  For a bucket, the content is written to a local temporary folder and uploaded at the end, with
  files named `last` after all others; an existing folder of the same name is deleted first.

  Args:
    path: final path. A file there is replaced; a folder there must be empty.
    flag: flag that names a new file or folder, which must not replace another one; '': see above.
    last: name of the file that makes a folder in a bucket complete.
    before: called before a folder in a bucket is replaced, and again before `last` is written; an
      error that it raises ends the upload.
  Raises:
    ConfigError: meanwhile, something has appeared at `path`, although `flag` names a new one.
  """
  if isinstance(path, BucketPath):
    with tempfile.TemporaryDirectory(prefix="bertgpt-") as folder:
      yield (local := pathlib.Path(folder) / path.name)
      if flag:
        refuse_existing(path, flag)
      _upload(local, path, last, before)
    return
  scratch = unfinished_path(path, secrets.token_hex(4))
  try:
    yield scratch
    for entry in [*scratch.rglob("*"), scratch]:
      sync(entry)
    if flag:
      try:
        rename_new(scratch, path)
      except FileExistsError:
        kind = "folder" if scratch.is_dir() else "file"
        raise ConfigError(f"{flag} {path}: was made by another program meanwhile. Name another "
                          f"{kind}, and run the command again") from None
    else:
      scratch.replace(path)
    sync(path.parent)
  except BaseException as e:
    _remove(scratch)
    if isinstance(e, OSError) and e.errno in _FULL and e.filename is None:
      raise OSError(e.errno, e.strerror, os.fspath(path)) from e
    raise


def _upload(local: pathlib.Path, target: BucketPath, last: str,
            before: Callable[[], None]) -> None:
  """Copies a local file or folder into a bucket; see `publish_when_done`."""
  if not local.is_dir():
    target.upload(local)
    return
  before()
  target.remove_tree()
  names = [str(path.relative_to(local)) for path in sorted(local.rglob("*")) if path.is_file()]
  ends = [name for name in names if os.path.basename(name) == last]
  in_parallel(lambda name: (target / name).upload(local / name),
              [name for name in names if name not in ends])
  before()
  for name in ends:
    (target / name).upload(local / name)


def rename_new(path: pathlib.Path, new: pathlib.Path) -> None:
  """Renames a file or a folder without replacing another one.

  On file systems without hard links, a file that appears within microseconds is replaced. An empty
  folder that appears within microseconds is replaced on every file system.

  Args:
    path: the file or folder.
    new: its new path.
  Raises:
    FileExistsError: there is something at `new`.
  """
  try:
    os.link(path, new)
  except OSError as e:
    if e.errno not in _NO_LINKS:
      raise
    exists = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
    if os.path.lexists(new):
      raise exists from e
    try:
      os.replace(path, new)
    except OSError as error:
      if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
        raise
      raise exists from error
  else:
    path.unlink()


@contextlib.contextmanager
def new_folder(path: pathlib.Path, flag: str) -> Iterator[pathlib.Path]:
  """Yields a folder to write into, which is renamed to `path` if nothing fails.

  If this process is killed, the next one that makes a folder at `path` removes the remains.

  Args:
    path: path of the new folder.
    flag: flag that named the folder, for error messages.
  Raises:
    ConfigError: `path` exists, or a file is in the place of one of its folders.
  """
  refuse_existing(path, flag)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as e:
    raise ConfigError(f"{flag} {path}: a part of this path is a file, not a folder. Name a new "
                      "folder elsewhere") from e
  _remove_abandoned(path)
  # It is held until it has its name, because synchronizing gigabytes to the disk takes a while.
  with contextlib.ExitStack() as stack, publish_when_done(path, flag) as scratch:
    stack.callback(os.close, _make_held(scratch))
    yield scratch


def _make_held(folder: pathlib.Path) -> int:
  """Makes a folder that `_remove_abandoned` in other processes does not remove.

  Returns:
    A descriptor, which holds the folder until it is closed or this process is gone.
  """
  while True:
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # Another process removed it before it was held.
      descriptor = os.open(folder, os.O_RDONLY)
      with contextlib.suppress(OSError):  # Some file systems have no locks.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      if folder.is_dir():
        return descriptor
      os.close(descriptor)


def _remove_abandoned(path: pathlib.Path) -> None:
  """Removes the temporary folders for a path that no process holds."""
  for folder in _find_leftovers(path.parent, path.name):
    with contextlib.suppress(OSError):  # It is held, or gone by now.
      descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
      finally:
        os.close(descriptor)


def refuse_existing(path: pathlib.Path, flag: str) -> None:
  """Checks that there is nothing at a path, not even a broken link.

  Args:
    path: path of a file or folder that will be written.
    flag: the flag that named it, for error messages.
  Raises:
    ConfigError: `path` exists.
  """
  if path.exists() if isinstance(path, BucketPath) else os.path.lexists(path):
    raise ConfigError(f"{flag} {path}: exists already. Name a new one, or remove it")


def require_parent(path: pathlib.Path, flag: str) -> None:
  """Checks that there is a folder for a file.

  Args:
    path: path of the file that will be written.
    flag: the flag that named it, for error messages.
  Raises:
    ConfigError: the folder is missing.
  """
  if not path.parent.is_dir():
    raise ConfigError(f"{flag} {path}: there is no folder {path.parent}. Make it first")


def require_file(path: pathlib.Path, flag: str) -> None:
  """Checks that an input is a file, which can be read more than once.

  Args:
    path: path of the input.
    flag: the flag that named it, for error messages.
  Raises:
    ConfigError: there is nothing, a folder, a pipe or a device.
  """
  if path.is_dir():
    raise ConfigError(f"{flag} {path}: is a folder. Give a file")
  if not path.exists():
    if path.name == "-":
      raise ConfigError(f"{flag} {path}: standard input cannot be read. Write it to a file first")
    raise ConfigError(f"{flag} {path}: no such file")
  if not path.is_file():
    raise ConfigError(f"{flag} {path}: is not a regular file. Write its content to one first")


def remove_leftovers(folder: pathlib.Path, name: str = "") -> None:
  """Removes the temporary files and folders of processes killed in `publish_when_done`.

  Args:
    folder: folder that a lock protects from other writers.
    name: name of the final file or folder; '': all.
  """
  for path in _find_leftovers(folder, name):
    _remove(path)


def remove_tree(path: pathlib.Path, *, tries: bool = False) -> None:
  """Deletes a folder with everything in it; it need not exist.

  Args:
    path: folder on a disk or in a bucket.
    tries: whether files that cannot be deleted may stay.
  Raises:
    OSError: something cannot be deleted.
  """
  if isinstance(path, BucketPath):
    path.remove_tree()
  elif path.exists():
    shutil.rmtree(path, ignore_errors=tries)


def _find_leftovers(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  if isinstance(folder, BucketPath):
    return []  # Objects appear only when they are complete.
  return list(folder.glob(f"{glob.escape(name) or '*'}{_UNFINISHED}{'[0-9a-f]' * 8}"))


def unfinished_path(path: pathlib.Path, key: str) -> pathlib.Path:
  """Returns the temporary path of a file or folder that is being written.

  Args:
    path: its final path.
    key: makes the temporary paths of one final path different. `remove_leftovers` removes paths
      whose key has 8 hexadecimal digits.
  """
  return path.with_name(f"{path.name}{_UNFINISHED}{key}")


def is_unfinished(path: pathlib.Path) -> bool:
  """Returns whether a path is one of `unfinished_path`."""
  return _UNFINISHED in path.name


def sync(path: pathlib.Path) -> None:
  """Synchronizes a file, or the names in a folder, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as e:
    if e.errno != errno.EINVAL or not path.is_dir():  # Some file systems cannot sync a folder.
      raise
  finally:
    os.close(descriptor)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()
