"""Families of models: a record for each, without JAX, and one line in the table.

Only this table and the files named after a family know its name. Other code asks for an ability,
as in `find(config).can("generate")`.
"""

from ml_collections import ConfigDict

from bertgpt.config.families import (
  albert,
  bert,
  electra,
  elmo,
  gpt,
  modernbert,
  modernbert_decoder,
  xlnet,
)
from bertgpt.config.families.family import ABILITIES, HEADS, HEADS_OF_ABILITY, Family

__all__ = ["ABILITIES", "FAMILIES", "HEADS", "HEADS_OF_ABILITY", "Family", "find"]

FAMILIES: dict[str, Family] = {
    "albert": albert.FAMILY,
    "bert": bert.FAMILY,
    "electra": electra.FAMILY,
    "elmo": elmo.FAMILY,
    "gpt": gpt.FAMILY,
    "modernbert": modernbert.FAMILY,
    "modernbert_decoder": modernbert_decoder.FAMILY,
    "xlnet": xlnet.FAMILY,
}


def find(config: ConfigDict) -> Family:
  """Returns the record of the family that `config.model.family` names."""
  return FAMILIES[config.model.family]
