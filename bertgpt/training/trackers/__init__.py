"""Services that show the curves of runs. Each is a file, found by its name in `choices.TRACKERS`.

The module of a tracker has

  start  (RunFacts) -> (log, finish): begins or continues a run of the service. `log` takes a step
         and {tag: value}, `finish` the exit code of the program

It imports its package inside `start`, and runs in a process of its own (see `child`), so that
nothing that the package does, waits for or breaks can slow or end the training.
"""

import importlib.util
import json
import pathlib
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from bertgpt import console, files
from bertgpt.config import ConfigDict, choices
from bertgpt.config.stored import to_json
from bertgpt.errors import ConfigError, exit_code
from bertgpt.runs import workdir
from bertgpt.training import sinks

MAX_WAITING = 10_000  # Points that may wait for a tracker; further ones are dropped.
CLOSE_S = 15          # Time for a tracker to send its last points, at the end of the program.


class RunFacts(NamedTuple):
  """The facts about a run that a tracker gets.

  Attributes:
    id: ID of the run, the same for all its attempts.
    name: name of its workdir.
    project, group: `log.project` and `log.group`.
    workdir: folder of the run.
    config: its config, as JSON values.
  """

  id: str
  name: str
  project: str
  group: str
  workdir: str
  config: dict[str, Any]


def check(config: ConfigDict) -> None:
  """Checks that the packages of the trackers are installed.

  Args:
    config: a whole config.
  Raises:
    ConfigError: a package is missing.
  """
  for name in choices.names_of_trackers(config.log.trackers):
    if importlib.util.find_spec(choices.TRACKERS[name]) is None:
      raise ConfigError(f"log.trackers={config.log.trackers}: the package {choices.TRACKERS[name]} "
                        f"is not installed. Install bertgpt[{name}], or leave {name} out")


def start(config: ConfigDict, folder: pathlib.Path) -> list[sinks.Sink]:
  """Starts the trackers of a run, in processes of their own.

  Args:
    config: a whole config.
    folder: workdir of the run, which gets the ID of the run.
  """
  names = choices.names_of_trackers(config.log.trackers)
  if not names:
    return []
  run = RunFacts(find_id(folder), folder.name, config.log.project, config.log.group, str(folder),
                 json.loads(to_json(config)))
  return [Tracker(name, run) for name in names]


def find_id(folder: pathlib.Path) -> str:
  """Returns the ID of a run, which is kept in its workdir. A new one is made if there is none.

  Args:
    folder: workdir of the run.
  """
  path = folder / workdir.ID_FILE
  try:
    if path.exists() and (found := path.read_text().strip()):
      return found
    found = secrets.token_hex(4)
    files.write_atomically(path, f"{found}\n")
  except (OSError, ValueError) as e:
    found = secrets.token_hex(4)
    console.say(f"WARNING: {path}: cannot be written or read ({e}). Trackers show this start as a "
                "run of its own")
  return found


class Tracker(sinks.Sink):
  """A tracker in a process of its own, which gets its points through a queue and a pipe."""

  def __init__(self, name: str, run: RunFacts):
    """Starts the process.

    Args:
      name: key of `choices.TRACKERS`.
      run: the run.
    """
    super().__init__(f"log.trackers={name}")
    self._queue: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
    self._child: subprocess.Popen | None = None
    self._deadline: float | None = None  # When it is killed, once it has been told to end.
    self._is_closed = False
    try:
      # In a session of its own: Ctrl-C is meant for the training.
      self._child = subprocess.Popen(
          [sys.executable, "-m", "bertgpt.training.trackers.child", name], stdin=subprocess.PIPE,
          stdout=subprocess.DEVNULL, start_new_session=True)
    except OSError as e:
      self._fail(e.strerror or e)
      return
    self._put(run._asdict())
    self._thread = threading.Thread(target=self._send, daemon=True)
    self._thread.start()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """See `Sink`. Never waits: if the tracker is slow and the queue is full, points are dropped.
    """
    if self._child is not None:
      self._put({"step": step, "scalars": dict(scalars)})

  def end(self) -> None:
    """Sends the last message, so that the tracker ends. From now on, it has `CLOSE_S` seconds."""
    if self._child is None or self._deadline is not None:
      return
    error = sys.exc_info()[1]  # What the training ends with, while its files are closed.
    self._put({"code": 0 if error is None else exit_code(error)})
    self._put(None)
    self._deadline = time.monotonic() + CLOSE_S

  def close(self) -> None:
    """Waits until the tracker has ended, see `end`; when its time is over, it is killed."""
    self.end()
    if self._child is None or self._is_closed:
      return
    self._is_closed = True
    try:
      self._child.wait(max(0.0, self._deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      self._child.kill()
      self._fail(f"it had not sent its last points after {CLOSE_S} s")

  def _put(self, message: dict[str, Any] | None) -> None:
    line = None if message is None else f"{json.dumps(message)}\n".encode()
    try:
      self._queue.put_nowait(line)
    except queue.Full:
      self._fail("it is slow, or blocked")

  def _send(self) -> None:
    """Runs in a thread: hands the points to the process, however long it takes to read them."""
    pipe = self._child.stdin
    try:
      while (line := self._queue.get()) is not None:
        pipe.write(line)
        pipe.flush()
      pipe.close()
    except OSError:
      code = self._child.wait()
      self._fail(f"its process has ended with exit code {code}")
