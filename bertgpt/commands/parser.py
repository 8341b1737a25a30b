"""A parser of flags that says in one line what is wrong with them."""

import argparse
import difflib

from bertgpt.errors import ConfigError


class Parser(argparse.ArgumentParser):
  """Raises ConfigError for wrong flags; `parse_known_args` lets only --config.FIELD pass."""

  def parse_known_args(self, args=None, namespace=None):
    """Returns (namespace, the --config.FIELD arguments).

    Raises:
      ConfigError: an argument is missing, malformed or unknown.
    """
    self._given = args
    namespace, rest = super().parse_known_args(args, namespace)
    for flag in rest:
      if not flag.startswith("--config."):
        self.error(self.describe_unknown(flag))
    return namespace, rest

  def error(self, message: str):
    unknown = self._find_unknown()
    if unknown:  # A flag that seems to be missing may be there, misspelt.
      message = self.describe_unknown(unknown[0])
    raise ConfigError(f"{message}; see {self.prog} --help")

  def describe_unknown(self, flag: str) -> str:
    known = [name for action in self._actions for name in action.option_strings
             if name.startswith("--")]
    close = difflib.get_close_matches(flag.split("=")[0], known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown argument {flag}; {hint}config fields are given as --config.FIELD=VALUE"

  def _find_unknown(self) -> list[str]:
    """Arguments that no flag takes; empty if more is wrong than that required ones are missing."""
    if self._subparsers is not None or not self.exit_on_error:
      return []
    needed = [x for x in (*self._actions, *self._mutually_exclusive_groups) if x.required]
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
