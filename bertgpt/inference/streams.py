"""Work on many texts: windows of bounded memory, a progress line, and results that resume.

    with resumable(out, identity) as work:
      progress = Progress(count, done=work.state.get("texts", 0))
      for window in windows(itertools.islice(texts, progress.done, None)):
        ...                                          # Write results to work.open("rows").
        work.commit(texts=progress.add(len(window)))
      work.publish("rows")

The windows do not depend on where the work was interrupted, so neither do the results.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from bertgpt import files
from bertgpt.config import recipes
from bertgpt.errors import ConfigError
from bertgpt.hub import export
from bertgpt.runs import fingerprint
from bertgpt.runs.trained import Trained

WINDOW_CHARS = 1 << 20  # Tokenizers need about 200 bytes per token.
PROGRESS_SECONDS = 10.0

_STATE = "state.json"
_LOCK = ".lock"


# --------------------------------------------------------------------- windows


def windows(texts: Iterable[Any], most: int, size: Callable[[Any], int] = len
            ) -> Iterator[list[Any]]:
  """Yields texts in lists of at most `most` texts and, if it is not only one, WINDOW_CHARS.

  A list depends only on the texts from its beginning on.

  Args:
    texts: any texts.
    most: texts per list.
    size: returns the characters of a text.
  """
  window: list[Any] = []
  chars = 0
  for text in texts:
    if window and (len(window) == most or chars + size(text) > WINDOW_CHARS):
      yield window
      window, chars = [], 0
    window.append(text)
    chars += size(text)
  if window:
    yield window


def measure(texts: Iterable[str]) -> tuple[int, str]:
  """Returns the number of texts, and a hash of them all, in hex.

  Args:
    texts: any texts; they are read once, so that errors in them are found before the work begins.
  """
  count, digest = 0, hashlib.blake2b(digest_size=16)
  printed = time.monotonic()
  for text in texts:
    if count % 4096 == 0 and time.monotonic() - printed >= PROGRESS_SECONDS:
      printed = time.monotonic()
      print(f"checking the input: {count:,} texts", file=sys.stderr, flush=True)
    data = text.encode()
    digest.update(b"%d:" % len(data))
    digest.update(data)
    count += 1
  return count, digest.hexdigest()


class Progress:
  """Prints how far the work is, on stderr, every PROGRESS_SECONDS.

  Attributes:
    done: texts done.

  Args:
    total: texts in total.
    unit: what the texts are called.
    done: texts that were done before.
  """

  def __init__(self, total: int, unit: str = "texts", done: int = 0):
    self.done = done
    self._total, self._unit = total, unit
    self._first, self._start = done, time.monotonic()
    self._printed = self._start
    if done:
      print(f"note: resuming after {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

  def add(self, count: int) -> int:
    """Counts texts, prints a line if it is time for one, and returns the texts done.

    Args:
      count: texts done since the last call.
    """
    self.done += count
    now = time.monotonic()
    if now - self._printed >= PROGRESS_SECONDS and self.done < self._total:
      self._printed = now
      rate = (self.done - self._first) / (now - self._start)
      print(f"{self.done:,} of {self._total:,} {self._unit}, {rate:,.0f} per second, "
            f"{describe_seconds((self._total - self.done) / rate)} left",
            file=sys.stderr, flush=True)
    return self.done


def describe_seconds(seconds: float) -> str:
  """Returns a duration in words, as '45 s', '12 min' or '3.5 h'.

  Args:
    seconds: the duration.
  """
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------- resumable


def identify(trained: Trained) -> dict[str, str]:
  """Returns names and values that are the same only for a model that computes the same.

  Args:
    trained: the model.
  """
  parts = {"weights": json.dumps(fingerprint.fingerprint(trained.params), sort_keys=True),
           "model": recipes.to_json(trained.config.model)}
  return {"tokenizer": trained.tokenizer.fingerprint(), "dtype": trained.config.model.dtype} | {
      name: hashlib.sha256(part.encode()).hexdigest() for name, part in parts.items()}


class Unfinished:
  """The results of interrupted work, in a folder next to the file that they will become.

  What was written after the last `commit` is dropped when the folder is opened again.

  Attributes:
    state: entries of the last `commit`; {} if there was none.

  Args:
    folder: folder of the results.
    out: file that they will become.
    identity: everything that the results depend on.
  """

  def __init__(self, folder: pathlib.Path, out: pathlib.Path, identity: dict[str, Any]):
    self._folder, self._out, self._identity = folder, out, identity
    self._files: dict[str, BinaryIO] = {}
    self._sizes: dict[str, int] = {}
    self.state: dict[str, Any] = {}
    if (folder / _STATE).exists():
      stored = files.read_json(folder / _STATE, f"Remove {folder}")
      # The key in the name is only a part of a hash.
      if stored["identity"] == json.loads(json.dumps(identity)):
        self.state, self._sizes = stored["state"], stored["sizes"]

  def open(self, name: str) -> BinaryIO:
    """Opens a file for reading and writing, at the end of what was committed.

    Args:
      name: name of the file; it is made if it is missing.
    """
    if name not in self._files:
      path = self._folder / name
      path.touch()
      self._files[name] = file = path.open("r+b")
      file.truncate(self._sizes.get(name, 0))
      file.seek(0, os.SEEK_END)
    return self._files[name]

  def commit(self, **state: Any) -> None:
    """Makes what was written so far survive a crash.

    Args:
      **state: JSON values, with which the work resumes.
    """
    for name, file in self._files.items():
      file.flush()
      os.fsync(file.fileno())
      self._sizes[name] = os.fstat(file.fileno()).st_size
    files.write_json(self._folder / _STATE, {"identity": self._identity, "state": state,
                                             "sizes": self._sizes})
    self.state = state

  def publish(self, name: str) -> None:
    """Gives a file its final path, and removes the folder.

    Args:
      name: name of the file.
    """
    self.open(name).flush()
    os.fsync(self.open(name).fileno())
    self.close()
    os.replace(self._folder / name, self._out)
    files.sync(self._out.parent)
    shutil.rmtree(self._folder, ignore_errors=True)

  def close(self) -> None:
    """Closes the files."""
    for file in self._files.values():
      file.close()
    self._files.clear()


@contextlib.contextmanager
def resumable(out: pathlib.Path, identity: dict[str, Any]) -> Iterator[Unfinished]:
  """Yields the folder of unfinished results for a file; it stays if the work is interrupted.

  Results that other inputs, flags or weights have left for the same file are removed.

  Args:
    out: file that the results will become, in an existing folder.
    identity: everything that the results depend on, as JSON values.
  Raises:
    ConfigError: another process is writing the file.
  """
  key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
  folder = files.unfinished_path(out, key)
  remove_others(out, folder)
  folder.mkdir(exist_ok=True)
  with _lock(folder, out):
    work = Unfinished(folder, out, identity)
    try:
      yield work
    finally:
      work.close()
      if folder.exists() and not work.state:
        shutil.rmtree(folder, ignore_errors=True)


def check_out(out: pathlib.Path, endings: Sequence[str]) -> None:
  """Checks that a file can be made.

  Args:
    out: path of the file.
    endings: what its name may end in.
  Raises:
    ConfigError: the file exists, its folder does not, or its name ends in something else.
  """
  if os.path.lexists(out):
    remove_others(out)  # Of a process that was killed after it had published the file.
  export.refuse_existing(out, "--out")
  if out.suffix not in endings:
    raise ConfigError(f"--out {out}: name a file that ends in {' or '.join(endings)}")
  if not out.parent.is_dir():
    raise ConfigError(f"--out {out}: there is no folder {out.parent}. Make it first")


def remove_others(out: pathlib.Path, keep: pathlib.Path | None = None) -> None:
  """Removes unfinished results for a file, unless another process is writing them.

  Args:
    out: the file.
    keep: folder that stays; None: none.
  Raises:
    ConfigError: another process is writing the file.
  """
  for path in files.find_unfinished(out):
    if path == keep:
      continue
    if path.is_dir():
      with _lock(path, out):
        if (path / _STATE).exists():
          print(f"note: {path.name} was begun with other texts, flags or weights, and is removed",
                file=sys.stderr)
        shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)


def _lock(folder: pathlib.Path, out: pathlib.Path) -> contextlib.AbstractContextManager:
  def refuse(holder: str) -> None:
    raise ConfigError(f"--out {out}: is being written by {holder}. Wait for it, or name another "
                      "file")

  return files.lock(folder / _LOCK, refuse)
