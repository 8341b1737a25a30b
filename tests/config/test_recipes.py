"""bertgpt.config.recipes: overrides, recipes, JSON."""

import json
import pathlib

import pytest

from bertgpt import config as config_lib
from bertgpt.config import recipes
from bertgpt.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def problems_of(call, *args) -> list[str]:
  with pytest.raises(ConfigError) as e:
    call(*args)
  return str(e.value).splitlines()


# --------------------------------------------------------------- overrides


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
])
def test_override_sets_the_field_in_its_type(argument, group, name, value):
  config = recipes.override(config_lib.base(), [argument])
  result = (config[group] if group else config)[name]
  assert result == value
  assert type(result) is type(value)


def test_override_leaves_its_argument_as_it_was():
  config = config_lib.base()
  before = recipes.to_json(config)
  changed = recipes.override(config, ["--config.seed=1", "--config.phases[0].steps=3"])
  assert recipes.to_json(config) == before
  assert changed.seed == 1
  assert changed.phases[0].steps == 3


def test_override_reaches_every_phase():
  config = config_lib.base()
  config.phases = (config_lib.phase(), config_lib.phase())
  config = recipes.override(config, ["--config.phases[1].learning_rate=0.5"])
  assert [p.learning_rate for p in config.phases] == [1e-4, 0.5]


def test_last_override_wins():
  config = recipes.override(config_lib.base(), ["--config.seed=1", "--config.seed=2"])
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
  assert problems_of(recipes.override, config_lib.base(), [argument]) == [
      f"{field}: no such field. Did you mean {suggestion}?"]


def test_a_phase_that_does_not_exist_is_not_a_field():
  (line,) = problems_of(recipes.override, config_lib.base(), ["--config.phases[1].steps=3"])
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
  assert problems_of(recipes.override, config_lib.base(), [argument]) == [line]


def test_all_wrong_overrides_are_reported_at_once():
  arguments = ["--config.sead=1", "--config.model.width=x", "--config.seed=1", "--config.seed"]
  assert len(problems_of(recipes.override, config_lib.base(), arguments)) == 3


# ----------------------------------------------------------------- recipes


@pytest.mark.parametrize("text, expected", [
    ("x = 1", "defines no get_config"),
    ("def get_config(:", "SyntaxError"),
    ("import no_such_module_anywhere", "no_such_module_anywhere"),
    ("from bertgpt.config import base\ndef get_config():\n  config = base()\n"
     "  config.sead = 1\n  return config", "sead"),
    ("from bertgpt.config import base\ndef get_config():\n  config = base()\n"
     "  config.data.source = None\n  return config", "data.source=None"),
])
def test_broken_recipe_is_one_line_that_names_the_file(tmp_path, text, expected):
  path = tmp_path / "recipe.py"
  path.write_text(text)
  (line,) = problems_of(recipes.load, str(path))
  assert str(path) in line
  assert expected in line


def test_missing_recipe_is_named(tmp_path):
  path = str(tmp_path / "nothing.py")
  expected = [f"--config {path}: no such file. Give an existing file, or the name of a recipe; "
              "--config help lists them"]
  assert problems_of(recipes.load, path) == problems_of(recipes.load_sweep, path) == expected


def test_a_misspelled_file_is_told_the_one_beside_it(tmp_path):
  (tmp_path / "small.py").write_text("")
  path = tmp_path / "smal.py"
  assert problems_of(recipes.load, str(path)) == [
      f"--config {path}: no such file. Did you mean {tmp_path / 'small.py'}?"]


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert recipes.load("bert_tiny").model.width == 128
  assert recipes.load_sweep("bert_base") == recipes.load_sweep(str(CONFIGS / "bert_base.py"))
  assert recipes.names() == sorted(path.stem for path in CONFIGS.glob("*.py"))


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "bert_base").write_text("")
  assert problems_of(recipes.load, "bert_base") == ["--config bert_base: not a Python file"]
  (tmp_path / "bert_tiny").mkdir()
  assert recipes.load("bert_tiny").model.width == 128


def test_a_name_takes_an_argument_too(monkeypatch, tmp_path):
  (tmp_path / "mine.py").write_text("from bertgpt.config import base\ndef get_config(seed='0'):\n"
                                    "  config = base()\n  config.seed = int(seed)\n"
                                    "  return config")
  monkeypatch.setattr(recipes, "folder", lambda: tmp_path)
  assert [recipes.load(name).seed for name in ("mine", "mine:5")] == [0, 5]


@pytest.mark.parametrize("name, hint", [
    ("bert_bse", "no such file or recipe. Did you mean bert_base"),
    ("bert_base.py", "no such file or recipe. Did you mean bert_base or"),
    ("help", "no such file or recipe. The recipes that come with bertgpt are ablation_mask_rate, "),
    ("recipes/bert_base.py", "no such file. Did you mean --config bert_base?"),
])
def test_a_recipe_that_is_not_there_is_one_line_with_a_hint(tmp_path, monkeypatch, name, hint):
  monkeypatch.chdir(tmp_path)
  (line,) = problems_of(recipes.load, name)
  assert line.startswith(f"--config {name}: {hint}")


def test_a_recipe_is_based_on_the_one_in_its_folder_and_not_on_a_bundled_one(tmp_path):
  (tmp_path / "bert_base.py").write_text("from bertgpt.config import base\ndef get_config():\n"
                                         "  config = base()\n  config.seed = 7\n"
                                         "  return config")
  (tmp_path / "mine.py").write_text("from bertgpt.config import recipes\ndef get_config():\n"
                                    "  return recipes.beside(__file__, 'bert_base')")
  assert recipes.load(str(tmp_path / "mine.py")).seed == 7


def test_a_recipe_calls_a_function_of_another(tmp_path):
  (tmp_path / "sizes.py").write_text("from bertgpt.config import base\ndef make(seed):\n"
                                     "  config = base()\n  config.seed = 8 // seed\n"
                                     "  return config")
  for seed in (2, 0):
    (tmp_path / f"mine{seed}.py").write_text(
        "from bertgpt.config import recipes\ndef get_config():\n"
        f"  return recipes.module_beside(__file__, 'sizes').make({seed})")
  assert recipes.load(str(tmp_path / "mine2.py")).seed == 4
  wrong = str(tmp_path / "mine0.py")
  (line,) = problems_of(recipes.load, wrong)
  assert line.startswith(f"--config {wrong}, line 3: ZeroDivisionError")


def test_a_line_of_a_recipe_is_named_for_a_relative_path_too(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text("\n\nx = 1 / 0")
  assert problems_of(recipes.load, "./mine.py") == [
      "--config ./mine.py, line 3: ZeroDivisionError: division by zero"]


def test_recipe_takes_an_argument_after_a_colon(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text("from bertgpt.config import base\ndef get_config(seed='0'):\n"
                  "  config = base()\n  config.seed = int(seed)\n  return config")
  assert recipes.load(str(path)).seed == 0
  assert recipes.load(f"{path}:5").seed == 5


def test_recipe_without_sweep_says_so(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text("from bertgpt.config import base as get_config")
  (line,) = problems_of(recipes.load_sweep, str(path))
  assert "get_sweep" in line


# -------------------------------------------------------------------- JSON


@pytest.mark.parametrize("text", [
    "", "{", "[]", "1", '{"phases": 1}', b"\xff", "[" * 100_000, '{"seed": ' + "9" * 5000 + "}"])
def test_invalid_json_of_a_config_is_one_line(text):
  (line,) = problems_of(recipes.from_json, text)
  assert line.startswith("config.json is not the config of a run: ")


def test_json_round_trip_keeps_values_and_tuples():
  config = config_lib.base()
  config.phases = (config_lib.phase(steps=5), config_lib.phase(seq_len=512))
  config.profile.steps = (1, 2)
  config.data.source = 'text:"ü"\n'
  again = recipes.from_json(recipes.to_json(config))
  assert again == config
  assert isinstance(again.phases, tuple)
  assert again.mesh.axes.batch == ("data", "fsdp")
  assert again.profile.steps == (1, 2)
  with pytest.raises(AttributeError):
    again.model.widht = 1
  config_lib.validate(again)


def test_json_of_another_version_is_refused_field_by_field():
  stored = json.loads(recipes.to_json(config_lib.base()))
  del stored["model"]["width"]
  stored["model"]["depth"] = 3
  stored["phases"][0].update(steps="many", seq_len=None)
  assert problems_of(recipes.from_json, json.dumps(stored)) == [
      "config.json has the unknown field model.depth",
      "config.json lacks the field model.width",
      "config.json: phases[0].seq_len: expected int, got None",
      "config.json: phases[0].steps: expected int, got 'many'"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "3", '{"phases": 3}'])
def test_text_that_is_not_a_config_is_refused(text):
  (line,) = problems_of(recipes.from_json, text)
  assert "not the config of a run" in line


def test_json_runs_no_code(tmp_path):
  stored = json.loads(recipes.to_json(config_lib.base()))
  trap = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
  stored["data"]["source"] = trap
  assert recipes.from_json(json.dumps(stored)).data.source == trap
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", [
    "from bertgpt import presets, recipes",
    "from bertgpt.presets import BERT",
    "from bertgpt.recipes import load",
    "from bertgpt.finetune_config import base as tuning_base",
])
def test_a_recipe_of_version_0_1_still_finds_what_it_imports(tmp_path, line):
  path = tmp_path / "recipe.py"
  path.write_text(f"{line}\nfrom bertgpt.config import base as get_config\n")
  assert recipes.load(str(path)).seed == 0
