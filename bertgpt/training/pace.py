"""Which process of a run the others wait for, and how long each waits for its batches.

A step takes the same time in all processes, because each of them waits for the others in it. So the
time of a step does not show which process is slow. The own time of a process does: the time per
step in which it waits neither for its devices nor for other processes, but reads rows, logs and
saves. The others wait for the process with the largest own time, unless a device is slow.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from bertgpt.devices import timeline
from bertgpt.devices.board import Board

EVERY_S = 2.0  # Time between two exchanges of times with the other processes.

T = TypeVar("T")


class Pace:
  """Times of this process since the last log point, and those of the others at an earlier one."""

  def __init__(self):
    """Begins to measure."""
    self._board = Board("pace", EVERY_S)
    self._own_s = self._all_input_s = 0.0  # Since the last times were taken.
    self._steps = 0
    self.restart()

  def restart(self) -> None:
    """Begins a new interval."""
    self._input_s = self._waiting_s = 0.0

  def timed(self, batches: Iterable[T]) -> Iterator[T]:
    """Yields the batches; the time until each of them is there counts as input."""
    return timeline.iterate_inside(self._reading, batches)

  @contextlib.contextmanager
  def _reading(self) -> Iterator[None]:
    begin = time.monotonic()
    try:
      yield
    finally:
      self._input_s += time.monotonic() - begin

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside the context as waiting for devices or for other processes."""
    begin = time.monotonic()
    try:
      yield
    finally:
      self._waiting_s += time.monotonic() - begin

  def scalars(self, seconds: float, steps: int) -> dict[str, float]:
    """Returns the scalars of an interval, and posts this process's times without waiting.

    Args:
      seconds: time per step.
      steps: number of steps.
    Returns:
      Tag -> value, see `summarize`.
    """
    if self._board.count == 1:
      return summarize({0: {"own": 0.0, "input": self._input_s / steps}}, 1)
    if self._board.is_taken:
      self._own_s = self._all_input_s = 0.0
      self._steps = 0
    self._own_s += max(seconds * steps - self._waiting_s, 0.0)
    self._all_input_s += self._input_s
    self._steps += steps
    own = {"own": self._own_s / self._steps, "input": self._all_input_s / self._steps}
    self._board.post(own)
    return summarize({self._board.index: own} | self._board.read(), self._board.count)

  def close(self) -> None:
    """Ends the exchange."""
    self._board.close()


def summarize(found: Mapping[int, Mapping[str, float]], count: int) -> dict[str, float]:
  """Returns the scalars of a log point.

  Args:
    found: index of a process -> its 'own' and 'input' time, seconds per step.
    count: processes of the run.
  Returns:
    'perf/input_seconds', the longest wait for a batch. If there are several processes and the times
    of all are known, also 'perf/slowest_process', the index of the one with the largest own time,
    and 'perf/slowest_seconds', that time.
  """
  scalars = {"perf/input_seconds": max(times["input"] for times in found.values())}
  if count > 1 and len(found) == count:
    slowest = max(found, key=lambda index: found[index]["own"])
    scalars |= {"perf/slowest_process": slowest, "perf/slowest_seconds": found[slowest]["own"]}
  return scalars
