"""bertgpt.config.suggestions: what a person most likely meant."""

import pytest

from bertgpt.config import suggestions

KNOWN = ("seed", "model.width", "eval.batch_size", "profile.steps", "phases[0].steps",
         "phases[0].batch_size", "phases[1].steps", "phases[1].batch_size")


@pytest.mark.parametrize("field, expected", [
    ("model.widht", ["model.width"]),  # A misspelled name.
    ("modle.width", ["model.width"]),  # A misspelled group.
    ("phases[1].step", ["phases[1].steps"]),
    ("width", ["model.width"]),  # Another group, or none.
    ("optimizer.width", ["model.width"]),
    ("train.steps", ["phases[0].steps", "profile.steps"]),  # Phases come first, and only one.
    ("batch_size", ["phases[0].batch_size", "eval.batch_size"]),
    ("xyz", []),
])
def test_closest(field, expected):
  assert suggestions.closest(field, KNOWN) == expected


def test_hint():
  assert suggestions.hint("train.steps", KNOWN) == (
      ". Did you mean --config.phases[0].steps or --config.profile.steps?")
  assert suggestions.hint("xyz", KNOWN) == ""
