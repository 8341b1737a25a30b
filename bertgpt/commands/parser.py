"""A parser of flags whose errors are one line."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bertgpt.errors import ConfigError


class Parser(argparse.ArgumentParser):
  """A parser that raises ConfigError for wrong flags, and accepts --config.FIELD arguments."""

  def parse_known_args(  # type: ignore[override]  # One of argparse's overloads is enough.
      self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
  ) -> tuple[argparse.Namespace, list[str]]:
    """Returns the values of the flags, and the --config.FIELD arguments.

    Args:
      args: arguments of the command; None: those of this process.
      namespace: object that gets the values; None: a new one.
    Raises:
      ConfigError: an argument is missing, malformed or unknown.
    """
    self._given = args
    # argparse would take a field whose value has a space for the value of another flag.
    given = list(sys.argv[1:] if args is None else args)
    end = given.index("--") if "--" in given else len(given)
    fields = [argument for argument in given[:end] if argument.startswith("--config.")]
    others = [argument for argument in given[:end] if argument not in fields]
    namespace, rest = super().parse_known_args([*others, *given[end:]], namespace)
    for flag in rest:
      if not flag.startswith("--config."):
        self.error(self.describe_unknown(flag))
    return namespace, [*fields, *rest]

  def error(self, message: str) -> NoReturn:
    """Raises ConfigError with a message of argparse, or with a better one."""
    unknown = self._find_unknown()
    if unknown:  # A flag that seems to be missing may be misspelled.
      message = self.describe_unknown(unknown[0])
    end = "" if message.endswith("?") else "."
    raise ConfigError(f"{message}{end} See {self.prog} --help")

  def describe_unknown(self, flag: str) -> str:
    """Returns a message about an unknown flag, with the closest known one if there is any."""
    known = [name for action in self._actions for name in action.option_strings
             if name.startswith("--")]
    close = (self._find_fields(flag)
             or difflib.get_close_matches(flag.split("=")[0], known, n=1))
    sentences = [f"unknown argument {flag}."]
    if close:
      sentences.append(f"Did you mean {' or '.join(close)}?")
    elif not flag.startswith("-"):
      sentences.append("Put a value with spaces in quotes.")
    if self.get_default("takes_fields"):
      sentences.append("Config fields are given as --config.FIELD=VALUE.")
    return " ".join(sentences).removesuffix(".")

  def _find_fields(self, flag: str) -> list[str]:
    """Returns --config.FIELD=VALUE for the config fields that an unknown flag may stand for."""
    given, _, value = flag.partition("=")
    if not given.startswith("--") or not (module := self.get_default("takes_fields")):
      return []
    from bertgpt.config import leaves  # Slow to import.
    arguments = list(sys.argv[1:] if self._given is None else self._given)
    if not value and flag in arguments:
      value = "".join(arguments[arguments.index(flag) + 1:][:1])
      value = "VALUE" if value.startswith("--") else value
    path = "." + given.removeprefix("--").replace("-", "_")
    fields = [field for field, _ in leaves(importlib.import_module(module).base())]
    return [f"--config.{field}={value or 'VALUE'}" for field in fields
            if f".{field}".endswith(path)]

  def _find_unknown(self) -> list[str]:
    """Returns arguments that no flag takes; [] if anything but missing required flags is wrong."""
    if self._subparsers is not None or not self.exit_on_error:
      return []
    groups: list[Any] = [*self._actions, *self._mutually_exclusive_groups]
    needed = [x for x in groups if x.required]
    try:
      self.exit_on_error = False  # argparse then raises its errors.
      for x in needed:
        x.required = False
      _, rest = super().parse_known_args(self._given)
    except (argparse.ArgumentError, ConfigError):
      return []
    finally:
      self.exit_on_error = True
      for x in needed:
        x.required = True
    return [flag for flag in rest if not flag.startswith("--config.")]
