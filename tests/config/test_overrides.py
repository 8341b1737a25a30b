"""bertgpt.config.overrides: arguments set fields in their types, and wrong ones are one line."""


import ml_collections
import pytest

from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.config import recipes
from bertgpt.config.overrides import override
from bertgpt.config.stored import to_json
from bertgpt.errors import ConfigError


def problems_of(call, *args) -> list[str]:
  with pytest.raises(ConfigError) as e:
    call(*args)
  return str(e.value).splitlines()


@pytest.mark.parametrize("argument, group, name, value", [
    ("--config.seed=7", None, "seed", 7),
    ("--config.model.width=256", "model", "width", 256),
    ("--config.model.dropout=0", "model", "dropout", 0.0),
    ("--config.optimizer.epsilon=1e-8", "optimizer", "epsilon", 1e-8),
    ("--config.log.tensorboard=false", "log", "tensorboard", False),
    ("--config.data.source=jsonl:a=b/*.gz#text", "data", "source", "jsonl:a=b/*.gz#text"),
    ("--config.data.source=text:a.txt,text:b.txt*2", "data", "source",
     "text:a.txt,text:b.txt*2"),
    ("--config.profile.steps=(10,20)", "profile", "steps", (10, 20)),
    ("--config.profile.steps=10,15", "profile", "steps", (10, 15)),
    ("--config.mesh.axes.batch=data", "mesh.axes", "batch", ("data",)),
    ("--config.mesh.axes.batch=data, fsdp", "mesh.axes", "batch", ("data", "fsdp")),
    ("--config.mesh.axes.batch=data,", "mesh.axes", "batch", ("data",)),
    ("--config.mesh.axes.batch='data','fsdp'", "mesh.axes", "batch", ("data", "fsdp")),
    ("--config.mesh.axes.embed=", "mesh.axes", "embed", ()),
    ("--config.mesh.axes.embed=()", "mesh.axes", "embed", ()),
])
def test_override_sets_the_field_in_its_type(argument, group, name, value):
  config = override(config_lib.base(), [argument])
  for part in group.split(".") if group else ():
    config = config[part]
  result = config[name]
  assert result == value
  assert type(result) is type(value)


def test_a_list_that_is_empty_may_become_names():
  config = override(config_lib.base(), ["--config.mesh.axes.embed=",
                                        "--config.mesh.axes.embed=fsdp,tensor"])
  assert config.mesh.axes.embed == ("fsdp", "tensor")


def test_labels_that_are_numbers_are_names_too():
  config = override(finetune_config.base(), ["--config.task.labels=1,0,n/a"])
  assert config.task.labels == ("1", "0", "n/a")
  config = override(config, ["--config.task.labels='a, b','c'"])
  assert config.task.labels == ("a, b", "c")
  assert override(config, ["--config.task.labels="]).task.labels == ()


def test_a_field_that_refers_to_another_one_follows_it():
  """As with ml_collections alone. A recipe may tie the width of the MLP to that of the model."""
  config = config_lib.base()
  config.model.width = width = ml_collections.FieldReference(64)
  config.model.mlp_dim = width * 4
  config.phases = (config_lib.phase(steps=3, batch_size=config.eval.get_ref("batch_size")),)
  changed = override(config, ["--config.model.width=128", "--config.eval.batch_size=24"])
  assert (changed.model.mlp_dim, changed.phases[0].batch_size) == (512, 24)
  assert (config.model.width, config.model.mlp_dim) == (64, 256)
  again = override(changed, ["--config.model.width=32"])  # The result holds values only.
  assert again.model.mlp_dim == 512


def test_two_fields_that_are_one_cannot_have_two_values():
  config = config_lib.base()
  config.phases = (config_lib.phase(steps=3, batch_size=config.eval.get_ref("batch_size")),)
  fields = ["--config.eval.batch_size=24", "--config.phases[0].batch_size=16"]
  for order in (fields, fields[::-1]):
    with pytest.raises(ConfigError, match="the recipe ties this field to another one, which is"):
      override(config, order)
    assert override(config, order[:1]).eval.batch_size == int(order[0][-2:])


@pytest.mark.parametrize("argument", ["seed=3", "model.width=64", "config.seed=3", "seed"])
def test_an_argument_without_its_prefix_is_an_error(argument):
  field = argument.removeprefix("config.")
  with pytest.raises(ConfigError, match=f"^{argument}: write --config.{field}$"):
    override(config_lib.base(), [argument])


def test_override_leaves_its_argument_as_it_was():
  config = config_lib.base()
  before = to_json(config)
  changed = override(config, ["--config.seed=1", "--config.phases[0].steps=3"])
  assert to_json(config) == before
  assert changed.seed == 1
  assert changed.phases[0].steps == 3


def test_override_reaches_every_phase():
  config = config_lib.base()
  config.phases = (config_lib.phase(), config_lib.phase())
  config = override(config, ["--config.phases[1].learning_rate=0.5"])
  assert [p.learning_rate for p in config.phases] == [1e-4, 0.5]


def test_last_override_wins():
  config = override(config_lib.base(), ["--config.seed=1", "--config.seed=2"])
  assert config.seed == 2


@pytest.mark.parametrize("argument, suggestion", [
    ("--config.model.widht=3", "--config.model.width"),
    ("--config.optimiser.name=lamb", "--config.optimizer.name"),
    ("--config.phases[0].step=3", "--config.phases[0].steps"),
    ("--config.steps=3", "--config.phases[0].steps or --config.profile.steps"),
    ("--config.train.batch_size=3", "--config.phases[0].batch_size or --config.eval.batch_size"),
    ("--config.optimizer.learning_rate=3", "--config.phases[0].learning_rate"),
])
def test_unknown_field_is_one_line_with_a_suggestion(argument, suggestion):
  field = argument.split("=")[0]
  assert problems_of(override, config_lib.base(), [argument]) == [
      f"{field}: no such field. Did you mean {suggestion}?"]


def test_a_phase_that_does_not_exist_is_not_a_field():
  (line,) = problems_of(override, config_lib.base(), ["--config.phases[1].steps=3"])
  assert line.startswith("--config.phases[1].steps: no such field")


@pytest.mark.parametrize("argument, line", [
    ("--config.seed=abc", "--config.seed: expected int, got 'abc'"),
    ("--config.seed=", "--config.seed: expected int, got ''"),
    ("--config.model.width=1.5", "--config.model.width: expected int, got '1.5'"),
    ("--config.model.dropout=low", "--config.model.dropout: expected float, got 'low'"),
    ("--config.log.tensorboard=maybe", "--config.log.tensorboard: expected bool, got 'maybe'"),
    ("--config.phases[0].steps=many", "--config.phases[0].steps: expected int, got 'many'"),
    ("--config.seed", "--config.seed: give the value as --config.seed=VALUE"),
])
def test_wrong_value_is_one_line(argument, line):
  assert problems_of(override, config_lib.base(), [argument]) == [line]


def test_all_wrong_overrides_are_reported_at_once():
  arguments = ["--config.sead=1", "--config.model.width=x", "--config.seed=1", "--config.seed"]
  assert len(problems_of(override, config_lib.base(), arguments)) == 3


def test_scripts_of_earlier_versions_find_it_with_the_recipes():
  assert recipes.override is override

