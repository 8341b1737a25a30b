"""Work on many texts: chunks of bounded memory, and results that resume.

    with open_unfinished(out, identity) as work:
      progress = Progress(count, done=work.state.get("texts", 0))
      for chunk in chunks(itertools.islice(texts, progress.done, None)):
        ...                                          # Write results to work.open("rows").
        work.commit(texts=progress.add(len(chunk)))
      work.publish("rows")

The chunks do not depend on where the work was interrupted, so neither do the results.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

import jax

from bertgpt import console, files
from bertgpt.config.stored import to_json
from bertgpt.errors import ConfigError, DataError
from bertgpt.progress import PROGRESS_SECONDS
from bertgpt.runs import fingerprint
from bertgpt.runs.trained import Trained

CHUNK_CHARS = 1 << 20  # Tokenizers need about 200 bytes per token.

_RESULTS = "results"  # Part of the folder's name; other temporary paths have 8 hex digits there.
_STATE = "state.json"
_LOCK = ".lock"
_PUBLISHED = "published"

T = TypeVar("T")


# ---------------------------------------------------------------------- chunks


def chunks(texts: Iterable[Any], most: int, size: Callable[[Any], int] = len
           ) -> Iterator[list[Any]]:
  """Yields lists of at most `most` texts, and of at most CHUNK_CHARS unless it is a single text.

  A list depends only on the texts from its beginning on.

  Args:
    texts: any texts.
    most: texts per list.
    size: returns the characters of a text.
  """
  chunk: list[Any] = []
  chars = 0
  for text in texts:
    if chunk and (len(chunk) == most or chars + size(text) > CHUNK_CHARS):
      yield chunk
      chunk, chars = [], 0
    chunk.append(text)
    chars += size(text)
  if chunk:
    yield chunk


class Measured(NamedTuple):
  """A summary that identifies texts.

  Attributes:
    num_texts: number of texts.
    digest: hash of them all, in hex.
  """

  num_texts: int
  digest: str


class _Hash:
  """A hash of texts and of the borders between them."""

  def __init__(self):
    self._digest = hashlib.blake2b(digest_size=16)
    self.count = 0

  def add(self, text: str) -> None:
    data = text.encode()
    self._digest.update(b"%d:" % len(data))
    self._digest.update(data)
    self.count += 1

  def result(self) -> Measured:
    return Measured(self.count, self._digest.hexdigest())


def measure(texts: Iterable[str]) -> Measured:
  """Returns the number of texts and their hash.

  Args:
    texts: any texts; they are read once, so that errors in them are found before the work begins.
  """
  found, printed = _Hash(), time.monotonic()
  for text in texts:
    if found.count % 4096 == 0 and time.monotonic() - printed >= PROGRESS_SECONDS:
      printed = time.monotonic()
      console.say(f"checking the input: {found.count:,} texts")
    found.add(text)
  return found.result()


class ChangedError(DataError):
  """Texts that changed while they were read; results computed from them are invalid."""


def reread(texts: Iterable[T], measured: Measured, place: str,
           to_text: Callable[[T], str] = str) -> Iterator[T]:
  """Yields texts that were measured before, and checks that they are the same.

  `chunks` asks for the text after a chunk before it yields the chunk, so a chunk that ends at
  the wrong text is never computed.

  Args:
    texts: the texts, all of them.
    measured: result of `measure` for the same texts.
    place: flag and file, for the error message.
    to_text: item -> the text that was measured.
  Raises:
    ChangedError: there are more texts, fewer texts or different ones.
  """
  changed = ChangedError(f"{place}: changed while it was read. Run the same command again when "
                         "the file is complete")
  found = _Hash()
  for text in texts:
    if found.count == measured.num_texts:
      raise changed
    found.add(to_text(text))
    yield text
  if found.result() != measured:
    raise changed


# ----------------------------------------------------------- unfinished results


def identify(trained: Trained) -> dict[str, str]:
  """Returns names and values that are equal only for models that compute the same.

  Args:
    trained: the model.
  """
  parts = {"weights": json.dumps(fingerprint.fingerprint(trained.params), sort_keys=True),
           "model": to_json(trained.config.model)}
  try:
    version = importlib.metadata.version("bertgpt")
  except importlib.metadata.PackageNotFoundError:  # It runs from a copy of its source.
    version = "unknown"
  device = jax.devices()[0]
  return {"tokenizer": trained.tokenizer.fingerprint(), "dtype": trained.config.model.dtype,
          "version": version, "jax": jax.__version__,
          "platform": f"{device.device_kind} on {platform.machine()}"} | {
      name: hashlib.sha256(part.encode()).hexdigest() for name, part in parts.items()}


class Unfinished:
  """The results of interrupted work, in a folder next to the file that they will become.

  What was written after the last `commit` is dropped when the folder is opened again.

  Attributes:
    state: entries of the last `commit`; {} if there was none.

  Args:
    folder: folder of the results; this process holds its lock.
    out: file that they will become.
    identity: everything that the results depend on.
  Raises:
    ConfigError: the folder holds results that depend on something else.
    DataError: the folder is damaged.
  """

  def __init__(self, folder: pathlib.Path, out: pathlib.Path, identity: dict[str, Any]):
    self._folder, self._out = folder, out
    self._identity = json.loads(json.dumps(identity))
    self._files: dict[str, BinaryIO] = {}
    self._sizes: dict[str, int] = {}
    self.state: dict[str, Any] = {}
    stored = _read_state(folder)
    if stored and not stored.get(_PUBLISHED):
      if others := _describe_others(stored["identity"], self._identity):
        raise ConfigError(f"--out {out}: {folder.name} holds unfinished results of {others}. Go "
                          f"back to that to finish them, or remove {folder} to begin again")
      self.state, self._sizes = stored["state"], stored["sizes"]

  def open(self, name: str) -> BinaryIO:
    """Opens a file for reading and writing, at the end of what was committed.

    Args:
      name: name of the file; it is made if it is missing.
    Raises:
      DataError: it is shorter than what was committed.
    """
    if name not in self._files:
      path, size = self._folder / name, self._sizes.get(name, 0)
      path.touch()
      if path.stat().st_size < size:
        raise DataError(f"{path}: is shorter than was saved. Remove {self._folder}")
      self._files[name] = file = path.open("r+b")
      file.truncate(size)
      file.seek(0, os.SEEK_END)
    return self._files[name]

  def commit(self, **state: Any) -> None:
    """Makes everything written so far survive a crash.

    Args:
      **state: JSON values from which the work resumes.
    """
    for name, file in self._files.items():
      file.flush()
      os.fsync(file.fileno())
      self._sizes[name] = os.fstat(file.fileno()).st_size
    self._write_state(state)
    self.state = state

  def publish(self, name: str) -> None:
    """Gives a file its final path, and removes the folder.

    Args:
      name: name of the file.
    Raises:
      ConfigError: meanwhile, a file has appeared at the final path. The results stay in the folder.
    """
    self.open(name).flush()
    os.fsync(self.open(name).fileno())
    self.close()
    try:
      files.rename_new(self._folder / name, self._out)
    except FileExistsError:
      raise ConfigError(f"--out {self._out}: was made by another program meanwhile. Move it away, "
                        "and run the same command again") from None
    files.sync(self._out.parent)
    self._write_state(self.state, **{_PUBLISHED: True})
    shutil.rmtree(self._folder, ignore_errors=True)

  def discard(self) -> None:
    """Forgets what was committed; the folder is removed at the end of `open_unfinished`."""
    self.state = {}

  def close(self) -> None:
    """Closes the files."""
    for file in self._files.values():
      file.close()
    self._files.clear()

  def _write_state(self, state: dict[str, Any], **more: bool) -> None:
    files.write_json(self._folder / _STATE, {"identity": self._identity, "state": state,
                                             "sizes": self._sizes} | more)


@contextlib.contextmanager
def discarding(work: Unfinished | None) -> Iterator[None]:
  """Forgets results if texts turn out to be unusable; results of other texts could not use them.

  Args:
    work: unfinished results; None: there are none.
  """
  try:
    yield
  except ConfigError:
    if work is not None:
      work.discard()
    raise


@contextlib.contextmanager
def open_unfinished(out: pathlib.Path, identity: dict[str, Any]) -> Iterator[Unfinished]:
  """Yields the folder of unfinished results for a file; it stays if the work is interrupted.

  Args:
    out: file that the results will become, in an existing folder.
    identity: everything that the results depend on, as JSON values with names that mean something
      to the user.
  Raises:
    ConfigError: the file exists, another process is writing it, or its unfinished results depend
      on something else.
    DataError: the unfinished results are damaged.
  """
  folder = files.unfinished_path(out, _RESULTS)
  folder.mkdir(exist_ok=True)
  with _lock(folder, out), files.naming(folder):
    is_kept = bool(_read_state(folder))
    work = None
    try:
      files.refuse_existing(out, "--out")  # The previous holder of the lock may have made it.
      work = Unfinished(folder, out, identity)
      yield work
    except ChangedError:
      if work is not None:
        work.discard()
      raise
    finally:
      if work is not None:
        work.close()
        is_kept = bool(work.state)
      if not is_kept:
        shutil.rmtree(folder, ignore_errors=True)


def check_out(out: pathlib.Path, endings: Sequence[str]) -> None:
  """Checks that a file can be made.

  Args:
    out: path of the file.
    endings: allowed endings of its name.
  Raises:
    ConfigError: the file exists, its folder does not, or its name has another ending.
  """
  folder = files.unfinished_path(out, _RESULTS)
  try:
    files.refuse_existing(out, "--out")
  except ConfigError:
    if (folder / _STATE).is_file():  # Left by a process that was killed after making the file.
      with contextlib.suppress(ConfigError, DataError), _lock(folder, out):
        if _read_state(folder).get(_PUBLISHED):
          shutil.rmtree(folder, ignore_errors=True)
    raise
  if out.suffix not in endings:
    raise ConfigError(f"--out {out}: name a file that ends in {' or '.join(endings)}")
  files.require_parent(out, "--out")


def _read_state(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the content of the state file; {}: there is none."""
  path, remedy = folder / _STATE, f"Remove {folder}"
  if not path.exists():
    return {}
  stored: dict[str, Any] = files.read_json(path, remedy)
  if not all(isinstance(stored.get(name), dict) for name in ("identity", "state", "sizes")):
    raise DataError(f"{path}: is not the state of unfinished results. {remedy}")
  return stored


def _describe_others(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
  """Returns the entries of an identity that differ from the wanted ones, as text."""
  found = []
  for name in stored | wanted:
    value = stored.get(name)
    if isinstance(value, dict) and isinstance(wanted.get(name), dict):
      found.append(_describe_others(value, wanted[name]))
    elif value != wanted.get(name):
      is_short = isinstance(value, (int, float, str)) and len(str(value)) < 32  # Not a hash.
      found.append(f"{name} {value}" if is_short else f"other {name}")
  return ", ".join(filter(None, found))


def _lock(folder: pathlib.Path, out: pathlib.Path) -> contextlib.AbstractContextManager:
  def refuse(holder: files.Holder) -> None:
    raise ConfigError(f"--out {out}: is being written by {holder}. Wait for it, or name another "
                      "file")

  return files.lock(folder / _LOCK, refuse)
