"""bertgpt.config.sweeps: lists of runs."""

import math

import pytest

from bertgpt.config import base, phase, sweeps
from bertgpt.config.overrides import override


def test_a_product_has_every_combination():
  runs = sweeps.product({"seed": (0, 1), "optimizer.b2": (0.9, 0.99, 0.999)})
  assert len(runs) == 6 and len({tuple(run.items()) for run in runs}) == 6
  assert [run["optimizer.b2"] for run in runs] == [0.9, 0.99, 0.999] * 2


def test_parts_are_combined():
  pairs = sweeps.zip({"model.width": (128, 256), "model.num_heads": (4, 8)})
  assert pairs == [{"model.width": 128, "model.num_heads": 4},
                   {"model.width": 256, "model.num_heads": 8}]
  assert sweeps.product({"seed": (0, 1)}, pairs) == [
      {"seed": seed, **pair} for seed in (0, 1) for pair in pairs]
  assert sweeps.product() == [{}]


def test_a_run_of_a_config_has_what_differs_from_the_first():
  configs = []
  for name, width, steps in (("mlm_nsp", 768, 10), ("mlm", 64, 10), ("mlm_nsp", 768, 20)):
    config = base()
    config.objective.name, config.model.width, config.phases[0].steps = name, width, steps
    configs.append(config)
  runs = sweeps.of_configs(configs, ("objective.name",))
  assert runs == [{"objective.name": "mlm_nsp"}, {"objective.name": "mlm", "model.width": 64},
                  {"objective.name": "mlm_nsp", "phases[0].steps": 20}]
  for run, config in zip(runs, configs, strict=True):
    arguments = [f"--config.{name}={value}" for name, value in run.items()]
    assert override(configs[0], arguments) == config


def test_mistakes_are_found():
  with pytest.raises(ValueError, match="shorter"):
    sweeps.zip({"seed": (0, 1), "model.width": (1,)})
  with pytest.raises(ValueError, match="seed is set by two parts"):
    sweeps.product({"seed": (0, 1)}, [{"seed": 2}])
  two_phases = base()
  two_phases.phases = (phase(), phase())
  with pytest.raises(ValueError, match="config 1 has another number of phases"):
    sweeps.of_configs([base(), two_phases])


def test_samples_lie_within_their_limits_and_can_be_continued():
  fields = {"optimizer.b2": sweeps.uniform(0.9, 0.99), "seed": (3, 5, 7),
            "phases[0].learning_rate": sweeps.log_uniform(1e-5, 1e-1)}
  runs = sweeps.sample(400, fields, seed=1)
  assert runs[:9] == sweeps.sample(9, fields, seed=1) != sweeps.sample(9, fields, seed=2)
  assert all(0.9 <= run["optimizer.b2"] <= 0.99 for run in runs)
  assert {run["seed"] for run in runs} == {3, 5, 7}
  # The logarithms are uniform: a quarter of the draws is in each power of ten.
  powers = [math.floor(math.log10(run["phases[0].learning_rate"])) for run in runs]
  assert all(60 < powers.count(power) < 140 for power in (-5, -4, -3, -2))


def test_values_survive_the_command_line():
  run, = sweeps.sample(1, {"optimizer.b2": sweeps.uniform(0.9, 0.99)})
  config = override(base(), [f"--config.{name}={value}" for name, value in run.items()])
  assert config.optimizer.b2 == run["optimizer.b2"]
