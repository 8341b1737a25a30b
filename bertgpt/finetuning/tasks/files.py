"""The files of a task: found by their official names, plain or compressed, and read as lines."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bertgpt.data.text.intake import DAMAGED, Counts, TextCleaner, open_file, read_lines
from bertgpt.errors import DataError, one_line
from bertgpt.files import parse_json

ENDINGS = ("", ".gz", ".xz", ".zst")


def find(folder: str, names: Sequence[str], *, needed: bool = True) -> pathlib.Path | None:
  """The first of some files that is there, also compressed.

  Args:
    names: relative to the folder.
    needed: raise if there is none.
  Raises:
    DataError: no such folder, or no such file in it.
  """
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise DataError(f"task.data={folder}: no such folder; give the one that holds the task's files")
  for name in names:
    for ending in ENDINGS:
      if (path := root / (name + ending)).is_file():
        return path
  if needed:
    raise DataError(f"task.data={folder}: holds no {' or '.join(names)} (also .gz, .xz, .zst); "
                    "put the file there, or give its folder")
  return None


def find_given(folder: str, given: str, names: Sequence[str], *,
               needed: bool = True) -> list[pathlib.Path]:
  """The files that a field names, comma-joined; where it is empty, the first of `names`."""
  if given:
    return [find(folder, [name.strip()]) for name in given.split(",")]
  path = find(folder, names, needed=needed)
  return [path] if path else []


def read_text_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """(number from 1, line without its end) of a file in UTF-8."""
  cleaner = TextCleaner("error", Counts(), remedy="Repair the file")
  for number, (offset, line) in enumerate(read_lines(str(path), cleaner, can_replace=False), 1):
    yield number, cleaner.decode(line, str(path), offset).rstrip("\r\n")


def read_json(path: pathlib.Path) -> Any:
  """The value in a file of JSON, plain or compressed.

  Raises:
    DataError: it is damaged, or none.
  """
  try:
    with open_file(str(path)) as f:
      return parse_json(f.read())
  except DAMAGED as e:
    raise DataError(f"{path}: cannot be read ({one_line(e)}); fetch it again") from e
  except ValueError as e:
    raise DataError(f"{path}: {e}; give an official file") from e


def choose_examples(count: int, limit: int, *, is_random: bool) -> np.ndarray:
  """Numbers of the examples that are used, ascending; a random choice is always the same."""
  if not limit or limit >= count:
    return np.arange(count)
  if not is_random:
    return np.arange(limit)
  return np.sort(np.random.default_rng(0).permutation(count)[:limit])
