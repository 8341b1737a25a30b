"""bertgpt.training.feed: every step of every phase once, wherever a run resumes."""

import tiny

from bertgpt import config as config_lib
from bertgpt.training import feed


def visit(config, first_step):
  """Returns (step, phase whose program it is, (phase, batch of the phase)) of all steps."""
  def read(phase, first):
    yield from ((phase, batch) for batch in range(first, config.phases[phase].steps))

  return list(feed.make_steps(config, first_step, lambda phase: phase, read))


def test_steps_of_all_phases_are_visited_once_from_any_start():
  config = tiny.make_config()
  config.phases = tuple(config_lib.phase(steps=n, micro_batches=m) for n, m in ((3, 1), (4, 2)))
  everything = visit(config, 0)
  assert everything == [(1, 0, (0, 0)), (2, 0, (0, 1)), (3, 0, (0, 2)),
                        (4, 1, (1, 0)), (5, 1, (1, 1)), (6, 1, (1, 2)), (7, 1, (1, 3))]
  for first in range(8):
    assert visit(config, first) == everything[first:]
  config.train.skip_steps = ((2, 5),)
  for first in range(8):
    assert visit(config, first) == [row for row in everything[first:] if row[0] in (1, 6, 7)]


def test_phases_that_differ_only_in_their_rates_share_a_program():
  config = tiny.make_config()
  config.phases = tuple(config_lib.phase(steps=1, seq_len=n, learning_rate=rate)
                        for n, rate in ((8, 1e-3), (16, 1e-3), (8, 1e-4)))
  assert [program for _, program, _ in visit(config, 0)] == [0, 1, 0]
