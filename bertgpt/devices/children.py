"""Processes that this program starts. None outlives its parent or runs the caller's script.

`multiprocessing` imports the script of the caller in every child that it spawns. A script without
`if __name__ == "__main__"` would then run again in each of them.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

PIPE = "BERTGPT_PARENT_PIPE"  # Variable with a file descriptor that is closed when the parent ends.
OF_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # See `leave_signals_to_parent`.


@contextlib.contextmanager
def spawning() -> Iterator[None]:
  """Prepares the children that `multiprocessing` spawns inside the context.

  They do not import the main script, so the function that they run must be in another module, and
  they do not get the signals of `OF_PARENT`.
  """
  with _without_main(), _without_signals():
    yield


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
  main = sys.modules["__main__"]
  sys.modules["__main__"] = types.ModuleType("__main__")
  try:
    yield
  finally:
    sys.modules["__main__"] = main


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
  """Blocks the signals of `OF_PARENT` in children that this thread starts inside the context.

  A child can ignore signals only after its imports, and a signal during the imports would end it.
  The parent still gets its signals: at once if it has another thread, otherwise at the end of the
  context.
  """
  resource_tracker.ensure_running()  # Otherwise the first child starts it, which unblocks SIGINT.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_PARENT)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
  """Ends this process, a child of `multiprocessing`, when its parent is gone."""
  parent = multiprocessing.parent_process()

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def leave_signals_to_parent() -> None:
  """Ignores signals that a terminal or a scheduler sends to all processes of a group.

  They are meant for the parent, which saves its work, and needs this child until then.
  """
  for number in OF_PARENT:
    signal.signal(number, signal.SIG_IGN)


def kill_spawned() -> None:
  """Kills the children of `multiprocessing`. Suspended ones would not end with this process."""
  for child in multiprocessing.active_children():
    child.kill()


def start(command: Sequence[str], environment: Mapping[str, str] | None = None,
          output: Any = None) -> subprocess.Popen:
  """Starts a command of this program, which is stopped by SIGTERM when this process is gone.

  The caller keeps the result until the command has ended: without it, the command is stopped too.

  Args:
    command: the program and its arguments.
    environment: additional environment variables.
    output: file for its stdout and stderr; None: those of this process.
  """
  reader, held = os.pipe()  # `held` closes with this process, or with the result.
  try:
    child = subprocess.Popen(command, pass_fds=[reader], stdout=output, stderr=output,
                             env=os.environ | {PIPE: str(reader), **(environment or {})})
  except BaseException:
    os.close(held)
    raise
  finally:
    os.close(reader)
  weakref.finalize(child, os.close, held)
  return child


def terminate_with_starter() -> None:
  """Sends SIGTERM to this process when the one that has called `start` is gone."""
  if (descriptor := os.environ.pop(PIPE, None)) is None:
    return
  reader = int(descriptor)
  os.set_inheritable(reader, False)

  def wait() -> None:
    os.read(reader, 1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=wait, daemon=True).start()
