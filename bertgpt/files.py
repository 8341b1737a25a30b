"""Atomic writes of files and folders, locks between processes, and reading of JSON."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import pathlib
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

from bertgpt.errors import ConfigError, DataError, one_line

_UNFINISHED = ".unfinished-"
# What os.link says if the file system has no hard links, or none for this user or file.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})

# ----------------------------------------------------------------- writing


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file that holds either the new or the old content, even after a crash.

  Args:
    path: file in an existing folder; replaced if it exists.
    content: bytes, or text, which is encoded as UTF-8 with its line ends unchanged.
  Raises:
    OSError: the file could not be written; the error names `path`.
  """
  try:
    with publish_when_done(path) as scratch:
      scratch.write_bytes(content.encode() if isinstance(content, str) else content)
  except OSError as e:  # The error of a write to an open file does not name the file.
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def write_json(path: pathlib.Path, content: Any, *, indent: int | None = 2,
               **options: Any) -> None:
  """Writes a JSON file with `write_atomically`.

  Args:
    path: file in an existing folder; replaced if it exists.
    content: JSON values.
    indent: spaces per level; None: everything on one line.
    **options: options of `json.dumps`.
  """
  write_atomically(path, json.dumps(content, indent=indent, **options) + "\n")


@contextlib.contextmanager
def publish_when_done(path: pathlib.Path, flag: str = "") -> Iterator[pathlib.Path]:
  """Yields a temporary path for a new file or folder, which is renamed to `path` at the end.

  The content is synchronized to the disk before it is renamed. It is removed if the block raises.
  If this process is killed, it stays at the temporary path, which no other process uses.

  Args:
    path: final path. A file there is replaced; a folder there must be empty.
    flag: flag that names a new file, which replaces nothing; '': see above.
  Raises:
    ConfigError: there is a file by now, although `flag` names a new one.
  """
  scratch = unfinished_path(path, secrets.token_hex(4))
  try:
    yield scratch
    for entry in [*scratch.rglob("*"), scratch]:
      sync(entry)
    if flag:
      try:
        rename_new(scratch, path)
      except FileExistsError:
        raise ConfigError(f"{flag} {path}: was made by another program meanwhile. Name another "
                          "file, and give the command again") from None
    else:
      scratch.replace(path)
    sync(path.parent)
  except BaseException:
    _remove(scratch)
    raise


def rename_new(path: pathlib.Path, new: pathlib.Path) -> None:
  """Renames a file, and replaces nothing.

  On file systems without hard links, a file that appears within microseconds is replaced.

  Args:
    path: the file.
    new: its new path.
  Raises:
    FileExistsError: there is something at `new`.
  """
  try:
    os.link(path, new)
  except OSError as e:
    if e.errno not in _NO_LINKS:
      raise
    if os.path.lexists(new):
      raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new)) from e
    os.replace(path, new)
  else:
    path.unlink()


@contextlib.contextmanager
def new_folder(path: pathlib.Path, flag: str) -> Iterator[pathlib.Path]:
  """Yields a folder to write into, which is renamed to `path` if nothing fails.

  If this process is killed, the next one that makes a folder at `path` removes what is left.

  Args:
    path: path of the new folder.
    flag: flag that named the folder, for error messages.
  Raises:
    ConfigError: `path` exists.
  """
  refuse_existing(path, flag)
  path.parent.mkdir(parents=True, exist_ok=True)
  _remove_abandoned(path)
  with publish_when_done(path) as scratch:
    holder = _make_held(scratch)
    try:
      yield scratch
    finally:
      os.close(holder)


def _make_held(folder: pathlib.Path) -> int:
  """Makes a folder that `_remove_abandoned` of other processes leaves alone.

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
  if os.path.lexists(path):
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


def remove_leftovers(folder: pathlib.Path, name: str = "") -> None:
  """Removes the temporary files and folders of processes killed in `publish_when_done`.

  Args:
    folder: folder that a lock protects from other writers.
    name: name of the final file or folder; '': all.
  """
  for path in _find_leftovers(folder, name):
    _remove(path)


def _find_leftovers(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  return list(folder.glob(f"{glob.escape(name) or '*'}{_UNFINISHED}{'[0-9a-f]' * 8}"))


def unfinished_path(path: pathlib.Path, key: str) -> pathlib.Path:
  """Returns the temporary path of a file or folder that is being written.

  Args:
    path: its final path.
    key: what tells the temporary paths of one final path apart. `remove_leftovers` removes those
      of 8 hexadecimal digits.
  """
  return path.with_name(f"{path.name}{_UNFINISHED}{key}")


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


# ----------------------------------------------------------------- locking


@contextlib.contextmanager
def lock(path: pathlib.Path, on_held: Callable[[str], None]) -> Iterator[None]:
  """Holds an exclusive lock between processes, which is released even after kill -9.

  Args:
    path: file of the lock; created if it is missing, and not removed.
    on_held: called with the holder, as "process 12 on host", if another process has the lock. If it
      returns, this function waits for the lock; if it raises an error, that error is raised.
  """
  with path.open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      on_held(file.read().strip() or "another process")
      fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


# ----------------------------------------------------------------- reading


def read_json(path: pathlib.Path, remedy: str, kind: type = dict) -> Any:
  """Returns the content of a JSON file.

  Args:
    path: file in UTF-8.
    remedy: second sentence of the error message, which says what to do if the file is damaged.
    kind: required type of the content.
  Raises:
    DataError: the file cannot be read, is not valid UTF-8 or JSON, has a duplicate key or a number
      that is not finite, or holds another type. The message is one line that names the file.
  """
  try:
    content = parse_json(path.read_bytes(), is_strict=True)
  except OSError as e:
    raise DataError(f"{path}: cannot be read ({e.strerror}). {remedy}") from e
  except ValueError as e:
    raise DataError(f"{path}: {e}. {remedy}") from e
  if not isinstance(content, kind):
    raise DataError(f"{path}: holds JSON of type {type(content).__name__} instead of "
                    f"{kind.__name__}. {remedy}")
  return content


def parse_json(text: str | bytes, *, is_strict: bool = False) -> Any:
  """Parses JSON.

  Args:
    text: JSON as text, or as UTF-8 with or without a byte-order mark.
    is_strict: whether to refuse duplicate keys of an object, NaN and Infinity.
  Raises:
    ValueError: the text is not usable; the message is one line that continues the name of the text,
      as "is not valid JSON (Expecting value: ...)".
  """
  decoder = _STRICT if is_strict else _LENIENT
  try:
    return decoder.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
  except RecursionError:
    raise ValueError("is not usable JSON (nested too deeply)") from None
  except ValueError as e:  # Also for invalid UTF-8, and for integers of thousands of digits.
    raise ValueError(f"is not valid JSON ({one_line(e)})") from e


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is not a finite number")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
  return found


_LENIENT = json.JSONDecoder()
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_make_object)
