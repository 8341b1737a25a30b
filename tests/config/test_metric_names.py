"""bertgpt.config.metric_names: every metric of an objective is known to be better high or low."""

import pytest

from bertgpt.config import choices, metric_names


@pytest.mark.parametrize("name, loss, share, known", [
    ("train/loss", False, False, False), ("eval/validation/mlm_loss", True, False, True),
    ("lm_perplexity", False, False, True), ("rtd_recall", False, True, True),
    ("order_f1", False, True, True), ("order_correlation", False, False, False)])
def test_what_a_name_says(name, loss, share, known):
  assert (metric_names.is_loss(name), metric_names.is_share(name),
          metric_names.has_direction(name)) == (loss, share, known)


def test_all_metrics_of_objectives_have_a_direction():
  for objective in choices.OBJECTIVES.values():
    assert all(map(metric_names.has_direction, (objective.loss, *objective.other_metrics)))
