"""The module and the table of parameters of a family, found by its name."""

import importlib
from types import ModuleType

from bertgpt.config import ConfigDict


def find_module(family: str) -> ModuleType:
  """Returns `bertgpt.models.FAMILY`, which holds `MODEL` and `PARAMETERS`.

  Args:
    family: a key of `config.families.FAMILIES`.
  """
  return importlib.import_module(f"bertgpt.models.{family}")


def find_class(config: ConfigDict) -> type:
  """Returns the Flax module of a family.

  Args:
    config: `config.model`.
  """
  return find_module(config.family).MODEL
