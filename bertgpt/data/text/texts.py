"""Short texts from a file or the command line, in order, as input for a trained model.

`bertgpt.data.text.intake` says what their lines, blank lines and line ends are.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from bertgpt import files
from bertgpt.data.text import fields, intake, paths
from bertgpt.data.text.intake import Counts, TextCleaner
from bertgpt.errors import ConfigError, DataError

_CLEANER = TextCleaner("error", Counts())


def read_text(path: pathlib.Path, flag: str) -> str:
  """Returns the whole text of a UTF-8 file; its only line end is a line feed.

  Args:
    path: plain, .gz, .xz or .zst file.
    flag: flag that names the file; error messages begin with it.
  Raises:
    ConfigError: there is no such file.
    DataError: the file is damaged or not text.
  """
  return "".join(iterate_lines(path, flag))


def iterate_lines(path: pathlib.Path, flag: str) -> Iterator[str]:
  """Yields the lines of a file with their line ends; joined, they are what `read_text` returns.

  Args:
    path: plain, .gz, .xz or .zst file.
    flag: flag that names the file; error messages begin with it.
  Raises:
    ConfigError: there is no such file.
    DataError: the file is damaged or not text.
  """
  files.require_file(path, flag)
  for offset, line in intake.read_lines(str(path), _CLEANER, can_replace=False):
    yield _CLEANER.decode(line, str(path), offset)


def clean_text(text: str, place: str) -> str:
  """Returns a text of the command line as `read_text` would return it from a file.

  Args:
    text: value of a flag.
    place: flag; error messages begin with it.
  Raises:
    DataError: the text has bytes that are not valid UTF-8, which Python reads as lone surrogates.
  """
  return _CLEANER.clean(text.removeprefix(intake.BYTE_ORDER_MARK), place, 0)


def read_texts(path: pathlib.Path, flag: str, field: str = "text") -> list[str]:
  """Returns the lines of a file, or one field of the objects in a .jsonl file.

  Args:
    path, flag, field: see `iterate_texts`.
  Raises:
    ConfigError: see `iterate_texts`.
    DataError: see `iterate_texts`.
  """
  return list(iterate_texts(path, flag, field))


def iterate_texts(path: pathlib.Path, flag: str, field: str = "text") -> Iterator[str]:
  """Yields the lines of a file, or a field of the JSON objects in its lines, one at a time.

  Args:
    path: plain or compressed file; for the endings of JSON, see `paths.JSON_ENDINGS`.
    flag: flag that names the file; error messages begin with it.
    field: field of the JSON objects that holds the text, or several, see `fields.find_text`. Blank
      lines between objects are skipped.
  Raises:
    ConfigError: there is no such file, an object in it lacks the field, or, raised at its end, it
      held no text.
    DataError: see `read_text`; or a line is not valid JSON.
  """
  is_json, has_text = paths.is_json_lines(path), False
  for i, line in enumerate(iterate_lines(path, flag), 1):
    line = line.removesuffix("\n")
    if is_json and not line.strip():
      continue
    text = _field(line, field, f"{flag} {path}: line {i}") if is_json else line
    has_text = has_text or bool(text.strip())
    yield text
  if not has_text:
    raise ConfigError(f"{flag} {path}: holds no text. Give one text per line")


def iterate_records(path: pathlib.Path, flag: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the JSON objects in the lines of a file, whatever its name ends in.

  Args:
    path: plain or compressed file; blank lines are skipped.
    flag: flag that names the file; error messages begin with it.
  Yields:
    (flag, file and line for error messages, the object).
  Raises:
    ConfigError: there is no such file.
    DataError: see `read_text`; or a line is not a JSON object.
  """
  for i, line in enumerate(iterate_lines(path, flag), 1):
    if not line.strip():
      continue
    place = f"{flag} {path}: line {i}"
    record = _parse(line, place)
    if not isinstance(record, dict):
      raise DataError(f"{place}: is not a JSON object. {intake.JSON_LINES} Repair it")
    yield place, record


def _parse(line: str, place: str) -> Any:
  try:
    return intake.parse_record(line)
  except ValueError as e:
    raise DataError(f"{place}: {e}. {intake.JSON_LINES} Repair it") from e


def _field(line: str, field: str, place: str) -> str:
  record = _parse(line, place)
  text = fields.find_text(record, field)
  if text is None:
    raise ConfigError(f"{place}: has no field {field!r} with text. "
                      f"{fields.describe(record, field)} Give every object a text in this field")
  try:
    return intake.take_text(text, field)
  except ValueError as e:
    raise DataError(f"{place}: {e}. Repair it") from e


def iterate_columns(path: pathlib.Path, flag: str,
                    columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
  """Yields some columns of a file of tab-separated values, whose first line names them.

  Quotes have no special meaning, and blank lines are skipped.

  Args:
    path: plain or compressed file.
    flag: flag that names the file; error messages begin with it.
    columns: names of the columns.
  Yields:
    For every row, the values of `columns` in that order.
  Raises:
    ConfigError: there is no such file, or it lacks a column.
    DataError: see `read_text`; a column is there twice; or a line has too few values, or more than
      the first line.
  """
  lines = (line.removesuffix("\n") for line in iterate_lines(path, flag))
  header = next(lines, "").split("\t")
  if missing := [column for column in columns if column not in header]:
    raise ConfigError(f"{flag} {path}: has no column {', '.join(missing)}. Its first line must "
                      f"name {', '.join(columns)}, separated by tabs")
  if twice := [column for column in columns if header.count(column) > 1]:
    raise DataError(f"{flag} {path}: has the column {twice[0]} twice. Rename one")
  places = [header.index(column) for column in columns]
  for i, line in enumerate(lines, 2):
    if not line.strip():
      continue
    row = line.split("\t")
    if len(row) <= max(places) or any(map(str.strip, row[len(header):])):
      raise DataError(f"{flag} {path}: line {i} has {len(row)} values, but the first line has "
                      f"{len(header)}. Repair it")
    yield tuple(row[place] for place in places)
