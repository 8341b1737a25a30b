"""Effects of SIGTERM, a closed terminal (SIGHUP) and Ctrl-C on a command, without JAX.

Outside of a training loop they raise an exception in the main thread, so that temporary files are
removed and locks released. Inside, `preemption.catch_signals` turns them into a function that the
loop calls.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)
REPEATED_S = 2.0  # Within this time, `timeout` and a parent send the same signal twice.


class Terminated(KeyboardInterrupt):
  """SIGTERM or SIGHUP. Like KeyboardInterrupt, it passes through `except Exception`.

  Attributes:
    number: the signal.
    exit_code: exit code of the program, following shell convention.
  """

  def __init__(self, number: int):
    super().__init__(f"stopped by {signal.Signals(number).name}")
    self.number = signal.Signals(number)
    self.exit_code = 128 + self.number


def end_at_next(number: int, handler: signal.Handlers | Callable | int | None = signal.SIG_DFL
                ) -> None:
  """Lets the next signal of a kind end the process, unless it is the same one sent twice.

  Args:
    number: the signal, which has just arrived.
    handler: what handles the next one that comes later than `REPEATED_S`.
  """
  first = time.monotonic()

  def end(number, frame):
    if time.monotonic() - first >= REPEATED_S:
      signal.signal(number, handler)
      signal.raise_signal(number)
      if handler == signal.SIG_DFL:
        os._exit(128 + number)  # Process 1 of a container is not ended by a signal.

  signal.signal(number, end)


def _end_at_next_of(number: int, handled: Iterable[int]) -> None:
  """Calls `end_at_next` for both signals that end a process: systemd may send one and the other."""
  for either in {*ENDING}.intersection(handled) if number in ENDING else ():
    end_at_next(either)


def _signal_of(error: BaseException | None) -> int | None:
  """Returns the signal that raised an error in the main thread; None: no signal did."""
  is_main = threading.current_thread() is threading.main_thread()
  if not is_main or not isinstance(error, KeyboardInterrupt):
    return None
  return getattr(error, "number", signal.SIGINT)


def _is_on(number: int) -> bool:
  return number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN


@contextlib.contextmanager
def hold() -> Iterator[Callable[[], None]]:
  """Delays signals until the yielded function is called; from then on they raise at once.

  An exception during the import of C++ libraries can crash or be ignored. Signals that the parent
  of this process has switched off, as nohup does with SIGHUP, stay off.

  Python ignores exceptions in callbacks of the garbage collector, of which JAX has one, and in
  finalizers. A signal that arrives there is sent again.

  Yields:
    The function that ends the delay.
  """
  is_held, waiting = True, []
  previous: dict[int, Any] = {}

  def note(number, frame):
    _end_at_next_of(number, previous)
    waiting.append(number)
    if not is_held:
      raise_first()

  def raise_first() -> None:
    first = waiting[0]
    waiting.clear()
    raise KeyboardInterrupt if first == signal.SIGINT else Terminated(first)

  def release() -> None:
    nonlocal is_held
    is_held = False
    if waiting:
      raise_first()

  show = sys.unraisablehook

  def send_again(ignored: "sys.UnraisableHookArgs") -> None:
    number = _signal_of(ignored.exc_value)
    if number not in previous:
      return show(ignored)
    signal.signal(number, note)
    waiting.append(number)
    # An exception that is raised before this function returns would be ignored too. `threading`
    # takes locks that the interrupted code may hold.
    _thread.start_new_thread(send_waiting, ())

  def send_waiting() -> None:
    time.sleep(0.05)
    if waiting:  # No other signal was raised in the meantime.
      signal.pthread_kill(threading.main_thread().ident, waiting[0])

  for number in filter(_is_on, (signal.SIGINT, *ENDING)):
    previous[number] = signal.signal(number, note)
  sys.unraisablehook = send_again
  try:
    yield release
  finally:
    if sys.unraisablehook is send_again:
      sys.unraisablehook = show
    waiting.clear()
    while previous:
      signal.signal(*previous.popitem())
