"""Short texts from a file, all at once and in order, as input for a trained model."""

import pathlib
from collections.abc import Sequence

from bertgpt import files
from bertgpt.data.text.intake import Counts, TextCleaner, read_lines
from bertgpt.errors import ConfigError, DataError


def read_text(path: pathlib.Path, flag: str) -> str:
  """Returns the whole text of a UTF-8 file.

  Args:
    path: plain, .gz, .xz or .zst file.
    flag: flag that names the file; error messages begin with it.
  Raises:
    ConfigError: there is no such file.
    DataError: the file is damaged or not text.
  """
  if not path.is_file():
    raise ConfigError(f"{flag} {path}: no such file")
  cleaner = TextCleaner("error", Counts(), remedy="Repair it")
  raw = b"".join(line for _, line in read_lines(str(path), cleaner, can_replace=False))
  return cleaner.decode(raw, str(path), 0)


def read_texts(path: pathlib.Path, flag: str, field: str = "text") -> list[str]:
  """Returns the lines of a file, or one field of the objects in a .jsonl file.

  Args:
    path: plain or compressed file.
    flag: flag that names the file; error messages begin with it.
    field: field of the JSON objects that holds the text. Blank lines of .jsonl files are skipped.
  Raises:
    ConfigError: there is no such file, it holds no text, or an object in it lacks the field.
    DataError: see `read_text`; or a line is not valid JSON.
  """
  lines = read_text(path, flag).removesuffix("\n").split("\n")
  if ".jsonl" in path.suffixes:
    texts = [_field(line, field, f"{flag} {path}: line {i}")
             for i, line in enumerate(lines, 1) if line.strip()]
  else:
    texts = [line.removesuffix("\r") for line in lines]
  if not any(text.strip() for text in texts):
    raise ConfigError(f"{flag} {path}: holds no text. Give one text per line")
  return texts


def _field(line: str, field: str, place: str) -> str:
  try:
    record = files.parse_json(line)
  except ValueError as e:
    raise DataError(f"{place}: {e}. Repair it") from e
  text = record.get(field) if isinstance(record, dict) else None
  if not isinstance(text, str):
    raise ConfigError(f"{place}: has no field {field!r} with text. Rename the field that holds it")
  return text


def read_columns(path: pathlib.Path, flag: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """Returns some columns of a file of tab-separated values, whose first line names them.

  Quotes have no special meaning, and blank lines are skipped.

  Args:
    path: plain or compressed file.
    flag: flag that names the file; error messages begin with it.
    columns: names of the columns.
  Returns:
    For every row, the values of `columns` in that order.
  Raises:
    ConfigError: there is no such file, or it lacks a column.
    DataError: see `read_text`; or a line has too few values.
  """
  # str.splitlines would also cut at U+2028 and other Unicode line ends.
  header, *rows = [line.removesuffix("\r").split("\t")
                   for line in read_text(path, flag).split("\n")]
  if missing := [column for column in columns if column not in header]:
    raise ConfigError(f"{flag} {path}: has no column {', '.join(missing)}. Its first line must "
                      f"name {', '.join(columns)}, separated by tabs")
  places = [header.index(column) for column in columns]
  numbered = [(i, row) for i, row in enumerate(rows, 2) if row != [""]]
  for i, row in numbered:
    if len(row) <= max(places):
      raise DataError(f"{flag} {path}: line {i} has {len(row)} values, the first line "
                      f"{len(header)}. Repair it")
  return [tuple(row[place] for place in places) for _, row in numbered]
