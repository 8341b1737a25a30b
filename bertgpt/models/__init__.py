"""Flax Linen modules. They know no mesh, no data and no optimizer."""

from flax.linen import Module
from ml_collections import ConfigDict, FrozenConfigDict

from bertgpt.models.bert import Bert
from bertgpt.models.gpt import Gpt

__all__ = ["Bert", "FAMILIES", "Gpt", "Module", "make_model"]

FAMILIES = {"bert": Bert, "gpt": Gpt}


def make_model(config: ConfigDict) -> Module:
  """The module of `config.model`, whose `vocab_size` must be set."""
  return FAMILIES[config.model.family](FrozenConfigDict(config.model))
