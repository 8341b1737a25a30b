"""Short texts from a file, all at once and in order: for what is done with a trained model."""

import json
import pathlib
from collections.abc import Sequence

from bertgpt.data.text.intake import Counts, Intake, read_lines
from bertgpt.errors import ConfigError, DataError


def read_text(path: pathlib.Path, flag: str) -> str:
  """The whole of a UTF-8 file, plain, .gz, .xz or .zst.

  Args:
    flag: that the path was given by; errors begin with it.
  Raises:
    ConfigError: there is no such file.
    DataError: it is damaged, or no text.
  """
  if not path.is_file():
    raise ConfigError(f"{flag} {path}: no such file")
  intake = Intake("error", Counts(), remedy="repair it")
  raw = b"".join(line for _, line in read_lines(str(path), intake, mendable=False))
  return intake.decode(raw, str(path), 0)


def read_texts(path: pathlib.Path, flag: str, field: str = "text") -> list[str]:
  """A text a line; of a .jsonl file, the field of the object in each line that has one.

  Raises:
    ConfigError: there is no such file, it holds no text, or an object in it lacks the field.
    DataError: as `read_text`, or a line is no JSON.
  """
  lines = read_text(path, flag).removesuffix("\n").split("\n")
  if ".jsonl" in path.suffixes:
    found = [_field(line, field, f"{flag} {path}: line {i}")
             for i, line in enumerate(lines, 1) if line.strip()]
  else:
    found = [line.removesuffix("\r") for line in lines]
  if not any(text.strip() for text in found):
    raise ConfigError(f"{flag} {path}: holds no text; give a text a line")
  return found


def _field(line: str, field: str, place: str) -> str:
  try:
    record = json.loads(line)
  except (json.JSONDecodeError, RecursionError) as e:
    raise DataError(f"{place}: is no JSON; repair it") from e
  text = record.get(field) if isinstance(record, dict) else None
  if not isinstance(text, str):
    raise ConfigError(f"{place}: has no text in a field {field!r}; rename the one that has it")
  return text


def read_columns(path: pathlib.Path, flag: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
  """The named columns of a file of tab-separated values, whose first line names them.

  Quotes mean nothing, and blank lines are passed over.

  Raises:
    ConfigError: there is no such file, or it lacks a column.
    DataError: as `read_text`, or a line has too few values.
  """
  # str.splitlines would cut at U+2028 and its like too.
  header, *rows = [line.removesuffix("\r").split("\t")
                   for line in read_text(path, flag).split("\n")]
  if missing := [column for column in columns if column not in header]:
    raise ConfigError(f"{flag} {path}: has no column {', '.join(missing)}; its first line must "
                      f"name {', '.join(columns)}, parted by tabs")
  places = [header.index(column) for column in columns]
  numbered = [(i, row) for i, row in enumerate(rows, 2) if row != [""]]
  for i, row in numbered:
    if len(row) <= max(places):
      raise DataError(f"{flag} {path}: line {i} has {len(row)} values, the first line "
                      f"{len(header)}; repair it")
  return [tuple(row[place] for place in places) for _, row in numbered]
