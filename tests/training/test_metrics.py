"""Sums of metrics: a sum is divided by its weight once."""

import math

from bertgpt.training import metrics


def test_sums_are_divided_once():
  """A mean of the two means would be 2.5."""
  sums = metrics.RunningSums()
  sums.add({"loss": (2.0, 1.0)})
  sums.add({"loss": (9.0, 3.0), "empty": (0.0, 0.0)})
  assert sums.means() == {"loss": 11 / 4}
  assert metrics.with_perplexity({"mlm_loss": 1.0}, "mlm_loss")["mlm_perplexity"] == math.e


def test_the_perplexity_of_a_loss_beyond_floats_is_the_largest():
  assert metrics.perplexity(2.0) == math.exp(2.0)
  assert metrics.perplexity(1e4) == metrics.perplexity(700.0) < math.inf
