"""bertgpt.planning.compare: two plans of the same phases side by side."""

import pytest
import tiny
from fake_slice import on_fake_devices

from bertgpt.errors import ConfigError
from bertgpt.planning import aot, compare, plan


@pytest.fixture(scope="module")
def plans():
  """Returns the plans of a model with two layers and of one with four."""
  topology = on_fake_devices()
  return [aot.make_plan(tiny.make_config(mesh=(8, 1, 1), num_layers=layers), topology, [0])
          for layers in (2, 4)]


def test_the_ratio_is_the_second_over_the_first(plans):
  text = compare.show(*plans, ["model.num_layers=4"])
  assert text.startswith("comparison with model.num_layers=4")
  rows = {line[2:29].strip(): line[29:].split() for line in text.splitlines()[3:]}
  (first,), (second,) = plans
  assert float(rows["ms per step"][2]) == pytest.approx(
      second.step_seconds / first.step_seconds, abs=1e-3)
  assert float(rows["HBM traffic, GB"][2]) == pytest.approx(
      second.step.roofline.hbm_bytes / first.step.roofline.hbm_bytes, abs=1e-3)
  assert float(rows["ms per step"][2]) > 1 > float(rows["tokens/s"][2])
  parts = [float(row[0]) for name, row in rows.items() if name.startswith(("bound", "network"))]
  assert sum(parts) == pytest.approx(float(rows["ms per step"][0]), abs=0.03)


def test_a_plan_that_does_not_fit_is_said(plans):
  first, second = plans
  step = second[0].step._replace(memory=None, roofline=None,
                                 overflow=aot.Overflow(2e10, 1.6e10, []))
  text = compare.show(first, [aot.predict(step, on_fake_devices())], ["model.num_layers=4"])
  assert text.splitlines()[-1].split() == ["fits", "does", "not", "fit"]


@pytest.mark.parametrize("field, problem", [
    ("model.layers=4", "--compare: model.layers: no such field. Did you mean model."),
    ("model.num_layers=four", "--compare: model.num_layers: expected int, got 'four'"),
    ("model.num_layers", "--compare: model.num_layers: give the value as model.num_layers=VALUE")])
def test_wrong_fields_are_one_line(field, problem):
  with pytest.raises(ConfigError) as error:
    plan.make_other(tiny.make_config(), [field])
  assert str(error.value).startswith(problem) and "\n" not in str(error.value)
