"""Paths in a bucket, gs://bucket/name, with the methods of `pathlib.Path` that runs use.

A bucket holds objects, not folders: a folder exists if the name of an object begins with it. An
object is written completely or not at all. There is no renaming and no appending: `rename` copies
and deletes, and `files.growing` handles files that grow.
"""

import concurrent.futures
import contextlib
import errno
import fnmatch
import functools
import io
import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bertgpt.errors import ConfigError, DataError
from bertgpt.files import gcs

SCHEME = "gs://"
BLOCK_BYTES = 2**23  # Size of the blocks in which a file is read or downloaded.
PARALLEL = 16  # Requests at a time.
MANIFEST = "manifest.json"  # Written last and deleted first. With it, its folder is complete.


@functools.total_ordering
class BucketPath:
  """Path of an object or a folder in a bucket."""

  def __init__(self, text: str):
    """Takes a path apart.

    Args:
      text: path in the form gs://bucket/folder/name.
    Raises:
      ConfigError: it does not name a bucket.
    """
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    self._key = posixpath.normpath(f"/{key}").strip("/")
    self._bucket = bucket
    if not text.startswith(SCHEME) or not bucket or "\0" in text:
      raise ConfigError(f"{text}: names no bucket. Write gs://BUCKET/NAME")

  # ------------------------------------------------------------------ names

  def __fspath__(self) -> str:
    return f"{SCHEME}{self._bucket}/{self._key}".rstrip("/")

  def __str__(self) -> str:
    return self.__fspath__()

  def __repr__(self) -> str:
    return f"BucketPath({str(self)!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, BucketPath) and str(self) == str(other)

  def __lt__(self, other: "BucketPath") -> bool:
    return self.parts < other.parts

  def __hash__(self) -> int:
    return hash(str(self))

  def __truediv__(self, name: str | os.PathLike) -> "BucketPath":
    return BucketPath(f"{self}/{os.fspath(name)}")

  @property
  def parts(self) -> tuple[str, ...]:
    """Bucket, then the parts of the name."""
    return (f"{SCHEME}{self._bucket}", *filter(None, self._key.split("/")))

  @property
  def name(self) -> str:
    """Last part of the name; '' for a whole bucket."""
    return posixpath.basename(self._key)

  @property
  def stem(self) -> str:
    """Name without its last suffix."""
    return posixpath.splitext(self.name)[0]

  @property
  def suffix(self) -> str:
    """Last suffix of the name, such as '.json', or ''."""
    return posixpath.splitext(self.name)[1]

  @property
  def parent(self) -> "BucketPath":
    """Folder that contains it; a bucket is its own parent."""
    return BucketPath(f"{SCHEME}{self._bucket}/{posixpath.dirname(self._key)}")

  @property
  def parents(self) -> tuple["BucketPath", ...]:
    """Folders above it, up to the bucket."""
    return (self.parent, *self.parent.parents) if self._key else ()

  def with_name(self, name: str) -> "BucketPath":
    """Returns the path of another name in the same folder."""
    return self.parent / name

  def relative_to(self, other: "BucketPath") -> str:
    """Returns the name relative to a folder above."""
    prefix = f"{other}/"
    if not str(self).startswith(prefix):
      raise ValueError(f"{self} is not in {other}")
    return str(self).removeprefix(prefix)

  def expanduser(self) -> "BucketPath":
    """Returns the path itself."""
    return self

  def absolute(self) -> "BucketPath":
    """Returns the path itself."""
    return self

  # ---------------------------------------------------------------- queries

  def exists(self) -> bool:
    """Returns whether there is an object or a folder."""
    return self.is_file() or self.is_dir()

  def is_file(self) -> bool:
    """Returns whether there is an object of this name."""
    with contextlib.suppress(FileNotFoundError):
      self.stat()
      return True
    return False

  def is_dir(self) -> bool:
    """Returns whether there are objects in the folder; a bucket itself is always a folder."""
    return not self._key or bool(self._list(only_first=True, maxResults="10")[0])

  def is_symlink(self) -> bool:
    """Returns False: a bucket has no links."""
    return False

  def stat(self) -> gcs.Info:
    """Returns size, digest and generation of the object.

    Raises:
      FileNotFoundError: there is none.
    """
    if not self._key:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
    return gcs.make_info(self._call("GET", "b/{}/o/{}", self._bucket, self._key, json_out=True))

  def iterdir(self) -> Iterator["BucketPath"]:
    """Yields objects and folders in the folder."""
    objects, folders = self._list(delimiter="/")
    names = {*(item["name"] for item in objects), *(name.removesuffix("/") for name in folders)}
    # A path cannot name what is in a folder without a name, as in `a//b`.
    yield from (path for name in sorted(names)
                if (path := BucketPath(f"{SCHEME}{self._bucket}/{name}"))._key == name)

  def _find(self, name: str) -> "BucketPath":
    """Returns an object of `list_tree`; `/` would normalize names such as 'a//b' or '../b'."""
    path = BucketPath(str(self))
    path._key = f"{self._key}/{name}" if self._key else name
    return path

  def list_tree(self) -> dict[str, gcs.Info]:
    """Returns all objects in the folder and the folders below: relative name -> entry."""
    prefix = f"{self._key}/" if self._key else ""
    objects, _ = self._list()
    return {item["name"].removeprefix(prefix): gcs.make_info(item) for item in objects}

  def glob(self, pattern: str) -> Iterator["BucketPath"]:
    """Yields objects and folders that match a pattern without `**`, in order."""
    first, _, rest = pattern.partition("/")
    if not any(c in first for c in "*?["):
      found = iter([self / first] if (self / first).exists() else [])
    else:
      found = (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, first))
    for path in found:
      if rest:
        yield from path.glob(rest)
      else:
        yield path

  def _list(self, only_first: bool = False, **options: str) -> tuple[list[dict], list[str]]:
    """Returns the objects below the folder, without markers of folders, and the folders in it.

    Args:
      only_first: whether to stop at the first page that has an object.
      **options: parameters of the request.
    """
    prefix = f"{self._key}/" if self._key else ""
    objects, folders, token = [], [], ""
    while not (only_first and objects):
      extra = {"pageToken": token} if token else {}
      try:
        page = self._call("GET", "b/{}/o", self._bucket, prefix=prefix, json_out=True, **options,
                          **extra)
      except FileNotFoundError:  # There is no such bucket; a write will report it.
        break
      objects += [item for item in page.get("items", ()) if not item["name"].endswith("/")]
      folders += page.get("prefixes", ())
      if not (token := page.get("nextPageToken", "")):
        break
    return objects, folders

  # ---------------------------------------------------------------- content

  def read_bytes(self) -> bytes:
    """Returns the content of the object."""
    return self._content()

  def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Returns the content of the object as text."""
    return self.read_bytes().decode(encoding, errors)

  def open(self, mode: str = "rb") -> io.BufferedReader:
    """Opens the object for reading; the next block is fetched in the background."""
    if mode != "rb":
      raise ValueError(f"{self}: objects are opened with mode 'rb', not {mode!r}")
    return io.BufferedReader(_Reader(self, self._stat_plain()), 2**16)

  def read_range(self, start: int, end: int, generation: str | None = None) -> bytes:
    """Returns the bytes [start, end) of the object.

    Args:
      start: first byte.
      end: byte after the last one.
      generation: generation that the object must have; None: any.
    Raises:
      OSError: the object has been replaced, or cannot be read.
    """
    if end <= start:
      return b""
    bounds = {"Range": f"bytes={start}-{end - 1}"}
    extra = {} if generation is None else {"generation": generation}
    try:
      content = self._content(headers=bounds, **extra)
    except FileNotFoundError as e:
      if generation is None:
        raise
      raise OSError(errno.ESTALE, "it was replaced or deleted while it was read", str(self)) from e
    if len(content) != end - start:
      raise OSError(errno.EIO, f"{len(content)} bytes instead of {end - start} were read",
                    str(self))
    return content

  def _stat_plain(self) -> gcs.Info:
    """Returns the entry of an object that is read as it is stored.

    Raises:
      DataError: the storage would unpack it, so that nothing says where it ends.
    """
    info = self.stat()
    if info.encoding == "gzip":
      raise DataError(f"{self}: is stored with Content-Encoding: gzip, so its size is unknown. "
                      "Upload it without this encoding (gsutil cp without -z or -Z, gcloud storage "
                      "cp without --gzip-local)")
    return info

  def write_bytes(self, content: bytes, generation: str | None = None) -> str:
    """Writes the object, completely or not at all.

    Args:
      content: its new content.
      generation: generation that the object must have; '0': it must not exist; None: any.
    Returns:
      The new generation.
    Raises:
      FileExistsError: the object has another generation.
      OSError: there is no such bucket, or it cannot be written.
    """
    header = '{"name": ' + json.dumps(self._key) + "}"
    boundary = uuid.uuid4().hex  # It must not occur in the content.
    body = (f"--{boundary}\nContent-Type: application/json; charset=UTF-8\n\n{header}\n"
            f"--{boundary}\nContent-Type: application/octet-stream\n\n".encode()
            + content + f"\n--{boundary}--".encode())
    extra = {} if generation is None else {"ifGenerationMatch": generation}
    storage = gcs.open_storage()
    with self._no_bucket():
      return self._call(
          "POST", f"{storage._location}/upload/storage/v1/b/{self._bucket}/o", name=self._key,
          uploadType="multipart", data=body, json_out=True,
          headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
          **extra)["generation"]

  def write_text(self, content: str) -> None:
    """Writes the object as UTF-8, completely or not at all."""
    self.write_bytes(content.encode())

  def upload(self, file: os.PathLike | str) -> None:
    """Writes the object from a local file; a large one in several requests."""
    if os.path.getsize(file) <= BLOCK_BYTES:
      with open(file, "rb") as f:
        self.write_bytes(f.read())
      return
    with self._no_bucket():
      gcs.open_storage().put_file(os.fspath(file), str(self))

  def download(self, file: os.PathLike | str) -> None:
    """Copies the object to a local file."""
    info = self._stat_plain()
    with open(file, "wb") as f:
      for start in range(0, info.st_size, BLOCK_BYTES):
        f.write(self.read_range(start, min(start + BLOCK_BYTES, info.st_size), info.generation))

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: a bucket has no folders."""

  def rmdir(self) -> None:
    """Does nothing: a bucket has no folders."""

  def unlink(self, missing_ok: bool = False, generation: str | None = None) -> None:
    """Deletes the object; with a generation, only if the object still has it."""
    extra = {} if generation is None else {"ifGenerationMatch": generation}
    with contextlib.suppress(*(FileNotFoundError,) if missing_ok else ()):
      self._call("DELETE", "b/{}/o/{}", self._bucket, self._key, **extra)

  def remove_tree(self) -> None:
    """Deletes the folder with everything in it, manifests first."""
    names = list(self.list_tree())
    for name in (n for n in names if posixpath.basename(n) == MANIFEST):
      self._find(name).unlink(missing_ok=True)
    in_parallel(lambda name: self._find(name).unlink(missing_ok=True), names)

  def rename(self, target: "BucketPath") -> "BucketPath":
    """Copies an object or a folder to another name, then deletes it; manifests are copied last.

    If the program is killed during this, the folder is complete in one of the two places.
    """
    names = [""] if self.is_file() else sorted(
        self.list_tree(), key=lambda name: posixpath.basename(name) == MANIFEST)
    last = [name for name in names if posixpath.basename(name) == MANIFEST]
    in_parallel(lambda name: self._copy(name, target), [n for n in names if n not in last])
    for name in last:
      self._copy(name, target)
    if names == [""]:
      self.unlink(missing_ok=True)
    else:
      self.remove_tree()
    return target

  def _copy(self, name: str, target: "BucketPath") -> None:
    source, copy = (self._find(name), target._find(name)) if name else (self, target)
    token: dict[str, str] = {}
    while True:  # Large objects take several requests.
      answer = self._call("POST", "b/{}/o/{}/rewriteTo/b/{}/o/{}", source._bucket, source._key,
                          copy._bucket, copy._key, json_out=True, **token)
      if answer.get("done", True):
        return
      token = {"rewriteToken": answer["rewriteToken"]}

  # ---------------------------------------------------------------- requests

  def _call(self, method: str, path: str, *args: str, **options: Any) -> Any:
    try:
      return gcs.open_storage().call(method, path, *args, **options)
    except OSError as e:
      if e.errno is not None:
        e.filename = str(self)
      raise

  def _content(self, **options: Any) -> bytes:
    location = gcs.open_storage()._location
    _, content = self._call("GET", location + "/download/storage/v1/b/{}/o/{}?alt=media",
                            self._bucket, self._key, **options)
    return content

  @contextlib.contextmanager
  def _no_bucket(self) -> Iterator[None]:
    """Turns the error of a write to a missing bucket into a storage error."""
    try:
      yield
    except FileNotFoundError as e:
      raise OSError(errno.EIO, f"there is no bucket {self._bucket}", str(self)) from e


class _Reader(io.RawIOBase):
  """An object, read block by block."""

  def __init__(self, path: BucketPath, info: gcs.Info):
    self._path, self._position = path, 0
    self._size, self._generation = info.st_size, info.generation
    self._start, self._block = 0, b""
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._next: tuple[int, concurrent.futures.Future] | None = None
    self.name = str(path)

  def readable(self) -> bool:
    """Returns True."""
    return True

  def seekable(self) -> bool:
    """Returns True."""
    return True

  def tell(self) -> int:
    """Returns the position in bytes."""
    return self._position

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    """Moves the position; see `io.IOBase.seek`."""
    base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
    self._position = max(0, base + offset)
    return self._position

  def readinto(self, buffer: Any) -> int:
    """Reads bytes at the position; see `io.RawIOBase.readinto`."""
    if self._position >= self._size:
      return 0
    offset = self._position - self._start
    if not 0 <= offset < len(self._block):
      self._load(self._position)
      offset = 0
    part = self._block[offset:offset + len(buffer)]
    buffer[:len(part)] = part
    self._position += len(part)
    return len(part)

  def _load(self, start: int) -> None:
    if self._next and self._next[0] == start:
      self._block = self._next[1].result()
    else:
      self._block = self._fetch(start)
    self._start, following = start, start + len(self._block)
    self._next = (following, self._pool.submit(self._fetch, following)) if (
        following < self._size) else None

  def _fetch(self, start: int) -> bytes:
    return self._path.read_range(start, min(start + BLOCK_BYTES, self._size), self._generation)

  def close(self) -> None:
    """Ends the thread that reads ahead."""
    self._pool.shutdown(wait=False, cancel_futures=True)
    super().close()


def in_parallel(act: Callable[[Any], Any], items: Iterable[Any],
                parallel: int = PARALLEL) -> list[Any]:
  """Returns act(item) for every item, in order, with several requests at a time.

  Args:
    act: function that makes requests.
    items: its arguments.
    parallel: number of requests at a time.
  """
  items = list(items)
  if len(items) < 2:
    return [act(item) for item in items]
  with concurrent.futures.ThreadPoolExecutor(min(parallel, len(items))) as pool:
    return list(pool.map(act, items))
