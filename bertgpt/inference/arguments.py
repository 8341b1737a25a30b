"""Checks of the arguments of Python functions; the command line checks its flags itself."""

from collections.abc import Iterable

from bertgpt.errors import ConfigError
from bertgpt.inference.draws import Sampling


def as_list(texts: Iterable[str], name: str = "texts") -> list[str]:
  """Returns texts as a list.

  Args:
    texts: any number of texts, but not a single one, whose letters would be the texts.
    name: name of the argument.
  Raises:
    ConfigError: it is a single text.
  """
  if isinstance(texts, str):
    raise ConfigError(f"{name}={texts[:40]!r}: give a list of texts, such as [{texts[:40]!r}]")
  return list(texts)


def check_at_least(least: float, **values: float | None) -> None:
  """Checks the values of arguments.

  Args:
    least: the smallest value that is allowed.
    values: argument -> its value; None: it is left out.
  Raises:
    ConfigError: a value is smaller.
  """
  for name, value in values.items():
    if value is not None and value < least:
      raise ConfigError(f"{name}={value}: give at least {least}")


def check_sampling(sampling: Sampling) -> None:
  """Checks the settings of draws.

  Args:
    sampling: the settings.
  Raises:
    ConfigError: one of them is out of its range.
  """
  check_at_least(0, temperature=sampling.temperature, top_k=sampling.top_k)
  check_at_least(1e-6, top_p=sampling.top_p)
  if sampling.top_p > 1:
    raise ConfigError(f"top_p={sampling.top_p}: give at most 1")
