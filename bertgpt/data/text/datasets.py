"""Datasets that TFDS prepared as ArrayRecord."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bertgpt.data.text.intake import TextCleaner
from bertgpt.errors import DataError, one_line


def open_builder(target: str, field: str = "data.source") -> Any:
  """Returns the TFDS builder of a dataset.

  Args:
    target: name/config:version, or a folder.
    field: config field that names the dataset, for messages.
  Raises:
    DataError: TFDS does not know the dataset.
  """
  # TFDS takes seconds to import, and few sources need it.
  import tensorflow_datasets as tfds
  try:
    if _is_folder(target):
      return tfds.builder_from_directory(os.path.expanduser(target))
    return tfds.builder(target)
  except Exception as e:  # TFDS raises errors of many types for one cause.
    raise DataError(f"{field}: TFDS does not know the dataset {target!r} ({one_line(e)}). "
                    "Give name/config:version or the folder of a prepared one") from e


def _is_folder(target: str) -> bool:
  return target.startswith((".", "/", "~"))


def open_dataset(target: str, split: str, field: str = "data.source") -> Sequence:
  """Opens the records of a split of a dataset prepared by TFDS, for random access.

  Args:
    target: name/config:version, or a folder.
    split: name of the split, possibly with a range, such as 'train[:10%]'.
    field: config field that names the dataset, for messages.
  Raises:
    DataError: there is no such dataset or split, or it is not prepared.
  """
  return _open(open_builder(target, field), target, split, field)


def list_shards(target: str, split: str) -> list[str]:
  """Returns the paths of the files that hold the records of a split, in their order.

  Args:
    target, split: see `open_dataset`.
  Raises:
    DataError: see `open_dataset`.
  """
  builder = open_builder(target)
  _open(builder, target, split, "data.source")  # It chooses the format, on which the names depend.
  instructions = builder.info.splits[split].file_instructions
  return list(dict.fromkeys(os.fspath(each.filename) for each in instructions))


def _open(builder: Any, target: str, split: str, field: str) -> Sequence:
  try:
    return builder.as_data_source(split=split)
  except Exception as e:  # As in `open_builder`.
    raise DataError(f"{field}: tfds:{target}:{split} cannot be read ({one_line(e)}). "
                    + _correct(target, split, list(builder.info.splits))) from e


def _correct(target: str, split: str, names: list[str]) -> str:
  """Returns the end of a message: what to do about a split that cannot be read.

  Args:
    target, split: see `open_dataset`.
    names: splits that are prepared.
  """
  if names and re.sub(r"\[.*", "", split) not in names:
    return f"Choose one of its splits: {', '.join(names)}"
  if _is_folder(target):
    return "Check the range, or prepare the dataset again with file_format='array_record'"
  return (f"Prepare it with tfds.builder({target!r}, "
          "file_format='array_record').download_and_prepare()")


def read_dataset(records: Any, name: str) -> Iterator[tuple[int, dict]]:
  """Yields (index, record) for every record.

  Args:
    records: a split, as `open_dataset` returns it.
    name: name of the dataset, for messages.
  Raises:
    DataError: a record cannot be read.
  """
  for first in range(0, len(records), 256):
    batch = range(first, min(first + 256, len(records)))
    try:
      values = records.__getitems__(list(batch))
    except Exception as e:  # ArrayRecord and the decoders of TFDS raise bare errors.
      raise DataError(f"{name}: records from {first} cannot be read ({one_line(e)}). "
                      "Prepare the dataset again") from e
    yield from zip(batch, values, strict=True)


def find_value(record: Any, feature: str, name: str) -> Any:
  """Returns the value of a feature.

  Args:
    record: one record.
    feature: name of the feature; 'a/b' is the feature b of the feature a.
    name: name of the dataset, for messages.
  Raises:
    DataError: the record has no such feature.
  """
  for key in feature.split("/"):
    if not isinstance(record, dict) or key not in record:
      raise DataError(f"{name}: no feature {feature!r}. " + (
          f"Choose one of {', '.join(record)}" if isinstance(record, dict)
          else "Leave out what follows the name of a feature that holds no others"))
    record = record[key]
  return record


def take_text(value: Any, feature: str, place: str, cleaner: TextCleaner) -> str | None:
  """Returns the clean text of a feature; None if it must be skipped.

  Args:
    value: value of the feature: UTF-8, or text.
    feature: name of the feature, for messages.
    place: dataset and index of the record, for messages.
    cleaner: decides about text that is not clean.
  Raises:
    DataError: the value is not a text, or it is not clean, and the cleaner does not replace it.
  """
  if isinstance(value, bytes):
    return cleaner.decode(value, place, 0)
  if isinstance(value, str):
    return cleaner.clean(value, place, 0)
  raise DataError(f"{place}: feature {feature!r} is not text. Choose a feature or dataset of text")
