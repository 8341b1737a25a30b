"""Every family is complete: its files are found by name, and its model has the listed abilities."""

import importlib
import pathlib
import re

import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt.config import choices, families
from bertgpt.data.batches.parts import RowFormat
from bertgpt.devices import sharding
from bertgpt.hub.architecture import BODY
from bertgpt.models import Param, parameter_table
from bertgpt.models.parameters import find, find_part
from bertgpt.training import steps
from bertgpt.training.optimizers import transforms
from bertgpt.trees import named_leaves

# Ability -> methods of the model that it calls; see `bertgpt.models`.
METHODS = {
    "generate": ("extend", "logits"), "score": ("features", "logits"), "embed": ("features",),
    "fill": ("predict",), "pseudo_score": ("predict",),
    "classes": ("features",), "values": ("features",), "tokens": ("features",),
    "spans": ("features",),
}
METHODS_OF_HEADS = {
    ("encoder", "classes"): ("pool",), ("encoder", "values"): ("pool",),
    ("encoder", "tokens"): ("token_features",), ("encoder", "spans"): ("token_features",),
    ("decoder", "classes"): ("text_features", "predict_next"),
    ("decoder", "values"): ("text_features", "predict_next"),
}
SMALL = {"num_layers": 2, "width": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": tiny.LENGTH,
         "vocab_size": tiny.VOCAB}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_files_of_a_family_are_found_by_its_name(name):
  model = importlib.import_module(f"bertgpt.models.{name}")
  table = importlib.import_module(f"bertgpt.hub.{name}")
  assert model.MODEL and model.PARAMETERS
  assert isinstance(table.ARCHITECTURES, tuple) and callable(table.choose)


@pytest.mark.parametrize("name", choices.OBJECTIVES)
def test_the_files_of_an_objective_are_found_by_its_name(name):
  assert callable(importlib.import_module(f"bertgpt.training.objectives.{name}").make)
  rows = importlib.import_module(f"bertgpt.data.batches.{choices.OBJECTIVES[name].rows}")
  assert isinstance(rows.FORMAT, RowFormat)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_model_has_the_methods_of_its_abilities(name):
  family = families.FAMILIES[name]
  model = importlib.import_module(f"bertgpt.models.{name}").MODEL
  for ability in sorted(family.abilities):
    methods = METHODS[ability]
    methods = (*methods, *METHODS_OF_HEADS.get((family.kind, ability), ()))
    for method in methods:
      assert callable(getattr(model, method, None)), f"{ability} needs {method}"


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_family_can_do_what_its_report_shows(name):
  family = families.FAMILIES[name]
  assert family.can("generate") or family.can("fill")


@pytest.mark.parametrize("name, objective", [
    (name, objective) for name, family in families.FAMILIES.items()
    for objective in family.objectives])
def test_every_parameter_has_a_line_with_an_axis_for_each_dimension(name, objective):
  """The test evaluates only shapes; nothing is compiled."""
  config = config_lib.base()
  config.model.update(next(iter(families.FAMILIES[name].presets.values())))
  config.model.update(SMALL)
  config.objective.name = objective
  config.phases = (config_lib.phase(seq_len=tiny.LENGTH, batch_size=8),)
  mesh = sharding.make_mesh(config)
  with sharding.use_mesh(mesh, config):
    setup = steps.make_setup(config, mesh, tiny.make_vocabulary())
    params = steps.make_abstract_state(setup).params
  for path, x in named_leaves(params).items():
    axes = find(parameter_table(config), path).axes
    assert len(axes) == x.ndim, f"{path}: {axes} for the shape {x.shape}"
    part = find_part(parameter_table(config), path)
    group = path.split("/")[0]
    assert part != "head" or group in families.HEADS, f"{path}: a head without a name"


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_rules_of_conversion_agree_with_the_table_on_what_a_head_is(name):
  config = config_lib.base()
  config.model.family = name
  for architecture in importlib.import_module(f"bertgpt.hub.{name}").ARCHITECTURES:
    for rule in architecture.rules:
      is_head = find_part(parameter_table(config), rule.ours) == "head"
      assert (rule.group not in BODY) == is_head, rule.ours


def test_a_parameter_whose_line_names_no_part_has_no_factor_of_its_depth():
  """A factor of 1 would be wrong without notice."""
  config = config_lib.base()
  config.optimizer.layer_decay = 0.5
  transform = transforms.scale_by_depth(config, (Param(r"tokens/embedding$", ("vocab", None)),))
  with pytest.raises(ValueError, match="of the parameter tokens/embedding has part=''"):
    transform.update({"tokens": {"embedding": np.ones((4, 2))}}, ())


def test_the_page_has_a_tested_size_of_every_preset():
  """The sizes are compared with the shapes of parameters in tests/models/."""
  root = pathlib.Path(__file__).parents[1]
  page = (root / "docs" / "families.md").read_text().partition("## Sizes")[2].partition("\n## ")[0]
  sizes = re.findall(r"`(\w+)` ([\d,]+)", page)
  tested = "".join(path.read_text() for path in (root / "tests" / "models").glob("test_*.py"))
  assert not [size for _, size in sizes if size.replace(",", "_") not in tested]
  assert {name for name, _ in sizes} == {name for family in families.FAMILIES.values()
                                         for name in family.presets}
