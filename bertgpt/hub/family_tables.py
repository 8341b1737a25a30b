"""Tables of the families: what the folders of other programs hold for the models of a family."""

import importlib
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bertgpt.config import ConfigDict, families
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub.architecture import Architecture
from bertgpt.runs.trained import Trained

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


class Opened(NamedTuple):
  """A model of `transformers`, or of another program, as ours.

  Attributes:
    config: config of a run that holds the model.
    params: nested dicts of float32 arrays.
    tokenizer: tokenizer of the model.
    fields: fields of the config that describe the model -> values.
    fresh: heads that the folder lacks, keys of `HEADS`.
    notes: what differs from the folder, one line each.
    bos_id, beginning_id: see `Trained`.
  """

  config: ConfigDict
  params: dict[str, Any]
  tokenizer: Tokenizer
  fields: dict[str, Any]
  fresh: tuple[str, ...]
  notes: tuple[str, ...]
  bos_id: int = -1
  beginning_id: int = -1


class FolderFormat(NamedTuple):
  """Folders of another program than `transformers`.

  Attributes:
    find_files: any path -> its files, or None if it is not such a folder.
    read: such a folder -> its model.
    write: (pretrained model, existing folder) -> what was written, for the user.
  """

  find_files: Callable[[pathlib.Path], Any]
  read: Callable[[pathlib.Path], Opened]
  write: Callable[[Trained, pathlib.Path], str]


class FamilyTable(NamedTuple):
  """What a family is in other programs. It is `TABLE` in the module with the family's name.

  Attributes:
    architectures: all that a config.json may mean; none: `transformers` has no such model.
    choose: whole config -> the architecture that computes exactly its model; None: the only one.
    own_format: folders of pretrained models if they are not those of `transformers`.
  """

  architectures: tuple[Architecture, ...]
  choose: Callable[[ConfigDict], Architecture] | None = None
  own_format: FolderFormat | None = None


def find_table(family: str) -> FamilyTable:
  """Returns the table of a family.

  Args:
    family: name of the family.
  """
  return importlib.import_module(f"bertgpt.hub.{family}").TABLE


def choose_for_export(config: ConfigDict) -> Architecture:
  """Returns the architecture that computes exactly the model of a config.

  Args:
    config: a whole config.
  Raises:
    ConfigError: `transformers` has no such model.
  """
  table = find_table(config.model.family)
  if not table.architectures:
    rest = (" for tasks. Export the pretrained run" if table.own_format
            else ". It cannot be exported")
    raise ConfigError(f"model.family={config.model.family!r}: transformers has no such model{rest}")
  return table.choose(config) if table.choose else table.architectures[0]


def find_own_format(path: pathlib.Path) -> FolderFormat | None:
  """Returns the format of another program than `transformers` whose files are in a folder, if any.

  Args:
    path: any path.
  """
  formats = (find_table(family).own_format for family in families.FAMILIES)
  return next((own for own in formats if own and own.find_files(path)), None)


def find_candidates(hf_config: Mapping[str, Any]) -> list[Architecture]:
  """Returns the architectures of the model_type of a model; there is at least one.

  Args:
    hf_config: content of config.json.
  Raises:
    DataError: the model_type is missing or not supported, or the model cannot be read.
  """
  tables = [find_table(family).architectures for family in families.FAMILIES]
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
