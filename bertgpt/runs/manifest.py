"""The manifest of a checkpoint: names, sizes and SHA-256 of its files, and how they are checked."""

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bertgpt import files
from bertgpt.data.text.digests import sha256_file
from bertgpt.errors import StorageError

MANIFEST = files.MANIFEST
ITEMS = ("params", "rest")  # Folders of a step: parameters, everything else.
MERGED = "manifest.ocdbt"  # File of an item that TensorStore opens; Orbax writes it last.


class Damaged(Exception):
  """A step that does not match its manifest. `runs.checkpoint` catches this error."""


def list_files(path: pathlib.Path) -> dict[str, int]:
  """Returns the sizes of a step's files in bytes, by path relative to it, without the manifest.

  Args:
    path: folder of the step.
  Raises:
    OSError: it cannot be listed.
  """
  if files.is_remote(path):
    found = path.list_tree()  # type: ignore[attr-defined]
    return {name: info.st_size for name, info in sorted(found.items()) if name != MANIFEST}
  paths = (p for p in sorted(path.rglob("*")) if p.is_symlink() or not p.is_dir())
  # A link, as in the cache of huggingface_hub, has the size of its file, if that is there.
  return {name: (p.stat() if p.exists() else p.lstat()).st_size for p in paths
          if (name := str(p.relative_to(path))) != MANIFEST}


def hash_files(path: pathlib.Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Yields (name, SHA-256 in hex) of a step's files in order; up to 8 are read at a time.

  Args:
    path: folder of the step.
    names: paths of the files relative to it.
  Raises:
    OSError: a file cannot be read.
  """
  hash_file = lambda name: (name, sha256_file(path / name))
  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    yield from pool.map(hash_file, names)


def _complete(path: pathlib.Path, names: Iterable[str], known: Mapping[str, str]
              ) -> dict[str, str]:
  """Returns the SHA-256 of a step's files by name; the known ones are not computed again."""
  return {**known, **dict(hash_files(path, [name for name in names if name not in known]))}


def format_type(leaf: Any) -> str:
  """Returns shape and dtype of an array as text, such as 'float32[2,3]'."""
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def parse_type(text: str) -> tuple[tuple[int, ...], str]:
  """Returns (shape, dtype) of the array that `format_type` describes."""
  dtype, _, sizes = text.removesuffix("]").partition("[")
  return tuple(int(size) for size in sizes.split(",") if size), dtype


def encode(content: Mapping[str, Any]) -> str:
  """Returns the manifest as text, with its own SHA-256.

  Args:
    content: content of the manifest, as JSON values.
  """
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps({"content": content, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def write_manifest(path: pathlib.Path, content: dict[str, Any], hashes: Mapping[str, str],
                   before: Callable[[], None] = lambda: None) -> None:
  """Writes the manifest of a step, with the names, sizes and hashes of its files.

  Args:
    path: folder of the step, with all its files.
    content: other content of the manifest, as JSON values.
    hashes: SHA-256 of its files by name; those of the others are computed here.
    before: called when the files are read, just before the manifest is written.
  Raises:
    FileNotFoundError: a file that another process has hashed is not there.
  """
  sizes = list_files(path)
  if lost := sorted(hashes.keys() - sizes.keys()):
    raise FileNotFoundError(f"{lost[0]} is not there. Do all processes see the same files?")
  hashes = _complete(path, sizes, hashes)
  before()
  files.write_atomically(path / MANIFEST, encode(
      content | {"files": {name: [sizes[name], hashes[name]] for name in sizes}}))


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest of a step after comparing the names and sizes of its files with it.

  Args:
    path: folder of the step.
  Raises:
    Damaged: they differ, or the manifest is missing or damaged.
  """
  try:
    text = (path / MANIFEST).read_text()
    content = files.parse_json(text)["content"]
    if text != encode(content) or str(content["step"]) != path.name:
      raise ValueError
    listed, found = content["files"], list_files(path)
  except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
    raise Damaged(f"{MANIFEST} is missing or has changed") from None
  for name in sorted(listed.keys() | found.keys()):
    size = listed[name][0] if name in listed else "no"
    if found.get(name, "no") != size:
      raise Damaged(f"{name} has {found.get(name, 'no')} bytes instead of {size}")
  return content


def check_files(path: pathlib.Path, items: Iterable[str],
                hashes: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
  """Returns the manifest of a step after comparing its files, and the contents of items, with it.

  Args:
    path: folder of the step.
    items: Orbax items; the files of other items are not read.
    hashes: SHA-256 of files by name, which are not read either.
  Raises:
    Damaged: a file differs; the message names it.
    StorageError: a file cannot be read for a reason other than damage.
  """
  skipped = tuple(f"{item}/" for item in ITEMS if item not in items)
  try:
    manifest = read_manifest(path)
    names = [name for name in manifest["files"] if not name.startswith(skipped)]
    hashes = _complete(path, names, hashes)
  except OSError as e:
    files.raise_if_unanswered(e)
    # A bucket, or another client of NFS, has deleted the step meanwhile.
    is_deleted = e.errno == errno.ESTALE and not (path / MANIFEST).is_file()
    if e.errno in (errno.EIO, errno.ENOENT) or is_deleted:
      raise Damaged(f"{e.filename} cannot be read ({e.strerror})") from e
    raise StorageError(f"{e.filename}: cannot be read ({e.strerror})") from e
  for name in names:
    if hashes[name] != manifest["files"][name][1]:
      raise Damaged(f"{name} has changed since it was written")
  return manifest
