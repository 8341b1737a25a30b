"""A record of what training time is spent on: events.jsonl in the workdir. Without JAX.

    {"event": "start", "time": 1.7e9, "step": 0, "seconds": {"start": 4.2, "restore": 0.1}, ...}
    {"event": "work", "time": 1.7e9, "step": 120, "seconds": {"compile": 9.1, "steps": 6.0}}
    {"event": "end", "time": 1.7e9, "step": 300, "seconds": {...}, "code": 75, "message": "..."}

`time` is the time of the line in seconds since 1970, `step` the last step that was begun, and
`seconds` the time since the previous line, by kind (see KINDS). An attempt without an end was
killed or lost.

The functions of this module do nothing unless the process is recording. Nothing here can end the
training: a line that cannot be written is lost.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from bertgpt import console, files
from bertgpt.devices import signals
from bertgpt.errors import Preempted, exit_code, one_line

FILE = "events.jsonl"
KINDS = {
    "steps": "training steps, counted once",
    "repeated": "steps done again: they had not been saved, or were rolled back",
    "input": "waiting for the next batch",
    "compile": "steps that compiled their program",
    "evaluation": "held-out evaluation, with its compilation",
    "saving": "checkpoints, as far as the training waited for them",
    "restore": "reading the checkpoint, or initial parameters",
    "start": "imports, devices, checks, preparation of the corpus",
    "report": "gathering the parameters, and the report",
}
FLUSH_S = 15  # A killed attempt loses the record of at most this many seconds.

T = TypeVar("T")
_END: Any = object()


class Recorder:
  """Record of one attempt. Every moment counts as one kind: the innermost of those that are open.

  Attributes:
    step: last step that was begun.
  """

  def __init__(self, since: float | None = None):
    """Begins to record.

    Args:
      since: begin of the attempt, in seconds of `time.monotonic`; None: now.
    """
    self.step = 0
    self._kinds = ["start"]
    self._seconds: dict[str, float] = collections.defaultdict(float)
    self._clock = self._flushed = time.monotonic() if since is None else since
    self._files: dict[pathlib.Path, io.FileIO | None] = {}  # None: not opened yet.
    # File -> steps that an earlier attempt had done, and the time of those that are done again.
    self._done_before: dict[pathlib.Path, int] = {}
    self._repeated: dict[pathlib.Path, float] = collections.defaultdict(float)
    self._lock = threading.Lock()

  def open(self, workdirs: Sequence[pathlib.Path], first_step: int) -> None:
    """Begins to write, after the checks of the run have passed.

    Args:
      workdirs: folder of the run, or of every run that is trained at the same time.
      first_step: steps done before.
    """
    self._files, self.step = {workdir / FILE: None for workdir in workdirs}, first_step
    self._done_before = {
        workdir / FILE: max((event.get("step", 0) for event in read(workdir)), default=0)
        for workdir in workdirs}
    self._write("start", host=socket.gethostname(), process=os.getpid())

  def begin_step(self, step: int, *, compiles: bool) -> None:
    """Counts the time from here on as that of a step, except for time inside `during`.

    Args:
      step: step, counted from 1.
      compiles: whether its program is compiled first.
    """
    self._spend()
    self.step = step
    self._kinds[0] = "compile" if compiles else "steps"
    if self._files and self._clock - self._flushed >= FLUSH_S:
      self._write("work")

  @contextlib.contextmanager
  def during(self, kind: str) -> Iterator[None]:
    """Counts the time inside the context as one of KINDS."""
    self._spend()
    self._kinds.append(kind)
    try:
      yield
    finally:
      self._spend()
      self._kinds.pop()

  def flush(self) -> None:
    """Writes the time that has passed since the last line, before the file is read."""
    if self._files:
      self._write("work", is_read=True)

  def end(self, code: int, message: str = "") -> None:
    """Writes the last event; later ones are not written.

    Args:
      code: exit code of the program.
      message: reason of the end; '': the run is done.
    """
    if self._files:
      details: dict[str, Any] = {"message": message} if message else {}
      self._write("end", code=code, **details)

  def end_runs(self, workdirs: Sequence[pathlib.Path], error: BaseException | None = None) -> None:
    """Writes the last event of runs that have ended, whatever happens to the other runs.

    Args:
      workdirs: their folders, which `open` was given.
      error: why they have ended; None: they are done.
    """
    self.flush()  # The time counts for all runs.
    details: dict[str, Any] = {"message": one_line(error)} if error else {}
    self._write("end", only=[workdir / FILE for workdir in workdirs],
                code=exit_code(error) if error else 0, **details)

  def _spend(self) -> float:
    """Counts the time up to now, and returns the present in seconds since 1970."""
    now, date = time.monotonic(), time.time()
    self._seconds[self._kinds[-1]] += now - self._clock
    if self._kinds[-1] == "steps":
      for path, done in self._done_before.items():
        self._repeated[path] += (now - self._clock) * (self.step <= done)
    self._clock = now
    return date

  def _write(self, event: str, *, is_read: bool = False,
             only: Sequence[pathlib.Path] | None = None, **details: Any) -> None:
    """Writes an event to all files, or to some; 'end' is the last one of a file."""
    with self._lock:  # The thread that watches the other processes may write the end.
      date = self._spend()
      spent, repeated = dict(self._seconds), dict(self._repeated)
      self._seconds.clear()
      self._repeated.clear()
      self._flushed = self._clock
      files_of_event = {path: file for path, file in self._files.items()
                        if only is None or path in only}
      for path, file in files_of_event.items():
        again = repeated.get(path, 0.0)
        by_kind = {**spent, "steps": spent.get("steps", 0.0) - again, "repeated": again}
        seconds = {kind: round(s, 3) for kind, s in by_kind.items() if s >= 0.0005}
        line = json.dumps({"event": event, "time": round(date, 3), "step": self.step,
                           "seconds": seconds, **details})
        try:
          self._files[path] = file = file or files.open_growing(path)
          files.write_all(file.fileno(), f"{line}\n".encode())
          if event == "end":
            del self._files[path]
            file.close()
          elif event == "start" or is_read:  # The other lines reach a bucket with the checkpoints.
            files.upload(file)
        except OSError as e:
          console.say(f"WARNING: {path}: cannot be written ({e.strerror or e}). The training "
                      "continues without its events")
          self._files.pop(path, None)


_recorder: Recorder | None = None
_program_start: float | None = None


def note_program_start() -> None:
  """Makes the next recording begin with the start of this process, so that imports count."""
  global _program_start
  with contextlib.suppress(OSError, ValueError, IndexError):  # There is no /proc.
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    age = uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    _program_start = time.monotonic() - max(age, 0.0)


@contextlib.contextmanager
def recording() -> Iterator[None]:
  """Records the training inside the context, and at its end the exit code.

  Inside another recording, it does nothing: the outer one ends later.
  """
  global _recorder, _program_start
  if _recorder is not None:
    yield
    return
  _recorder, _program_start = Recorder(_program_start), None
  try:
    yield
    _recorder.end(0)
  except BaseException as e:
    is_preempted = isinstance(e, signals.Terminated)  # The same rule as in `cli.code_of_interrupt`.
    _recorder.end(Preempted.exit_code if is_preempted else exit_code(e), one_line(e))
    raise
  finally:
    _recorder = None


def open_in(first_step: int, *workdirs: pathlib.Path) -> None:
  """Begins to write to the workdirs of runs; see `Recorder.open`."""
  if _recorder is not None:
    _recorder.open(workdirs, first_step)


def begin_step(step: int, *, compiles: bool) -> None:
  """Counts the time from here on as that of a step; see `Recorder.begin_step`."""
  if _recorder is not None:
    _recorder.begin_step(step, compiles=compiles)


def end_runs(workdirs: Sequence[pathlib.Path], error: BaseException | None = None) -> None:
  """Writes the last event of runs that have ended; see `Recorder.end_runs`."""
  if _recorder is not None:
    _recorder.end_runs(workdirs, error)


@contextlib.contextmanager
def during(kind: str) -> Iterator[None]:
  """Counts the time inside the context, or inside the decorated function, as one of KINDS."""
  with _recorder.during(kind) if _recorder is not None else contextlib.nullcontext():
    yield


def timed(kind: str, items: Iterable[T]) -> Iterator[T]:
  """Yields the items; the time until each of them is available counts as one of KINDS."""
  return iterate_inside(lambda: during(kind), items)


def iterate_inside(open_context: Callable[[], contextlib.AbstractContextManager],
                   items: Iterable[T]) -> Iterator[T]:
  """Yields the items, and waits for each of them inside a context.

  Args:
    open_context: returns a new context.
    items: the items.
  """
  iterator = iter(items)
  while True:
    with open_context():
      item = next(iterator, _END)
    if item is _END:
      return
    yield item


def flush() -> None:
  """Writes the time that has passed since the last line, before the events are read."""
  if _recorder is not None:
    _recorder.flush()


def end(code: int, message: str) -> None:
  """Writes the last event, before the process ends without Python's cleanup."""
  if _recorder is not None:
    _recorder.end(code, message)


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the events of a run, in order. Damaged lines are left out.

  Args:
    workdir: folder of the run.
  Returns:
    [] if there is no file of events, or it cannot be read.
  """
  try:
    return [event for _, event in files.read_json_lines(workdir / FILE) if _is_event(event)]
  except OSError:
    return []


def _is_event(value: Any) -> bool:
  """Returns whether a JSON value has the entries of an event, with the types that are written."""
  if not isinstance(value, dict) or not isinstance(seconds := value.get("seconds"), dict):
    return False
  texts = value.get("event"), value.get("message", "")
  numbers = value.get("step"), value.get("code", None if value.get("event") == "end" else 0)
  times = value.get("time"), *seconds.values()
  return (all(isinstance(text, str) for text in texts)
          and all(type(number) is int for number in numbers)
          and all(type(x) in (int, float) and abs(x) < 1e15 for x in times))
