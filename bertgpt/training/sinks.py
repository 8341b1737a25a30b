"""Places that the scalars of a run are written to. None of them can stop or end the training.

If a place cannot be written to, its sink says so once, and the training continues without the lost
points. Files are written in the thread of the training loop, without a queue that could fill up.
"""

import io
import json
import os
import pathlib
import secrets
import time
from collections.abc import Mapping

from bertgpt import console, files
from bertgpt.training import event_records


class Sink:
  """A place that gets every point of the curves of a run."""

  def __init__(self, name: str):
    """Keeps the name of the place, for the message about lost points."""
    self._name, self._has_failed = name, False

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one point of every curve.

    Args:
      step: steps done.
      scalars: tag -> value.
    """
    raise NotImplementedError

  def end(self) -> None:
    """Begins what `close` waits for, if that takes long. No point is written afterwards."""

  def close(self) -> None:
    """Waits until the place has all points, and releases it."""
    raise NotImplementedError

  def _fail(self, reason: object) -> None:
    if not self._has_failed:
      console.say(f"WARNING: {self._name}: cannot be written ({reason}). The training continues, "
                  "but points of its curves are missing there")
    self._has_failed = True


class FileSink(Sink):
  """A file that is opened when its first record is written; records are appended."""

  def __init__(self, path: pathlib.Path):
    super().__init__(str(path))
    self._path = path
    self._file: io.FileIO | None = None

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """See `Sink`."""
    try:
      if self._file is None:
        self._file = self._open()
      files.write_all(self._file.fileno(), self._encode(step, scalars))
    except OSError as e:
      self._fail(e.strerror or e)

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      try:
        self._file.close()
      except OSError as e:
        self._fail(e.strerror or e)

  def _open(self):
    raise NotImplementedError

  def _encode(self, step: int, scalars: Mapping[str, float]) -> bytes:
    raise NotImplementedError


class JsonLines(FileSink):
  """metrics.jsonl: a line per logged step. After an error, it resumes when it can write again."""

  def _open(self):
    return files.open_growing(self._path)

  def _encode(self, step: int, scalars: Mapping[str, float]) -> bytes:
    line = json.dumps({"step": step, **scalars}) + "\n"
    # A write that failed may have left a part of its line.
    return (b"\n" if self._has_failed else b"") + line.encode()


class EventFile(FileSink):
  """A file of TensorBoard events."""

  def __init__(self, folder: pathlib.Path, purge_step: int):
    """Prepares a new file of events.

    Args:
      folder: folder of the events, which is made if it is missing.
      purge_step: TensorBoard drops the points of earlier files from this step on.
    """
    # The names sort by time, and two starts in one second have different files.
    name = f"events.out.tfevents.{time.time_ns() // 10**9}.{os.uname().nodename}"
    super().__init__(folder / f"{name}.{secrets.token_hex(4)}")
    self._purge_step = purge_step

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """See `Sink`. After an error, nothing more is written: a damaged record hides all others."""
    if not self._has_failed:
      super().write(step, scalars)

  def _open(self):
    self._path.parent.mkdir(parents=True, exist_ok=True)
    file = files.open_growing(self._path, is_new=True)
    file.write(event_records.make_start(self._purge_step))
    return file

  def _encode(self, step: int, scalars: Mapping[str, float]) -> bytes:
    return event_records.make_point(step, scalars)
