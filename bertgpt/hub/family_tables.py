"""Tables of the families: that of a family, and the architectures that a config.json may mean."""

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bertgpt.config import families
from bertgpt.errors import DataError
from bertgpt.hub.architecture import Architecture

# Key of config.json, if it is set -> what cannot be read, and what to do.
UNREADABLE = {
    "auto_map": ("the model is computed by code in its folder, which is never run",
                 "Choose a model of one of transformers' own classes"),
    "quantization_config": ("its weights are quantized",
                            "Choose the model that was not quantized, or load it with "
                            "transformers, call dequantize() and save it again"),
    "transformers_weights": ("it names another file of weights",
                             "Load the model with transformers and save it again with "
                             "save_pretrained()"),
}


def find_table(family: str) -> Any:
  """Returns the module with the table of a family.

  Args:
    family: name of the family.
  """
  return importlib.import_module(f"bertgpt.hub.{family}")


def find_candidates(hf_config: Mapping[str, Any]) -> list[Architecture]:
  """Returns the architectures of the model_type of a model; there is at least one.

  Args:
    hf_config: content of config.json.
  Raises:
    DataError: the model_type is missing or not supported, or the model cannot be read.
  """
  tables = [find_table(family).ARCHITECTURES for family in families.FAMILIES]
  known = [a for table in tables for a in table]
  kinds = ", ".join(sorted({a.model_type for a in known}))
  if hf_config.get("model_type") is None:
    raise DataError(f'config.json has no model_type. Add it, as "model_type": "bert"; it is one of '
                    f"{kinds}")
  kind = str(hf_config["model_type"])
  found = [a for a in known if a.model_type == kind]
  if not found:
    raise DataError(f"model_type={kind!r} in config.json: not supported. Choose a model of {kinds}")
  _check_classes(hf_config.get("architectures"), kind, tables)
  _check_readable(hf_config)
  return found


def _check_readable(hf_config: Mapping[str, Any]) -> None:
  """Checks that a model is computed by classes of `transformers`, from weights that can be read.

  Args:
    hf_config: content of config.json.
  Raises:
    DataError: it is not; names the key.
  """
  for key, (what, remedy) in UNREADABLE.items():
    if hf_config.get(key):
      raise DataError(f"config.json has {key}: {what}. {remedy}")


def _check_classes(names: Any, kind: str, tables: Iterable[Sequence[Architecture]]) -> None:
  """Checks that a config.json does not name the classes of another family than its model_type.

  Args:
    names: its `architectures`, if it has any.
    kind: its `model_type`, which is in one of the tables.
    tables: the architectures of every family.
  Raises:
    DataError: it names such classes.
  """
  names = [str(name) for name in names] if isinstance(names, list) else []
  of_kind, of_prefix = {}, {}
  for number, table in enumerate(tables):
    of_kind |= {a.model_type: number for a in table}
    of_prefix |= {_class_prefix(a.name): number for a in table}
  found = {of_prefix.get(_class_prefix(name), of_kind[kind]) for name in names}
  if found and of_kind[kind] not in found:
    raise DataError(f"config.json has model_type={kind!r} but architectures={', '.join(names)}, "
                    "another kind of model. Restore the config.json that came with the weights")


def _class_prefix(name: str) -> str:
  """Returns the part of a class's name that the classes of its model_type share, such as 'GPT2'."""
  return re.sub(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|Model)$", "", name)
