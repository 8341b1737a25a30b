"""bertgpt.commands.train: --allow_change names fields of the config."""

import pytest

from bertgpt import config as config_lib
from bertgpt.commands import train
from bertgpt.errors import ConfigError


@pytest.mark.parametrize("text, fields", [
    ("", []), ("seed", ["seed"]), (" seed, optimizer ,", ["seed", "optimizer"]),
    ("phases[0].learning_rate", ["phases[0].learning_rate"]),
    ("phases[1]", ["phases[1]"])])  # Of a run that had more phases than the config.
def test_fields_and_groups(text, fields):
  assert train.parse_fields(text, config_lib.base()) == fields


def test_a_field_that_is_not_there_is_refused():
  with pytest.raises(ConfigError, match="--allow_change=seed,modle: .* 'modle'"):
    train.parse_fields("seed,modle", config_lib.base())
