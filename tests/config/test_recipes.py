"""bertgpt.config.recipes: recipes are found and run, and their errors are one line."""

import pathlib

import pytest

from bertgpt.config import recipes
from bertgpt.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def problems_of(call, *args) -> list[str]:
  with pytest.raises(ConfigError) as e:
    call(*args)
  return str(e.value).splitlines()


@pytest.mark.parametrize("text, expected", [
    ("x = 1", "defines no get_config"),
    ("def get_config(:", "SyntaxError"),
    ("import no_such_module_anywhere", "no_such_module_anywhere"),
    ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
    ("def get_config():\n  raise SystemExit('no data')", "line 2: SystemExit: no data"),
    ("from bertgpt.config import base\ndef get_config():\n  config = base()\n"
     "  config.sead = 1\n  return config", "sead"),
    ("from bertgpt.config import base\ndef get_config():\n  config = base()\n"
     "  config.data.source = None\n  return config", "data.source=None"),
    ("from bertgpt.config import base\ndef get_config():\n  config = base()\n"
     "  config.data.unlock()\n  config.data.foo = 1\n  return config", "unknown field data.foo"),
    ("from bertgpt.config import base\ndef get_config():\n  config = base()\n"
     "  config.data.unlock()\n  del config.data.language\n  return config",
     "no field data.language"),
])
def test_broken_recipe_is_one_line_that_names_the_file(tmp_path, text, expected):
  path = tmp_path / "recipe.py"
  path.write_text(text)
  (line,) = problems_of(recipes.load, str(path))
  assert str(path) in line
  assert expected in line


@pytest.mark.parametrize("parameters, argument, expected", [
    ("", ":x", ":x: get_config() of this recipe takes no argument. Leave out ':x'"),
    ("", ":", ":: get_config() of this recipe takes no argument. Leave out ':'"),
    ("name", "", ": get_config() of this recipe needs an argument. Write {path}:ARGUMENT")])
def test_an_argument_that_a_recipe_does_not_take_or_lacks(tmp_path, parameters, argument,
                                                          expected):
  path = tmp_path / "recipe.py"
  path.write_text(f"def get_config({parameters}):\n  return base()\n")
  assert problems_of(recipes.load, f"{path}{argument}") == [
      f"--config {path}{expected.format(path=path)}"]


def test_folders_of_recipes_may_have_a_colon_in_their_names(tmp_path):
  folder = tmp_path / "12:30"
  folder.mkdir()
  (folder / "other.py").write_text("from bertgpt.config import base\n\n\n"
                                   "def get_config(seed='1'):\n  config = base()\n"
                                   "  config.seed = int(seed)\n  return config\n")
  (folder / "recipe.py").write_text("from bertgpt.config import recipes\n\n\n"
                                    "def get_config():\n"
                                    "  return recipes.beside(__file__, 'other', argument='7')\n")
  assert recipes.load(str(folder / "recipe.py")).seed == 7
  other = str(folder / "other.py")
  assert [recipes.load(path).seed for path in (other, f"{other}:3")] == [1, 3]


def test_get_sweep_gets_the_argument_or_refuses_it(tmp_path):
  """Its differences would belong to another config."""
  path = tmp_path / "recipe.py"
  path.write_text("def get_sweep():\n  return [{'seed': 1}]\n")
  assert problems_of(recipes.load_sweep, f"{path}:x") == [
      f"--config {path}:x: get_sweep() of this recipe takes no argument. Leave out ':x'"]
  path.write_text("def get_sweep(seed='1'):\n  return [{'seed': int(seed)}]\n")
  assert recipes.load_sweep(f"{path}:5") == [{"seed": 5}]
  assert recipes.load_sweep(str(path)) == [{"seed": 1}]


@pytest.mark.parametrize("body, words", [
    ("yield {'seed': 0}; yield {'seed': 1 / 0}", ", line 2: "), ("return 3", "must return a dict")])
def test_an_error_of_get_sweep_is_one_line(tmp_path, body, words):
  path = tmp_path / "recipe.py"
  path.write_text(f"def get_sweep():\n  {body}\n")
  (line,) = problems_of(recipes.load_sweep, str(path))
  assert str(path) in line and words in line


def test_a_recipe_may_have_dataclasses_with_annotations_as_text(tmp_path):
  """They look up the module of their class."""
  (tmp_path / "r.py").write_text(
      "from __future__ import annotations\nimport dataclasses\n"
      "from bertgpt.config import base\n@dataclasses.dataclass\nclass Size:\n  width: int = 32\n"
      "def get_config():\n  config = base()\n  config.model.width = Size().width\n"
      "  return config\n")
  assert recipes.load(str(tmp_path / "r.py")).model.width == 32


@pytest.mark.parametrize("field", ["model.width", "seed", "mesh.axes.batch", "phases[0].steps"])
def test_a_placeholder_that_must_be_filled_is_one_line(tmp_path, field):
  (tmp_path / "r.py").write_text(
      "from ml_collections import config_dict\nfrom bertgpt.config import base\n"
      f"def get_config():\n  config = base()\n  kind = type(config.{field})\n"
      f"  config.{field} = config_dict.required_placeholder(kind)\n  return config\n")
  line, = problems_of(recipes.load, str(tmp_path / "r.py"))
  assert f"r.py: {field} is a required_placeholder, which a recipe cannot have." in line


def test_a_recipe_may_be_in_the_home_folder(tmp_path, monkeypatch):
  """The shell does not expand the ~ of --config=~/r.py."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "r.py").write_text("from bertgpt.config import base\n"
                                 "def get_config(seed='0'):\n  config = base()\n"
                                 "  config.seed = int(seed)\n  return config\n")
  assert recipes.find("~/r.py") == str(tmp_path / "r.py")
  assert recipes.load("~/r.py").seed == 0 and recipes.load("~/r.py:7").seed == 7


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
