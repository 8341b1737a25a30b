"""Every family is complete: its files are found by name, and its model has the listed abilities."""

import importlib
import pathlib
import re

import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt.config import choices, families
from bertgpt.data.batches.parts import RowFormat
from bertgpt.devices import sharding
from bertgpt.hub.architecture import BODY
from bertgpt.hub.family_tables import FamilyTable, find_table
from bertgpt.models import parameter_table
from bertgpt.models.parameters import find
from bertgpt.training import steps
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
# First parts of the paths of parameters after the layers that belong to no head.
AFTER_LAYERS = ("final_norm", "generator_project", "mix")
SMALL = {"num_layers": 2, "width": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": tiny.LENGTH,
         "vocab_size": tiny.VOCAB}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_files_of_a_family_are_found_by_its_name(name):
  model = importlib.import_module(f"bertgpt.models.{name}")
  assert model.MODEL and model.PARAMETERS
  table = find_table(name)
  assert isinstance(table, FamilyTable)
  assert table.choose or len(table.architectures) < 2, "choose says which one a model is"


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
    param = find(parameter_table(config), path)
    assert len(param.axes) == x.ndim, f"{path}: {param.axes} for the shape {x.shape}"
    group = path.split("/")[0]
    is_late = group in AFTER_LAYERS or group in families.HEADS.keys() - BODY
    assert is_late != (param.is_embedding or param.is_stacked), (
        f"{path}: neither an embedding, nor stacked, nor of a head in HEADS or of AFTER_LAYERS; or "
        "two of them")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_rules_of_conversion_name_every_head(name):
  for architecture in find_table(name).architectures:
    for rule in architecture.rules:
      assert rule.group in BODY or rule.group in families.HEADS, rule.ours


def test_the_page_has_a_tested_size_of_every_preset():
  """The sizes are compared with the shapes of parameters in tests/models/."""
  root = pathlib.Path(__file__).parents[1]
  page = (root / "docs" / "families.md").read_text().partition("## Sizes")[2].partition("\n## ")[0]
  sizes = re.findall(r"`(\w+)` ([\d,]+)", page)
  tested = "".join(path.read_text() for path in (root / "tests" / "models").glob("test_*.py"))
  assert not [size for _, size in sizes if size.replace(",", "_") not in tested]
  assert {name for name, _ in sizes} == {name for family in families.FAMILIES.values()
                                         for name in family.presets}
