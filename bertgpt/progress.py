"""Progress of long work: a line on stderr every few seconds."""

import time

from bertgpt import console

PROGRESS_SECONDS = 10.0


class Progress:
  """Prints progress on stderr every PROGRESS_SECONDS.

  Attributes:
    done: texts done.

  Args:
    total: texts in total; 0: not known.
    unit: name of the texts in the line.
    done: texts that were done earlier.
  """

  def __init__(self, total: int, unit: str = "texts", done: int = 0):
    self.done = done
    self._total, self._unit = total, unit
    self._first, self._start = done, time.monotonic()
    self._printed = self._start
    if done:
      console.say(f"note: resuming after {done:,} of {total:,} {unit}")

  def add(self, count: int) -> int:
    """Counts texts, prints a line if it is time for one, and returns the texts done.

    Args:
      count: texts done since the last call.
    """
    self.done += count
    now = time.monotonic()
    if now - self._printed >= PROGRESS_SECONDS and (self.done < self._total or not self._total):
      self._printed = now
      rate = (self.done - self._first) / (now - self._start)
      of_total = f" of {self._total:,}" if self._total else ""
      left = (f", {describe_seconds((self._total - self.done) / rate)} left"
              if self._total and rate else "")
      shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
      console.say(f"{self.done:,}{of_total} {self._unit}, {shown} per second{left}")
    return self.done


def describe_seconds(seconds: float) -> str:
  """Returns a duration in words, such as '45 s', '12 min' or '3.5 h'.

  Args:
    seconds: the duration.
  """
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
