"""Lines on stderr that can fail without ending or stopping the work that they report."""

import os
import stat
import sys


def write(text: str) -> None:
  """Writes to stderr. If it cannot be written, as after a terminal was closed, the text is lost.

  From then on, stderr is discarded, and so is stdout if it is a terminal.

  Args:
    text: text with its line ends.
  """
  try:
    sys.stderr.write(text)
    sys.stderr.flush()
  except OSError:
    _discard(sys.stderr)
    if stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode):
      _discard(sys.stdout)


def say(line: str) -> None:
  """Writes a line to stderr, see `write`.

  Args:
    line: text without its line end.
  """
  write(f"{line}\n")


def _discard(stream) -> None:
  """Sends what is written to a stream, now and later, to the null device."""
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, stream.fileno())
  os.close(null)
