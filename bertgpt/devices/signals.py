"""Effects of SIGTERM, a closed terminal (SIGHUP) and Ctrl-C on a command, without JAX.

Outside of a training loop they raise an exception in the main thread, so that temporary files are
removed and locks released. Inside, `process.catch_signals` turns them into a function that the
loop calls.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
  """SIGTERM or SIGHUP. Like KeyboardInterrupt, it passes through `except Exception`.

  Attributes:
    number: the signal.
  """

  def __init__(self, number: int):
    super().__init__(f"stopped by {signal.Signals(number).name}")
    self.number = signal.Signals(number)


@contextlib.contextmanager
def hold() -> Iterator[Callable[[], None]]:
  """Delays signals until the yielded function is called; from then on they raise at once.

  An exception during the import of C++ libraries can crash or be ignored. Signals that the parent
  of this process has switched off, as nohup does with SIGHUP, stay off.

  Yields:
    The function that ends the delay.
  """
  is_held, waiting = True, []

  def note(number, frame):
    if number in ENDING:
      signal.signal(number, signal.SIG_DFL)  # A second signal ends the process at once.
    waiting.append(number)
    if not is_held:
      raise_first()

  def raise_first() -> None:
    raise KeyboardInterrupt if waiting[0] == signal.SIGINT else Terminated(waiting[0])

  def release() -> None:
    nonlocal is_held
    is_held = False
    if waiting:
      raise_first()

  previous = {number: signal.signal(number, note) for number in (signal.SIGINT, *ENDING)
              if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN}
  try:
    yield release
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
