"""Locks between processes: a file lock on a disk, a lease in a bucket."""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import IO

from bertgpt import console
from bertgpt.errors import StorageError
from bertgpt.files import lease
from bertgpt.files.bucket import BucketPath
from bertgpt.files.lease import Holder
from bertgpt.files.paths import naming

_TRIES = 10  # Some network file systems may not number their files reliably.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
_held: dict[str, bytes] = {}  # Absolute path of a lock of this process on a disk -> its content.


@contextlib.contextmanager
def lock(path: pathlib.Path, on_held: Callable[[Holder], None]) -> Iterator[None]:
  """Holds an exclusive lock between processes, which is released even after kill -9.

  Args:
    path: file of the lock; created if it is missing, and not removed. In a bucket, see `lease`. On
      a file system without locks, as Lustre may be mounted, a warning replaces the lock.
    on_held: called with the holder if another process has the lock. When it returns, this function
      waits for the lock; an error that it raises is passed on.
  """
  if isinstance(path, BucketPath):
    with lease.hold(path, on_held):
      yield
    return
  for tries_left in reversed(range(_TRIES)):
    with _open(path) as file:
      _take(file, path, on_held)
      # If the holder before has removed the file, others lock a new one.
      if tries_left and not _is_at(file, path):
        continue
      key = os.path.abspath(path)
      with naming(path):
        _held[key] = _write_holder(file)
      try:
        yield
      finally:
        del _held[key]
      return


def _open(path: pathlib.Path) -> IO[str]:
  """Opens the file of a lock, and makes it if it is missing; only for reading if need be.

  In a cache that several users share, it may be another user's. In a folder such as /tmp, Linux
  then refuses to open it with O_CREAT, even if all may write to it (fs.protected_regular).
  """
  error = None
  for flags, mode in ((os.O_RDWR | os.O_CREAT, "a+"), (os.O_RDWR, "a+"), (os.O_RDONLY, "r")):
    try:
      file = open(os.open(path, flags | os.O_APPEND, 0o666), mode, errors="replace")
    except OSError as e:
      error = error or e
      if not isinstance(error, PermissionError):
        break
      continue
    _share(file.fileno(), path.parent)
    return file
  assert error is not None
  raise error


def _share(descriptor: int, folder: pathlib.Path) -> None:
  """Lets those who may write to a folder write to the file of a lock in it, whatever the umask."""
  info = os.stat(folder)
  for change in (lambda: os.fchown(descriptor, -1, info.st_gid),
                 lambda: os.fchmod(descriptor, 0o644 | info.st_mode & 0o022)):
    with contextlib.suppress(OSError):  # The file is another user's.
      change()


def _write_holder(file: IO[str]) -> bytes:
  """Writes into the file of a lock who holds it, if that is allowed; returns the content."""
  if file.writable():
    file.truncate(0)
    holder = f"process {os.getpid()} on {socket.gethostname()}\n{_read_boot_id()}\n"
    # Without the file's buffer, which would fail again when it is closed.
    os.write(file.fileno(), f"{holder}{secrets.token_hex(8)}\n".encode(errors="replace"))
  return os.pread(file.fileno(), 2**16, 0)


def _take(file: IO[str], path: pathlib.Path, on_held: Callable[[Holder], None]) -> None:
  """Takes the lock of an open file; see `lock`."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    on_held(_parse(file.read()))
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError as e:
    if e.errno == errno.EBADF:  # NFS has no exclusive locks of files that are open for reading.
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path)) from e
    if e.errno not in _NO_LOCKS:
      raise
    console.say(f"WARNING: {path}: this file system has no locks ({e.strerror}). Start nothing "
                "else that writes there")


def _is_at(file: IO[str], path: pathlib.Path) -> bool:
  """Returns whether a path leads to an open file."""
  with contextlib.suppress(FileNotFoundError):
    return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
  return False


def _read_boot_id() -> str:
  with contextlib.suppress(OSError):
    return lease.read_boot_id()
  return ""


def _parse(text: str) -> Holder:
  """Returns the holder that the file of a lock names.

  The host name is not enough: a pod that replaces a lost one may have its name.
  """
  name, boot_id, *_ = [*text.splitlines(), "", ""]
  if boot_id and (here := _read_boot_id()):
    return Holder(name, boot_id == here)
  return Holder(name or "another process", name.partition(" on ")[2] in ("", socket.gethostname()))


def check_lock(path: pathlib.Path) -> None:
  """Checks that a lock of this process was not taken over.

  On a network disk, it can be: a server of NFS releases the locks of a client that was silent for
  90 s, for example behind a broken switch, and the client is not told.

  Args:
    path: path of the lock; nothing is checked if this process does not hold it.
  Raises:
    StorageError: another process has taken it over, or may have, because the file was deleted.
    OSError: the storage does not answer.
  """
  if isinstance(path, BucketPath):
    lease.check(path)
  elif written := _held.get(os.path.abspath(path)):
    try:
      found = path.read_bytes()
    except FileNotFoundError as e:
      raise StorageError(f"{path}: was deleted, so that another process may have taken the lock. "
                         "Run the same command again") from e
    if found != written:
      raise StorageError(f"{path}: {_parse(found.decode(errors='replace'))} has taken the lock "
                         "over: the server of the disk has released it, or the disk has no locks. "
                         "Stop one of the two")
