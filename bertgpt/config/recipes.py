"""Recipes: files that define a config. They are found by their path or name, and run."""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from ml_collections import config_dict

from bertgpt import files
from bertgpt.config import ConfigDict, base, checks, leaves, phase
from bertgpt.config.overrides import override as override  # Earlier versions have them here.
from bertgpt.config.overrides import set_field as set_field
from bertgpt.config.overrides import try_override as try_override
from bertgpt.errors import ConfigError, UserError, one_line

# Name of a module in recipes of version 0.1 -> its current name.
FORMER_NAMES = {
    "bertgpt.finetune_config": "bertgpt.config.finetuning",
    "bertgpt.presets": "bertgpt.config.presets",
    "bertgpt.recipes": "bertgpt.config.recipes",
}


def load(path: str, make_base: Callable[[], ConfigDict] = base) -> ConfigDict:
  """Runs a recipe and returns its config, locked.

  Args:
    path: file of the recipe, or its name if it comes with bertgpt, optionally followed by ':' and
      an argument for its get_config().
    make_base: makes a config with the same fields; `base` of `pretraining` or `finetuning`.
  Raises:
    ConfigError: there is no such recipe, it has no `get_config`, or that raises an error or returns
      another kind of config, or one with a field that is None.
  """
  config = _call(path, "get_config")
  if not isinstance(config, ConfigDict) or config.keys() != make_base().keys():
    for command, other in (("train", base), ("finetune", _finetuning_base)):
      if isinstance(config, ConfigDict) and config.keys() == other().keys():
        raise ConfigError(f"--config {path}: is a recipe for `bertgpt {command}`, and not for this "
                          "command. `--config help` lists those for this command")
    module = make_base.__module__.removesuffix(".pretraining")  # The module that recipes import.
    raise ConfigError(f"--config {path}: get_config() must return a config made by "
                      f"{module}.base()")
  if required := list(_find_required(config)):
    raise ConfigError("\n".join(
        f"--config {path}: {field} is a required_placeholder, which a recipe cannot have. Give it "
        f"a value, which --config.{field}=VALUE can change" for field in required))
  phases = config.phases if "phases" in config else ()
  if not all(isinstance(p, ConfigDict) and p.keys() == phase().keys() for p in phases):
    raise ConfigError(f"--config {path}: phases must be a tuple of bertgpt.config.phase(...)")
  of_base = {field for field, _ in leaves(make_base())}
  given = {field for field, _ in leaves(config)}
  if wrong := sorted(field for field in given ^ of_base if not field.startswith("phases")):
    problem = "an unknown field" if wrong[0] in given else "no field"
    raise ConfigError(f"--config {path}: its config has {problem} {wrong[0]}. Set "
                      "only fields that base() has, and remove none")
  if empty := [field for field, value in leaves(config) if value is None]:
    raise ConfigError("\n".join(f"--config {path}: {checks.describe_empty(f)}" for f in empty))
  config.lock()
  return config


def _find_required(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  """Yields the fields that are a `required_placeholder` of ml_collections without a value."""
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      yield from _find_required(value, f"{prefix}{name}.")
    elif isinstance(value, tuple) and all(isinstance(item, ConfigDict) for item in value):
      for i, item in enumerate(value):
        yield from _find_required(item, f"{prefix}{name}[{i}].")
    elif isinstance(value, config_dict.FieldReference):
      try:
        value.get()
      except config_dict.RequiredValueError:
        yield f"{prefix}{name}"


def _finetuning_base() -> ConfigDict:
  # Imported here, because that module imports this package.
  from bertgpt.config import finetuning
  return finetuning.base()


def beside(file: str, name: str, make_base: Callable[[], ConfigDict] = base,
           argument: str = "") -> ConfigDict:
  """Returns the config of another recipe in the same folder, on which a recipe is based.

  Args:
    file: `__file__` of the calling recipe.
    name: name of the other recipe, such as 'bert_base'.
    make_base: see `load`.
    argument: argument for its get_config(); '': none.
  """
  path = str(pathlib.Path(file).with_name(f"{name}.py"))
  return load(f"{path}:{argument}" if argument else path, make_base)


def module_beside(file: str, name: str) -> ModuleType:
  """Returns the module of another recipe in the same folder, whose functions a recipe calls.

  Args:
    file: `__file__` of the calling recipe.
    name: name of the other recipe, such as 'ettin_17m'.
  """
  path = str(pathlib.Path(file).with_name(f"{name}.py"))
  return _run(path, path)


def load_sweep(path: str) -> list[dict[str, Any]]:
  """Returns the overrides of every run of a recipe's `get_sweep()`, as flat dicts.

  Args:
    path: recipe, as for `load`.
  Raises:
    ConfigError: see `load`.
  """
  found = _call(path, "get_sweep")
  runs = list(found) if isinstance(found, Iterable) else []
  if not runs or not all(isinstance(overrides, dict) for overrides in runs):
    raise ConfigError(f"--config {path}: get_sweep() must return a dict of FIELD: VALUE per run")
  return runs


def folder() -> pathlib.Path:
  """Returns the folder of the recipes that come with bertgpt: configs/ of the repository.

  An installed package has them in a folder of its own.
  """
  package = pathlib.Path(__file__).parents[1]
  installed = package / "configs"
  return installed if installed.is_dir() else package.with_name("configs")


def names() -> list[str]:
  """Returns the names of the recipes that come with bertgpt, sorted."""
  return sorted(path.stem for path in folder().glob("*.py"))


def list_lines(fields: str = "bertgpt.config") -> list[str]:
  """Returns a line per recipe that comes with bertgpt: its name and the start of its docstring.

  No recipe is run.

  Args:
    fields: name of the module whose `base()` makes the configs of the listed recipes.
  """
  trees = {name: ast.parse((folder() / f"{name}.py").read_text("utf-8")) for name in names()}
  listed = [name for name, tree in trees.items() if _module_of_base(tree) == fields]
  firsts = [(ast.get_docstring(trees[name]) or "").partition("\n")[0] for name in listed]
  width = max(map(len, listed))
  return [f"{name:<{width}}  {first}" for name, first in zip(listed, firsts, strict=True)]


def _module_of_base(tree: ast.Module) -> str:
  """Returns the name of the module whose `base()` makes the config of a recipe."""
  imported = [f"{node.module}.{alias.name}" for node in tree.body
              if isinstance(node, ast.ImportFrom) for alias in node.names]
  tunes = any(f"{name}.".startswith("bertgpt.config.finetuning.") for name in imported)
  return "bertgpt.config.finetuning" if tunes else "bertgpt.config"


def find(name: str) -> str:
  """Returns the file of a recipe.

  Args:
    name: path of a file, or name of a recipe that comes with bertgpt, such as 'bert_base'.
      An existing file takes precedence.
  Raises:
    ConfigError: there is neither; the message suggests the closest names, or lists all of them.
  """
  if os.path.isfile(file := files.expand(name)):
    return os.path.abspath(file)
  known, path = names(), pathlib.Path(name)
  if name in known:
    return str(folder() / f"{name}.py")
  if name and path.is_dir():
    raise ConfigError(f"--config {name}: is a folder. Give a file in it, or the name of a recipe; "
                      "--config help lists them")
  if len(path.parts) > 1:
    beside = [file.name for file in path.parent.glob("*.py")]
    close = difflib.get_close_matches(path.name, beside, n=1)
    hint = (f"Did you mean --config {path.stem}?" if path.stem in known else
            f"Did you mean {path.with_name(close[0])}?" if close else
            "Give an existing file, or the name of a recipe; --config help lists them")
    raise ConfigError(f"--config {name}: no such file. {hint}")
  close = difflib.get_close_matches(path.stem, known, n=3)
  hint = (f"Did you mean {' or '.join(close)}?" if close else
          f"The recipes that come with bertgpt are {', '.join(known)}")
  raise ConfigError(f"--config {name}: no such file or recipe. {hint}")


def _run(name: str, file: str) -> ModuleType:
  """Returns the module of a recipe; its code may raise any error."""
  digest = hashlib.sha256(os.fsencode(os.path.abspath(file))).hexdigest()[:8]
  spec = importlib.util.spec_from_file_location(
      f"bertgpt_recipe_{pathlib.Path(file).stem}_{digest}", file)
  if spec is None:
    raise ConfigError(f"--config {name}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  for former, now in FORMER_NAMES.items():
    sys.modules.setdefault(former, importlib.import_module(now))
  sys.modules[spec.name] = module  # Dataclasses look up their annotations there.
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[spec.name]
    raise
  return module


def _call(path: str, function: str) -> Any:
  """Returns the result of a function of a recipe. An error in the recipe becomes one line."""
  name, argument = _split_argument(path)
  file = find(name)
  try:
    module = _run(name, file)
    if not hasattr(module, function):
      raise ConfigError(f"--config {name}: the file defines no {function}(). For an example, see "
                        "the recipe wiki_mini")
    _check_argument(getattr(module, function), name, argument)
    result = getattr(module, function)(*argument)
    return list(result) if inspect.isgenerator(result) else result  # Its errors are the recipe's.
  except UserError:
    raise
  except (Exception, SystemExit) as e:  # Or a recipe could end the program as if it had succeeded.
    lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__)
             if frame.filename == file]
    place = f"{name}, line {lines[-1]}" if lines else name
    raise ConfigError(f"--config {place}: {one_line(e)}") from e


def _split_argument(path: str) -> tuple[str, list[str]]:
  """Returns the file or the name of a recipe, and its argument, if there is one.

  Folders may have a colon in their names.
  """
  if os.path.isfile(files.expand(path)):
    return path, []
  file, ending, argument = path.rpartition(".py:")
  if ending:
    return f"{file}.py", [argument]
  name, *rest = path.split(":", 1)
  return name, rest


def _check_argument(function: Callable, name: str, argument: list[str]) -> None:
  signature = inspect.signature(function)
  try:
    signature.bind(*argument)
  except TypeError as e:
    if argument:
      raise ConfigError(f"--config {name}:{argument[0]}: {function.__name__}() of this recipe "
                        f"takes no argument. Leave out ':{argument[0]}'") from e
    raise ConfigError(f"--config {name}: {function.__name__}() of this recipe needs an "
                      f"argument. Write {name}:ARGUMENT") from e
