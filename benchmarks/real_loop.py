"""The real `bertgpt train`, timed where it requests the next batch."""

import contextlib
import pathlib
import tempfile
import time
from typing import NamedTuple

from bertgpt.config import ConfigDict, phase
from bertgpt.training import feed
from bertgpt.training import loop as train

WARM_UP = 10  # Steps that are not timed, because the step and the first evaluation compile.


class Clock(NamedTuple):
  """Times of the steps of a run, in seconds, with one element per step.

  Attributes:
    asked: when the loop requested the batch of a step.
    got: when it received the batch.
  """

  asked: list[float]
  got: list[float]

  def seconds(self) -> float:
    """Returns the seconds per step after the warm-up, without the last step."""
    return (self.asked[-1] - self.asked[WARM_UP]) / (len(self.asked) - 1 - WARM_UP)

  def waiting(self) -> float:
    """Returns the share of that time in which the loop waited for a batch."""
    waited = sum(b - a for a, b in zip(self.asked[WARM_UP:-1], self.got[WARM_UP:-1], strict=True))
    return waited / (self.asked[-1] - self.asked[WARM_UP])


def run(config: ConfigDict, steps: int) -> Clock:
  """Trains the first phase for WARM_UP + `steps` + 1 steps in a temporary workdir.

  The output of the program goes to a file, as in `bertgpt train 2> log`.

  Args:
    config: config of a recipe.
    steps: steps that are timed.
  """
  config = config.copy_and_resolve_references()
  first = config.phases[0].to_dict() | {"steps": WARM_UP + steps + 1}
  config.phases = (phase(**first),)
  clock, make_steps = Clock([], []), feed.make_steps

  def make_timed_steps(*arguments, **options):
    with contextlib.closing(make_steps(*arguments, **options)) as inner:
      for _ in range(config.phases[0].steps):
        clock.asked.append(time.perf_counter())
        step = next(inner)
        clock.got.append(time.perf_counter())
        yield step

  with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w") as log:
    feed.make_steps = make_timed_steps
    try:
      with contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        train.train(config, pathlib.Path(folder) / "run")
    finally:
      feed.make_steps = make_steps
  return clock
