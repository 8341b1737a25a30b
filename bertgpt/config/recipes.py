"""Configs from recipes, overrides and config.json."""

import ast
import difflib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections.config_flags import config_flags

from bertgpt import files
from bertgpt.config import ConfigDict, base, checks, leaves, phase, suggestions
from bertgpt.errors import ConfigError, UserError, one_line

# Name of a module in recipes of version 0.1 -> its current name.
FORMER_NAMES = {
    "bertgpt.finetune_config": "bertgpt.config.finetuning",
    "bertgpt.presets": "bertgpt.config.presets",
    "bertgpt.recipes": "bertgpt.config.recipes",
}

# Fields that version 0.1 did not have. A config.json without them gets the defaults, with which
# the model is the same as before, except for FORMER_VALUES.
ADDED_FIELDS = {
    "pooling", "dtype", "model.matmul", "model.embedding_width", "model.layer_groups",
    "model.skip_first_norm", "model.norm_kind", "model.norm_bias", "model.use_bias", "model.mlp",
    "model.window",
    "model.global_every", "model.position", "model.rope_theta", "model.rope_theta_local",
    "model.dropout_at", "model.pooling", "model.embedding_sharing", "model.generator_width",
    "model.generator_num_heads", "model.generator_mlp_dim", "model.character_width",
    "model.filters", "model.num_highways", "model.state_clip", "model.lstm_residual",
    "model.target_words", "optimizer.initial_accumulator", "optimizer.freeze",
    "objective.ngram", "objective.permutation_block", "objective.memory",
    "objective.mask_rule", "objective.rtd_weight", "optimizer.decay_rule",
    "optimizer.layer_decay", "data.max_unused",
    "phases.warmup_rule", "phases.mask_prob", "phases.rope_theta", "phases.rope_theta_local",
    "eval.mask_prob", "eval.rows_by", "checkpoint.every_steps", "checkpoint.every_minutes",
    "checkpoint.keep_every_steps", "checkpoint.keep_best", "system.compile_timeout_minutes",
    "log.trackers", "log.project", "log.group",
    "train.spike_guard", "train.spike_factor", "train.spike_window", "train.skip_steps",
}


# What earlier versions did instead of the default of a field that was added later.
FORMER_VALUES = {"eval.rows_by": "phase"}


class FormerlyIgnored(NamedTuple):
  """A field that the configs of earlier versions could set, and that those versions did not read.

  Attributes:
    field: the field; its default has the same effect as not reading it.
    objective: objective of the configs.
    came_with: a field that was added in the version that first reads `field`.
  """

  field: str
  objective: str
  came_with: str


FORMERLY_IGNORED = (FormerlyIgnored("data.isolate_documents", "mlm", "eval.mask_prob"),)


# ----------------------------------------------------------------- loading


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
                          "command. `--config help` lists all recipes")
    module = make_base.__module__.removesuffix(".pretraining")  # The module that recipes import.
    raise ConfigError(f"--config {path}: get_config() must return a config made by "
                      f"{module}.base()")
  phases = config.phases if "phases" in config else ()
  if not all(isinstance(p, ConfigDict) and p.keys() == phase().keys() for p in phases):
    raise ConfigError(f"--config {path}: phases must be a tuple of bertgpt.config.phase(...)")
  if empty := [field for field, value in leaves(config) if value is None]:
    raise ConfigError("\n".join(f"--config {path}: {checks.describe_empty(f)}" for f in empty))
  config.lock()
  return config


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
  runs = list(_call(path, "get_sweep") or ())
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


def list_lines() -> list[str]:
  """Returns a line per recipe that comes with bertgpt: its name and the start of its docstring.

  No recipe is run.
  """
  known = names()
  width = max(map(len, known))
  firsts = [(ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text("utf-8"))) or ""
             ).partition("\n")[0] for name in known]
  return [f"{name:<{width}}  {first}" for name, first in zip(known, firsts, strict=True)]


def find(name: str) -> str:
  """Returns the file of a recipe.

  Args:
    name: path of a file, or name of a recipe that comes with bertgpt, such as 'bert_base'.
      An existing file takes precedence.
  Raises:
    ConfigError: there is neither; the message suggests the closest names, or lists all of them.
  """
  if os.path.isfile(name):
    return os.path.abspath(name)
  known, path = names(), pathlib.Path(name)
  if name in known:
    return str(folder() / f"{name}.py")
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
  spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
  if spec is None:
    raise ConfigError(f"--config {name}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  for former, now in FORMER_NAMES.items():
    sys.modules.setdefault(former, importlib.import_module(now))
  spec.loader.exec_module(module)
  return module


def _call(path: str, function: str) -> Any:
  """Returns the result of a function of a recipe. An error in the recipe becomes one line."""
  name, *argument = path.split(":", 1)
  file = find(name)
  try:
    module = _run(name, file)
    if not hasattr(module, function):
      raise ConfigError(f"--config {name}: the file defines no {function}(). For an example, see "
                        "the recipe wiki_mini")
    return getattr(module, function)(*(argument if function == "get_config" else ()))
  except UserError:
    raise
  except Exception as e:
    lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__)
             if frame.filename == file]
    place = f"{name}, line {lines[-1]}" if lines else name
    raise ConfigError(f"--config {place}: {one_line(e)}") from e


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
  """Applies arguments such as `--config.a.b=c` and `--config.phases[0].steps=c`.

  Args:
    config: config, which is not changed.
    arguments: arguments of the command line.
  Returns:
    A locked copy of the config with the overrides.
  Raises:
    ConfigError: an argument does not name a field or has the wrong type; the message has one line
      per argument.
  """
  config, problems = try_override(config, arguments)
  if problems:
    raise ConfigError("\n".join(problems))
  return config


def try_override(config: ConfigDict, arguments: Sequence[str]) -> tuple[ConfigDict, list[str]]:
  """Applies the valid arguments, and describes the others.

  Args:
    config: config, which is not changed.
    arguments: arguments of the command line, as for `override`.
  Returns:
    (a locked copy of the config with the valid overrides, one line per invalid argument).
  """
  config = config.copy_and_resolve_references()
  if "phases" in config:
    config.phases = tuple(p.copy_and_resolve_references() for p in config.phases)
  problems = []
  for argument in arguments:
    field = argument.split("=", 1)[0].removeprefix("--config.")
    if "=" not in argument:
      problems.append(f"{argument}: give the value as --config.{field}=VALUE")
      continue
    if field not in (known := dict(leaves(config))):
      problems.append(f"--config.{field}: no such field{suggestions.hint(field, known)}")
      continue
    # A private registry of flags, so that the override is declared only for this call.
    registry = flags.FlagValues()
    argv = ["bertgpt", argument]
    config_flags.DEFINE_config_dict("config", config, flag_values=registry, sys_argv=argv)
    try:
      registry(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, IndexError):
      value = argument.split("=", 1)[1]
      problems.append(f"--config.{field}: expected {type(known[field]).__name__}, got {value!r}")
  config.lock()
  return config, problems


# -------------------------------------------------------------------- JSON


def to_json(config: ConfigDict) -> str:
  """Returns a config as JSON; `from_json` is the inverse."""
  return json.dumps(_to_plain(config), indent=2)


def from_json(text: str | bytes, make_base: Callable[[], ConfigDict] = base) -> ConfigDict:
  """Rebuilds a config from JSON without running code. Lists become tuples again.

  Fields that were not read by the version that wrote the JSON get their defaults, see
  `find_ignored`; missing fields get what that version did, see `FORMER_VALUES`.

  Args:
    text: content of a config.json, as text or UTF-8.
    make_base: see `load`.
  Raises:
    ConfigError: the text is not a config of this version; the message has one line per field.
  """
  config = make_base()
  try:
    stored = files.parse_json(text)
    if "phases" in config:
      config.phases = tuple(phase() for _ in stored["phases"])
  except (ValueError, KeyError, TypeError) as e:
    raise ConfigError(f"config.json is not the config of a run: {one_line(e)}") from e
  problems = []
  fields = dict(leaves(config))
  values = dict(_plain_leaves(stored))
  for field in fields.keys() - values.keys():
    if field in FORMER_VALUES:
      set_field(config, field, FORMER_VALUES[field])
    if re.sub(r"\[\d+\]", "", field) in ADDED_FIELDS:
      continue
    problems.append(f"config.json lacks the field {field}")
  for field in values.keys() - fields.keys():
    problems.append(f"config.json has the unknown field {field}")
  for field in fields.keys() & values.keys():
    value = _with_tuples(values[field])
    try:
      if value is None:  # A ConfigDict would accept it.
        raise TypeError
      set_field(config, field, value)
    except TypeError:
      expected = type(fields[field]).__name__
      problems.append(f"config.json: {field}: expected {expected}, got {values[field]!r}")
  if problems:
    raise ConfigError("\n".join(sorted(problems)))
  for field in find_ignored(stored):
    set_field(config, field, fields[field])
  return config


def find_former(stored: Any) -> dict[str, Any]:
  """Returns the fields in which a run does what earlier versions did, from `FORMER_VALUES`.

  Args:
    stored: content of its config.json, as JSON values.
  """
  values = dict(_plain_leaves(stored))
  return {field: value for field, value in FORMER_VALUES.items()
          if values.get(field, value) == value}


def find_ignored(stored: Any) -> list[str]:
  """Returns the fields that a stored config sets, but the version that wrote it did not read.

  Args:
    stored: content of a config.json, as JSON values.
  """
  values, defaults = dict(_plain_leaves(stored)), dict(leaves(base()))
  return [field for field, objective, came_with in FORMERLY_IGNORED
          if values.get("objective.name") == objective and came_with not in values
          and values.get(field, defaults[field]) != defaults[field]]


def _with_tuples(value: Any) -> Any:
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def set_field(config: ConfigDict, field: str, value: Any) -> None:
  """Sets a field by its path.

  Args:
    config: config to change.
    field: path, such as 'a.b' or 'phases[0].steps'.
    value: new value.
  Raises:
    TypeError: the value has the wrong type.
  """
  *path, last = field.replace("[", ".").replace("]", "").split(".")
  for name in path:
    config = config[int(name)] if name.isdigit() else config[name]
  config[last] = value


def _to_plain(value):
  if isinstance(value, ConfigDict):
    return {name: _to_plain(value[name]) for name in value}
  if isinstance(value, (tuple, list)):
    return [_to_plain(item) for item in value]
  return value


def _plain_leaves(value, prefix="") -> Iterator[tuple[str, Any]]:
  if isinstance(value, dict):
    for name, item in value.items():
      yield from _plain_leaves(item, f"{prefix}.{name}" if prefix else name)
  elif isinstance(value, list) and value and isinstance(value[0], dict):
    for i, item in enumerate(value):
      yield from _plain_leaves(item, f"{prefix}[{i}]")
  else:
    yield prefix, value
