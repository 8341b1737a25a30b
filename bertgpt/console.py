"""Lines whose failure does not stop the work; standard streams that are closed; tables."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def open_closed_streams() -> None:
  """Connects stdin, stdout and stderr to the null device if the program was started without them.

  Otherwise, the next file that is opened would get the number of stderr, and the messages of C++
  libraries would be written into it.
  """
  for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # Takes the lowest free number.
      stream = os.fdopen(number, mode, closefd=False)
      setattr(sys, name, stream)
      setattr(sys, f"__{name}__", stream)


def escape_on_stdout() -> None:
  r"""Lets stdout write what its encoding lacks as escapes such as \u20ac, as stderr does."""
  if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
    sys.stdout.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
  """Writes to stderr. If that fails, for example because the terminal was closed, the text is lost.

  From then on, stderr is discarded, and so is stdout if it is a terminal. Streams without a file
  descriptor, such as those of notebooks, are left as they are.

  Args:
    text: text with its line ends.
  """
  try:
    sys.stderr.write(text)
    sys.stderr.flush()
  except BlockingIOError:
    pass  # Another program has made the pipe non-blocking, and it is full: only this text is lost.
  except OSError:
    with contextlib.suppress(OSError, ValueError):
      _discard(sys.stderr)
    with contextlib.suppress(OSError, ValueError):
      if stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode):
        _discard(sys.stdout)


def say(line: str) -> None:
  """Writes a line to stderr, see `write`.

  Args:
    line: text without its line end.
  """
  write(f"{line}\n")


def print_stdout(text: str) -> None:
  """Writes to stdout. If its reader has gone, as `head` does, stdout is discarded from then on.

  Args:
    text: text without its last line end.
  """
  try:
    print(text, flush=True)
  except BlockingIOError:
    pass  # See `write`.
  except OSError:
    with contextlib.suppress(OSError, ValueError):
      _discard(sys.stdout)


def format_table(table: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns a table as lines of text, the first with the names of the columns.

  Args:
    table: column -> value of each row; rows may have different columns.
  """
  cells = [list(dict.fromkeys(name for row in table for name in row))]
  for row in table:
    values = [row.get(name, "") for name in cells[0]]
    cells.append([f"{v:.5g}" if isinstance(v, float) else str(v) for v in values])
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
          for line in cells]


def _discard(stream) -> None:
  """Sends everything that is written to a stream, now and later, to the null device."""
  target = stream.fileno()
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, target)
  os.close(null)


def format_duration(seconds: float) -> str:
  """Returns a duration as hours:minutes:seconds, such as '0:03:21'.

  Args:
    seconds: at least 0.
  """
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"
