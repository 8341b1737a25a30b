"""SHA-256 of files that may be large, remembered between starts.

A digest is kept beside what the file system said of the file when it was read: absolute path,
size, inode, and the times of the last change of content (mtime) and of anything (ctime), in
nanoseconds. While these are the same, the file is taken to be the same and is not read. So the
file system's clock is trusted, and that nobody writes to the disk behind the file system's
back. An editor, `cp`, `rsync`, `touch` or a write in place, also one that sets mtime back, is
noticed. A file that changed within SETTLED_S before it was read is read again the next time: the
clock of some file systems is coarse.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable

MIN_BYTES = 2**20  # Smaller files are read faster than they are looked up.
SETTLED_S = 2.0
CACHE = "digests.json"


def sha256_files(paths: Iterable[str], cache_dir: pathlib.Path) -> dict[str, str]:
  """Path -> SHA-256 (hex). Reads the files whose digest `cache_dir` does not hold.

  A cache that cannot be read or written is no error.
  """
  known, found, digests = _load(cache_dir / CACHE), {}, {}
  for path in paths:
    key, before = os.path.abspath(path), _state(path)
    entry = known.get(key)
    if isinstance(entry, dict) and entry.get("state") == before:
      digests[path] = entry["sha256"]
      continue
    started = time.time()
    with open(path, "rb") as f:
      digests[path] = hashlib.file_digest(f, "sha256").hexdigest()
    size, _, *changes = before
    is_settled = started - max(changes) / 1e9 > SETTLED_S and _state(path) == before
    if size >= MIN_BYTES and is_settled:
      found[key] = {"state": before, "sha256": digests[path]}
  if found:
    _save(cache_dir / CACHE, _load(cache_dir / CACHE) | found)
  return digests


def _state(path: str) -> list[int]:
  """Size, inode, mtime and ctime (ns): what tells one content of a file from another."""
  s = os.stat(path)
  return [s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]


def _load(file: pathlib.Path) -> dict:
  try:
    known = json.loads(file.read_text("utf-8"))
  except (OSError, ValueError):
    return {}
  return known if isinstance(known, dict) else {}


def _save(file: pathlib.Path, known: dict) -> None:
  """Whole or not at all. Of two writers the later one wins: the other reads once more."""
  scratch = file.with_suffix(f".{os.getpid()}.tmp")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps(known), "utf-8")
    scratch.replace(file)
  except OSError:
    with contextlib.suppress(OSError):
      scratch.unlink(missing_ok=True)
