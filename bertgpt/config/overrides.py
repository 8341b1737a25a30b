"""Fields that are set by their paths: arguments of the command line, and single values."""

import copy
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from bertgpt.config import ConfigDict, leaves, suggestions
from bertgpt.errors import refuse

LISTS_OF_NAMES = ("--config.mesh.axes.", "--config.task.labels")  # They may be empty.


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
  refuse(problems)
  return config


def try_override(config: ConfigDict, arguments: Sequence[str]) -> tuple[ConfigDict, list[str]]:
  """Applies the valid arguments, and describes the others.

  Args:
    config: config, which is not changed.
    arguments: arguments of the command line, as for `override`.
  Returns:
    (a locked copy of the config with the valid overrides, one line per invalid argument).
  """
  config = copy.deepcopy(config)  # A field that refers to another one follows it.
  problems, given = [], {}
  for argument in arguments:
    field = argument.split("=", 1)[0].removeprefix("--config.")
    if not argument.startswith("--config."):
      problems.append(f"{argument}: write --config.{argument.removeprefix('config.')}")
      continue
    if "=" not in argument:
      problems.append(f"{argument}: give the value as --config.{field}=VALUE")
      continue
    if field not in (known := dict(leaves(config))):
      problems.append(f"--config.{field}: no such field{suggestions.hint(field, known)}")
      continue
    # A private registry of flags, so that the override is declared only for this call.
    registry = flags.FlagValues()
    argv = ["bertgpt", _quote_names(argument, known[field])]
    config_flags.DEFINE_config_dict("config", config, flag_values=registry, sys_argv=argv)
    try:
      registry(argv)
      given[field] = dict(leaves(config))[field]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, IndexError):
      value = argument.split("=", 1)[1]
      problems.append(f"--config.{field}: expected {type(known[field]).__name__}, got {value!r}")
  found = dict(leaves(config))
  problems += [f"--config.{field}={value!r}: the recipe ties this field to another one, which is "
               "set too. Give one of them" for field, value in given.items()
               if repr(found[field]) != repr(value)]  # NaN differs from itself.
  config = config.copy_and_resolve_references()
  if "phases" in config:
    config.phases = tuple(p.copy_and_resolve_references() for p in config.phases)
  config.lock()
  return config, problems


def _quote_names(argument: str, default: Any) -> str:
  """Returns an argument whose list of names, as in `data,fsdp`, is a tuple in Python's syntax."""
  flag, _, value = argument.partition("=")
  # An empty list does not say what it holds, but these hold names.
  is_list = isinstance(default, tuple) and (default or flag.startswith(LISTS_OF_NAMES))
  if not is_list or any(type(x) is not str for x in default) or set(value) & set("'\"()[]"):
    return argument
  return f"{flag}={tuple(filter(None, map(str.strip, value.split(','))))!r}"


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
