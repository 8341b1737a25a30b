"""A time limit for everything that may hang: a peer, a device, a disk. Without JAX.

    arm(minutes)   from here on, the process ends with the stacks of all threads after this time
    renew()        there was progress: the time starts again, if it is running
    disarm()       no limit

The limit ends the process with exit code 1 and the word "Timeout", even if no Python code can run.
In that case it takes twice the time, and the last line, which says what to do, is missing.

Time in which the process is suspended does not count: Ctrl-Z, a paused container. If that is longer
than twice the limit, the process may be ended all the same, because it looks as if no Python code
could run.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bertgpt import console
from bertgpt.devices import children, timeline

START_MINUTES = 60  # For imports and for the other processes, before the config's limits apply.
SLICE_S = 1.0  # If a wait takes much longer, the process was suspended in the meantime.
GRACE_S = 5  # Time for Python code to print the stacks, before faulthandler does it without Python.
_minutes = 0.0
_deadline = math.inf  # A value of time.monotonic().
_changed = threading.Condition()
_thread: threading.Thread | None = None
_tell: Callable[[str], object] | None = None


@contextlib.contextmanager
def telling(tell: Callable[[str], object]) -> Iterator[None]:
  """Calls a function before the process is ended inside the context, to tell its peers.

  Args:
    tell: tell(reason) is called from another thread, and must return within about a minute.
  """
  global _tell
  _tell = tell
  try:
    yield
  finally:
    _tell = None


def arm(minutes: float) -> None:
  """Ends the process with a stack trace, unless it is called again in time.

  Args:
    minutes: time until the process is ended; 0: never.
  """
  global _minutes, _deadline, _thread
  with _changed:
    _minutes = minutes
    _deadline = time.monotonic() + minutes * 60 if minutes else math.inf
    if minutes and _thread is None:
      _thread = threading.Thread(target=_watch, name="watchdog", daemon=True)
      _thread.start()
    _changed.notify()
    if minutes:
      _end_without_python(minutes * 60)
    else:
      faulthandler.cancel_dump_traceback_later()


def _end_without_python(seconds: float) -> None:
  """Lets faulthandler end the process if Python code cannot, some time after this time."""
  # Its clock runs while the process is suspended, and Python code needs a chance to stop it then.
  seconds = min(seconds + _minutes * 60 + GRACE_S, threading.TIMEOUT_MAX)
  # sys.__stderr__: in a notebook, sys.stderr is not a file that a dying process can write to.
  faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


def deadline() -> float:
  """Returns when the process will be ended, on the clock of `time.monotonic`; inf: never."""
  return _deadline


def _watch() -> None:
  """Runs in a thread: ends the process at the deadline."""
  global _deadline
  with _changed:
    while (left := (deadline := _deadline) - (start := time.monotonic())) > 0:
      seconds = threading.TIMEOUT_MAX if left == math.inf else min(left, SLICE_S)
      _changed.wait(seconds)
      late = time.monotonic() - start - seconds
      if late > SLICE_S and _deadline == deadline:
        _deadline += late
        _end_without_python(_deadline - time.monotonic())
  with contextlib.suppress(OSError, ValueError):
    faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
  reason = f"Timeout: nothing was done for {_minutes:g} minutes"
  timeline.end(1, reason)
  console.say(f"bertgpt: {reason}. A peer, a worker, a device or a disk does not respond; the "
              "stacks above show what each thread waits for. Run the same command again, or raise "
              "system.hang_timeout_minutes")
  if tell := _tell:
    tell(reason)
  children.kill_spawned()
  os._exit(1)


def arm_for(system: Any, *, compiles: bool) -> None:
  """Arms the limit of a step.

  Args:
    system: `config.system`, whose `hang_timeout_minutes` and `compile_timeout_minutes` are read.
    compiles: whether programs are compiled, or a whole state is made or read, before the next step
      is done.
  """
  minutes = system.hang_timeout_minutes
  if minutes and compiles:
    minutes = minutes + system.compile_timeout_minutes if system.compile_timeout_minutes else 0
  arm(minutes)


def renew() -> None:
  """Restarts the time limit that is running; does nothing if there is none."""
  with _changed:  # Other threads may change the limit.
    if _minutes:
      arm(_minutes)


def disarm() -> None:
  """Lets the process run without a time limit."""
  arm(0)


@contextlib.contextmanager
def restored() -> Iterator[None]:
  """Restores and restarts the former limit when the context ends."""
  minutes = _minutes
  try:
    yield
  finally:
    arm(minutes)


@contextlib.contextmanager
def paused() -> Iterator[None]:
  """Suspends the limit inside the context, for work of any length that waits for nothing."""
  with restored():
    disarm()
    yield
