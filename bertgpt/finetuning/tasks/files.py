"""Files of a task: found by their official names, plain or compressed, and read."""

import numbers
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bertgpt import files
from bertgpt.data.text.intake import (
    DAMAGED,
    HEAD_BYTES,
    Counts,
    TextCleaner,
    mark_length,
    open_file,
    read_lines,
    take_text,
)
from bertgpt.errors import DataError, one_line
from bertgpt.files import parse_json

ENDINGS = ("", ".gz", ".xz", ".zst")
ID_KEYS = ("id", "index", "idx")  # Columns and keys that name an example; the first is used.


def find(folder: str, names: Sequence[str], *, needed: bool = True,
         remedy: str = "give its folder") -> pathlib.Path | None:
  """Returns the first of some files that exists, plain or compressed.

  Args:
    folder: folder of the task's files, the field `task.data`.
    names: names of the files, relative to the folder.
    needed: raise an error if no file exists; otherwise None is returned.
    remedy: another remedy for the error message, such as a field of the config.
  Raises:
    DataError: the folder does not exist, or a needed file is not in it.
  """
  root = files.expand(folder)
  if not root.is_dir():
    raise DataError(f"task.data={folder}: no such folder. Give the one that holds the task's files")
  for name in names:
    for ending in ENDINGS:
      if (path := root / (name + ending)).is_file():
        return path
  if needed:
    raise DataError(f"task.data={folder}: holds no {' or '.join(names)} (also .gz, .xz, .zst). "
                    f"Put the file there, or {remedy}")
  return None


def find_given(folder: str, given: str, field: str, names: Sequence[str], *,
               needed: bool = True) -> list[pathlib.Path]:
  """Returns the files that a field of the config names, or the official one if it is empty.

  Args:
    folder: folder of the task's files, the field `task.data`.
    given: value of the field: file names separated by commas, or one name that contains commas.
    field: name of the field, for error messages.
    names: official names; the first that exists is used.
    needed: raise an error if no official file exists; otherwise [] is returned.
  Raises:
    DataError: the folder does not exist, or a file is not in it.
  """
  if given:
    is_name = (files.expand(folder) / given).is_file()
    names_given = [given] if is_name else filter(None, map(str.strip, given.split(",")))
    return [find(folder, [name]) for name in names_given]
  remedy = f"give its folder, or name your own file with {field}=FILE"
  path = find(folder, names, needed=needed, remedy=remedy)
  return [path] if path else []


def read_text_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields (number of the line, from 1; line without its end) of a UTF-8 file.

  Args:
    path: file, plain or compressed.
  Raises:
    DataError: the file cannot be read, or is not valid UTF-8 without NULs.
  """
  cleaner = TextCleaner("error", Counts(), repair="Repair the file")
  for number, (offset, line) in enumerate(read_lines(str(path), cleaner, can_replace=False), 1):
    yield number, cleaner.decode(line, str(path), offset).removesuffix("\n")


def read_json(path: pathlib.Path) -> Any:
  """Returns the value in a JSON file.

  Args:
    path: file, plain or compressed.
  Raises:
    DataError: the file is damaged, or is not valid JSON.
  """
  try:
    with open_file(str(path)) as f:
      data = f.read()
    return parse_json(data[mark_length(data[:HEAD_BYTES], str(path), Counts()):])
  except DAMAGED as e:
    raise DataError(f"{path}: cannot be read ({one_line(e)}). Fetch it again") from e
  except ValueError as e:
    raise DataError(f"{path}: {e}. Give an official file") from e


def take_id(value: Any) -> str:
  """Returns a JSON value as a name; 1.0, which pandas writes for 1, becomes 1.

  Args:
    value: JSON value.
  Raises:
    ValueError: it is neither a text nor a whole number; see `take_text`.
  """
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, (str, numbers.Integral)):
    raise ValueError(f"the id {str(value)[:40]!r} is neither a text nor a whole number")
  return take_text(str(value), "the id", keeps_line_ends=True)


def choose_examples(count: int, limit: int, *, is_random: bool) -> np.ndarray:
  """Returns the indices of the examples that are used, int [N], ascending.

  Args:
    count: number of examples.
    limit: maximum number of examples; 0: all.
    is_random: choose them at random, always the same ones; otherwise the first are used.
  """
  if not limit or limit >= count:
    return np.arange(count)
  if not is_random:
    return np.arange(limit)
  return np.sort(np.random.default_rng(0).permutation(count)[:limit])
