"""A time limit for everything that may wait forever: a peer, a device, a disk. Without JAX.

    arm(minutes)   from here on, the process ends with the stacks of all threads after this time
    renew()        something was done: the time starts again, if it is running
    disarm()       no limit

The limit ends the process with exit code 1 and the word "Timeout", also if no Python code can run.
"""

import contextlib
import faulthandler
import sys
from collections.abc import Iterator
from typing import Any

START_MINUTES = 60  # Imports, and the other processes of a run, before the config's limits count.
_minutes = 0.0


def arm(minutes: float) -> None:
  """Ends the process with a stack trace, unless it is called again in time.

  Args:
    minutes: time until the process is ended; 0: never.
  """
  global _minutes
  _minutes = minutes
  if minutes:
    # sys.__stderr__: in a notebook, sys.stderr is not a file that a dying process can write to.
    faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.__stderr__)
  else:
    faulthandler.cancel_dump_traceback_later()


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
  if _minutes:
    arm(_minutes)


def disarm() -> None:
  """Lets the process run without a time limit."""
  arm(0)


@contextlib.contextmanager
def restored() -> Iterator[None]:
  """Restores, at the end of the context, the limit from before it, and restarts it."""
  minutes = _minutes
  try:
    yield
  finally:
    arm(minutes)


@contextlib.contextmanager
def paused() -> Iterator[None]:
  """Lifts the limit inside the context, for work of any length that waits for nobody."""
  with restored():
    disarm()
    yield
