"""Files that grow line by line, such as metrics.jsonl, on a disk or in a bucket.

An object cannot be appended to. So a file of a bucket grows in a temporary folder of this machine,
and is uploaded whole: by `upload_all` at every checkpoint, by `upload`, and when it is closed.
`name` of an open file is the path of what grows: the file, or its copy on this machine.
"""

import errno
import io
import os
import pathlib
import tempfile
import threading

from bertgpt.files.bucket import BucketPath
from bertgpt.files.paths import naming

_open_files: dict[BucketPath, "_Growing"] = {}
_mutex = threading.Lock()


def open_growing(path: pathlib.Path, *, is_new: bool = False) -> io.FileIO:
  """Opens a file without a buffer, at its end; it is made if it is missing.

  If the last line of a .jsonl file was cut off by a crash, it is ended first.

  Args:
    path: file in an existing folder, or an object.
    is_new: whether the file must not exist.
  Raises:
    OSError: it cannot be opened, or exists although it must not.
  """
  file = (_Growing(path, is_new) if isinstance(path, BucketPath) else
          io.FileIO(path, "xb" if is_new else "ab"))
  if path.suffix == ".jsonl" and file.tell():
    with open(file.name, "rb") as content:
      is_cut = not _ends_a_line(content)
    if is_cut:
      file.write(b"\n")
  return file


def upload(file: io.FileIO) -> None:
  """Uploads an open file if it lies in a bucket and has grown.

  Args:
    file: result of `open_growing`.
  Raises:
    OSError: it cannot be written.
  """
  if isinstance(file, _Growing):
    with _mutex:
      file.upload()


def write_all(descriptor: int, content: bytes) -> None:
  """Writes to an open file. If the disk fills up, a part of the content may have been written.

  Args:
    descriptor: descriptor of the file.
    content: bytes of any length.
  Raises:
    OSError: they cannot be written.
  """
  while content:  # A disk that fills up takes only a part. The next write raises the error.
    content = content[os.write(descriptor, content):]


def append(path: pathlib.Path, line: str) -> None:
  """Adds a line to a small file, and waits until it is stored.

  Args:
    path: file in an existing folder, or an object.
    line: text without the line end. If the last line of the file was cut off by a crash, it is
      ended first.
  Raises:
    OSError: the file cannot be written.
  """
  if isinstance(path, BucketPath):
    old = path.read_bytes() if path.is_file() else b""
    old += b"" if old.endswith(b"\n") or not old else b"\n"
    path.write_bytes(old + f"{line}\n".encode())
    return
  with naming(path), open(path, "a+b") as file:
    if file.tell() and not _ends_a_line(file):
      line = f"\n{line}"
    file.write(f"{line}\n".encode())
    file.flush()
    os.fsync(file.fileno())


def _ends_a_line(file) -> bool:
  file.seek(-1, os.SEEK_END)
  return file.read(1) == b"\n"


def upload_all() -> None:
  """Uploads those open files of buckets that have grown.

  Raises:
    OSError: one of them cannot be written.
  """
  with _mutex:
    for file in list(_open_files.values()):
      file.upload()


class _Growing(io.FileIO):
  """A local copy of an object, which is uploaded whole, unless another process has written it."""

  def __init__(self, path: BucketPath, is_new: bool):
    self._target, self._uploaded, self._generation = path, -1, "0"
    self._folder = tempfile.TemporaryDirectory(prefix="bertgpt-")
    self._copy = pathlib.Path(self._folder.name) / path.name
    if not is_new and path.is_file():
      self._generation = path.stat().generation
      path.download(self._copy)
      self._uploaded = self._copy.stat().st_size
    super().__init__(self._copy, "ab")
    with _mutex:
      _open_files[path] = self

  def upload(self) -> None:
    """Writes the object if the file has grown.

    Raises:
      OSError: it cannot be written, or another process has written it.
    """
    content = self._copy.read_bytes()
    content = content[:content.rfind(b"\n") + 1] if self._target.suffix == ".jsonl" else content
    if len(content) != self._uploaded:
      try:
        self._generation = self._target.write_bytes(content, self._generation)
      except FileExistsError as e:
        found = self._target.stat().generation
        if self._target.read_bytes() != content:  # Otherwise, the answer to this write was lost.
          raise OSError(errno.ESTALE, "another process has written it", str(self._target)) from e
        self._generation = found
      self._uploaded = len(content)

  def close(self) -> None:
    """Uploads the file and removes the local copy."""
    if self.closed:
      return
    super().close()
    try:
      with _mutex:
        _open_files.pop(self._target, None)
        self.upload()
    finally:
      self._folder.cleanup()
