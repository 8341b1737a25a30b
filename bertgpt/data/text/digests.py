"""SHA-256 of files that may be large, remembered between starts.

A digest is stored with the state of the file when it was read: absolute path, size, inode, and
the times of the last change of the content (mtime) and of anything (ctime), in nanoseconds. While
these are the same, the file is assumed to be the same and is not read. This relies on the clock of
the file system, and on all writes going through the file system. A change by an editor, `cp`,
`rsync`, `touch` or a write in place is noticed, even if it sets mtime back. A file
that changed within SETTLED_SECONDS before it was read is read again the next time, because the
clock of some file systems is coarse.
"""

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from bertgpt import files
from bertgpt.devices import watchdog
from bertgpt.errors import DataError

BLOCK_BYTES = 2**22
MIN_BYTES = 2**20  # Reading a smaller file is faster than looking it up.
SETTLED_SECONDS = 2.0
CACHE = "digests.json"


def sha256_files(paths: Iterable[str], cache_dir: pathlib.Path) -> dict[str, str]:
  """Returns {path: SHA-256 (hex)}. Reads only the files whose digest is not in the cache.

  Objects of a bucket are not read: their digest is the one that the storage computed.

  A cache that cannot be read or written is ignored.

  Args:
    paths: files to identify.
    cache_dir: folder of the cache file; created if it does not exist.
  Raises:
    OSError: a file of `paths` cannot be read.
  """
  known, new_entries, digests = _load(cache_dir / CACHE), {}, {}
  for path in paths:
    if files.is_remote(path):  # The storage has already hashed it.
      digests[path] = files.make_path(path).stat().digest  # type: ignore[attr-defined]
      continue
    key, before = os.path.abspath(path), _state(path)
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("state") == before:
      digests[path] = entry["sha256"]
      continue
    started = time.time()
    digests[path] = sha256_file(path)
    size, _, *changes = before
    is_settled = started - max(changes) / 1e9 > SETTLED_SECONDS and _state(path) == before
    if size >= MIN_BYTES and is_settled:
      new_entries[key] = {"state": before, "sha256": digests[path]}
  if new_entries:
    _save(cache_dir / CACHE, _load(cache_dir / CACHE) | new_entries)
  return digests


def sha256_file(path: str | os.PathLike) -> str:
  """Returns the SHA-256 (hex) of a file, which is always read.

  Args:
    path: file on a disk or in a bucket.
  Raises:
    OSError: it cannot be read.
  """
  digest = hashlib.sha256()
  with files.open_read(path) as f:
    while block := f.read(BLOCK_BYTES):
      digest.update(block)
      watchdog.renew()  # Hundreds of gigabytes take longer than a step.
  return digest.hexdigest()


def read_states(found: dict[str, Any]) -> dict[str, Any]:
  """Returns path -> a state that changes when the content does, without reading the files.

  Args:
    found: path -> entry of the listing for an object of a bucket; None for a file on a disk.
  Returns:
    As `found`, with None for a file that is gone.
  """
  states: dict[str, Any] = dict.fromkeys(found)
  for path, info in found.items():
    with contextlib.suppress(FileNotFoundError):
      # Not the inode and ctime: permissions and links may change while a part is read.
      states[path] = info.digest if info else _state(path)[0:3:2]
  return states


def _state(path: str) -> list[int]:
  """Returns size, inode, mtime and ctime (ns), which change when the content does."""
  s = os.stat(path)
  return [s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]


def _load(file: pathlib.Path) -> dict:
  try:
    return files.read_json(file, "Delete it")
  except DataError:
    return {}


def _save(file: pathlib.Path, known: dict) -> None:
  """Writes the cache file completely or not at all.

  If two processes write at the same time, the later one wins, and the digests of the other one are
  computed again.
  """
  with contextlib.suppress(OSError):
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, known, indent=None)
