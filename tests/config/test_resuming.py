"""bertgpt.config.resuming: fields that may change when a run is resumed."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import resuming
from bertgpt.config.overrides import override


def test_equal_configs_do_not_differ():
  assert resuming.differences(config_lib.base(), config_lib.base()) == []


def test_differences_name_field_and_both_values():
  config = override(config_lib.base(), ["--config.model.width=96", "--config.seed=1"])
  assert resuming.differences(config_lib.base(), config) == [
      "model.width: 768 -> 96", "seed: 0 -> 1"]


@pytest.mark.parametrize("argument", [
    "--config.phases[0].steps=5", "--config.checkpoint.keep=9", "--config.log.every_steps=1",
    "--config.mesh.fsdp=2", "--config.mesh.axes.embed=()", "--config.eval.batch_size=8",
    "--config.model.remat=full",
])
def test_fields_without_effect_on_the_result_may_change(argument):
  config = override(config_lib.base(), [argument])
  assert resuming.differences(config_lib.base(), config) == []


def test_named_fields_and_groups_may_change_and_no_others():
  old = config_lib.base()
  new = override(old, ["--config.optimizer.b1=0.8", "--config.optimizer.b2=0.9",
                       "--config.phases[0].learning_rate=1.0"])
  rate = "phases[0].learning_rate: 0.0001 -> 1.0"
  assert resuming.differences(old, new, ["optimizer"]) == [rate]
  assert resuming.differences(old, new, ["optimizer.b1", "phases"]) == [
      "optimizer.b2: 0.999 -> 0.9"]
  # A prefix of a name is not the name of a group.
  assert rate in resuming.differences(old, new, ["phase", "optim"])


def test_a_phase_that_only_one_config_has_is_one_line():
  old, new = config_lib.base(), config_lib.base()
  new.phases = (config_lib.phase(learning_rate=0.5),
                config_lib.phase(steps=9, batch_size=3, seq_len=64))
  rate = "phases[0].learning_rate: 0.0001 -> 0.5"
  phase = "9 steps of 3 rows of 64 tokens"
  assert resuming.differences(old, new) == [rate, f"phases[1]: no such phase -> {phase}"]
  assert resuming.differences(new, old, ["phases[0]"]) == [f"phases[1]: {phase} -> no such phase"]
  assert resuming.differences(old, new, ["phases"]) == []
  assert resuming.differences(old, new, ["phases[1]"]) == [rate]
