"""bertgpt.training.pace: the own time of a process, and which one is slow."""

import time

import pytest

from bertgpt.training import pace


def test_own_time_is_what_is_not_waiting():
  """Three steps of at least 20 ms for the batch and 30 ms in which the device is waited for."""
  clock = pace.Pace()
  begin = time.monotonic()

  def slow(count):
    for i in range(count):
      time.sleep(0.02)
      yield i

  batches = []
  for batch in clock.timed(slow(3)):
    batches.append(batch)
    with clock.waiting():
      time.sleep(0.03)
  seconds = (time.monotonic() - begin) / 3
  scalars = clock.scalars(seconds, 3)
  assert batches == [0, 1, 2] and scalars.keys() == {"perf/input_seconds"}
  assert 0.02 <= scalars["perf/input_seconds"] <= seconds - 0.03
  clock.restart()
  assert clock.scalars(seconds, 3) == {"perf/input_seconds": 0.0}


def times(own, wait):
  return {"own": own, "input": wait}


@pytest.mark.parametrize("found, count, expected", [
    ({0: times(0.3, 0.1)}, 1, {"input_seconds": 0.1}),
    ({0: times(0.3, 0.1)}, 2, {"input_seconds": 0.1}),
    ({0: times(0.3, 0.1), 1: times(0.5, 0.0)}, 3, {"input_seconds": 0.1}),
    ({0: times(0.3, 0.1), 1: times(0.5, 0.0), 2: times(0.2, 0.2)}, 3,
     {"input_seconds": 0.2, "slowest_process": 1, "slowest_seconds": 0.5})])
def test_the_slowest_has_the_most_own_time_once_all_are_heard(found, count, expected):
  assert pace.summarize(found, count) == {f"perf/{name}": x for name, x in expected.items()}
