"""Flax Linen modules, one file per family. They know no mesh, no data and no optimizer."""

from collections.abc import Callable

from flax.linen import Module
from ml_collections import ConfigDict, FrozenConfigDict

from bertgpt.models import heads
from bertgpt.models.inputs import Inputs
from bertgpt.models.lookup import find_class, find_module
from bertgpt.models.parameters import Param, Table, find

__all__ = ["Inputs", "Module", "Param", "Table", "axes_of", "make_model", "parameter_table"]


def make_model(config: ConfigDict) -> Module:
  """Returns the module of `config.model`, whose `vocab_size` must be set."""
  return find_class(config.model)(FrozenConfigDict(config.model))


def axes_of(config: ConfigDict) -> Callable[[str], tuple[str | None, ...]]:
  """Returns the function from the path of a parameter to its logical axes, for `sharding`."""
  table = parameter_table(config)
  return lambda path: find(table, path).axes


def parameter_table(config: ConfigDict) -> Table:
  """Returns the table of parameters of `config.model.family`, under an output layer of a task too.
  """
  return (*find_module(config.model.family).PARAMETERS, *heads.PARAMETERS)
