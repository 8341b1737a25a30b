"""Files that are whole or not there, locks between processes, and JSON."""

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

from bertgpt.errors import DataError, one_line

_UNFINISHED = ".unfinished-"

# ----------------------------------------------------------------- writing


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file that holds, even after a crash, all of the new content or all of the old.

  Args:
    path: a file, which is replaced if it exists, in a folder that exists.
    content: text is encoded as UTF-8, and its line ends stay as they are.
  Raises:
    OSError: the file could not be written; names `path`.
  """
  try:
    with publish_when_done(path) as scratch:
      scratch.write_bytes(content.encode() if isinstance(content, str) else content)
  except OSError as e:  # A write to an open file does not name it.
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def write_json(path: pathlib.Path, content: Any, *, indent: int | None = 2, **options) -> None:
  """Writes JSON with `write_atomically`.

  Args:
    content: JSON values.
    indent: spaces per level; None: all in one line.
    options: for `json.dumps`.
  """
  write_atomically(path, json.dumps(content, indent=indent, **options) + "\n")


@contextlib.contextmanager
def publish_when_done(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a free name to write a file or a folder at, which is renamed to `path` at the end.

  The content is on the disk before it is renamed. It is removed if the block raises, and stays
  under its own name, which no other process uses, if this process is killed.

  Args:
    path: a file at `path` is replaced; a folder must be new, or replace an empty one.
  """
  scratch = path.with_name(f"{path.name}{_UNFINISHED}{secrets.token_hex(4)}")
  try:
    yield scratch
    for entry in [*scratch.rglob("*"), scratch]:
      _sync(entry)
    scratch.replace(path)
    _sync(path.parent)
  except BaseException:
    _remove(scratch)
    raise


def remove_leftovers(folder: pathlib.Path, name: str = "") -> None:
  """Removes what processes that were killed in `publish_when_done` have left.

  Args:
    folder: a lock must keep other writers out of it.
    name: leftovers of this file or folder only; "": of all.
  """
  for path in folder.glob(f"{glob.escape(name) or '*'}{_UNFINISHED}{'[0-9a-f]' * 8}"):
    _remove(path)


def _sync(path: pathlib.Path) -> None:
  """Returns when a file, or the names in a folder, are on the disk."""
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
  """Holds a lock that no other process gets; it ends with this process, even after kill -9.

  Args:
    path: file of the lock, which is made if it is missing, and stays.
    on_held: called with the holder, "process 12 on host", if another process has the lock. The
      lock is waited for when it returns, so it raises an error if nobody should wait.
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
    path: a file in UTF-8.
    remedy: what to do if the file is damaged; the second sentence of the error.
    kind: the type that the content must have.
  Raises:
    DataError: the file cannot be read, is not UTF-8 or not JSON, has a key twice or a number
      that is not finite, or holds another type. One line that names the file.
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
  """Returns the value that a JSON text stands for.

  Args:
    text: bytes are UTF-8, with or without a byte-order mark.
    is_strict: refuse the same key twice in an object, NaN and Infinity.
  Raises:
    ValueError: whatever is wrong, as in "is not valid JSON (Expecting value: ...)"; one line.
  """
  decoder = _STRICT if is_strict else _LENIENT
  try:
    return decoder.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
  except RecursionError:
    raise ValueError("is not usable JSON (nested too deeply)") from None
  except ValueError as e:  # Also not UTF-8, and integers of thousands of digits.
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
