"""Texts from Parquet files, a few rows at a time.

A row group may hold gigabytes. It is read in batches of rows, from pages that are decompressed one
after the other. So memory is bounded by the largest values and pages, whatever the size of the
files and of their row groups.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bertgpt import files
from bertgpt.data.text.intake import MAX_DOCUMENT_BYTES, Counts, is_blank
from bertgpt.errors import DataError, one_line, shorten

BATCH_BYTES = 2**20   # Estimated from the mean size of the values of a row group.
BATCH_ROWS = 64       # Limit in case a row group of short values has a batch of long ones.
BUFFER_BYTES = 2**18  # Without a buffer, pyarrow reads a column of a row group at once.
MAX_NAMES = 20        # Columns that a message names.

Column = tuple[str, ...]  # Name of a column, followed by those of the fields inside it.


def open_files(paths: Sequence[str], columns: str) -> Iterator[tuple[str, list[bytes]]]:
  """Opens Parquet files and yields the texts of every row, in order.

  Args:
    paths: files.
    columns: name of a column of strings or bytes, or several names, separated by commas. 'a.b' is
      the field b of the column a. A column whose own name contains the comma or the dot takes
      precedence.
  Returns:
    For every row: its place, such as 'FILE row 7', counted from 0; and the bytes of the columns,
    without those that are null or empty.
  Raises:
    DataError: at once, if a file is not a Parquet file or lacks a column; while reading, if a row
      group cannot be read.
  """
  for path in paths:
    with _open(path) as file:
      _find_columns(file.schema_arrow, columns, path)
  return (row for path in paths for row in _read_file(path, columns))


def gather(rows: Iterable[tuple[str, list[bytes]]],
           counts: Counts) -> Iterator[tuple[str, list[bytes], bool]]:
  """Yields documents of rows that are lines: they end at a blank row.

  Args:
    rows: see `open_files`.
    counts: tally of documents that are cut between rows, because they have more than
      `MAX_DOCUMENT_BYTES`.
  Yields:
    The place of the first row, the lines as the only text, and whether the document is cut.
  """
  lines, start, size, is_cut = [], "", 0, False
  for place, values in rows:
    line = b"\n".join(values)
    has_text = not is_blank(line)
    is_long = has_text and size + len(line) + 1 > MAX_DOCUMENT_BYTES
    if lines and (is_long or not has_text):
      counts["long documents cut"] += is_long and not is_cut
      yield start, [b"\n".join(lines) + b"\n" * is_long], is_cut or is_long
      lines, size, is_cut = [], 0, is_long
    if has_text:
      start = start if lines else place
      lines.append(line)
      size += len(line) + 1
  if lines:
    yield start, [b"\n".join(lines)], is_cut


def _open(path: str) -> Any:
  # pyarrow takes time to import, and few sources need it.
  from pyarrow import parquet
  try:
    source = files.open_read(path) if files.is_remote(path) else path
    return parquet.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False,
                               page_checksum_verification=True)
  except Exception as e:  # Arrow raises errors of many types for one cause.
    files.raise_if_unanswered(e)
    raise DataError(f"{path}: is not a Parquet file that can be read ({_reason(path, e)}). "
                    "Check the file or fetch it again") from e


def _reason(path: str, e: Exception) -> str:
  try:
    with files.open_read(path) as f:
      head = f.read(64)
  except OSError:
    return one_line(e)
  if re.match(files.LFS_POINTER, head):
    return "it is a Git LFS pointer: `git lfs pull` fetches the file"
  if head.startswith((b"ARROW1", b"\xff" * 4)):
    return "it is an Arrow file: Dataset.to_parquet of `datasets` converts it"
  return one_line(e) if head else "it is empty"


def _read_file(path: str, columns: str) -> Iterator[tuple[str, list[bytes]]]:
  with _open(path) as file:
    found = _find_columns(file.schema_arrow, columns, path)
    row = 0
    for group in range(file.num_row_groups):
      for values in _read_group(file, group, found, path):
        yield f"{path} row {row}", [value for value in values if value]
        row += 1


def _read_group(file: Any, group: int, columns: list[Column],
                path: str) -> Iterator[tuple[bytes | None, ...]]:
  """Yields the values of the columns for every row of a row group."""
  names = [".".join(column) for column in columns]
  try:
    info = file.metadata.row_group(group)
    chunks = [info.column(i) for i in range(info.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
    num_rows = min(max(BATCH_BYTES * info.num_rows // max(size, 1), 1), BATCH_ROWS)
    missing = info.num_rows
    for batch in file.iter_batches(num_rows, [group], list(dict.fromkeys(names)),
                                   use_threads=False):
      yield from zip(*(_values(batch, column) for column in columns), strict=True)
      missing -= batch.num_rows
    if missing:
      raise ValueError(f"{missing} of {info.num_rows} rows are missing")
  except Exception as e:  # As in `_open`.
    files.raise_if_unanswered(e)
    raise DataError(f"{path}: row group {group} cannot be read ({one_line(e)}). "
                    "Check the file or fetch it again") from e


def _values(batch: Any, column: Column) -> list[bytes | None]:
  """Returns the values of a column as bytes, because nothing has checked that they are UTF-8."""
  import pyarrow
  from pyarrow import compute
  array = batch.column(column[0])
  if len(column) > 1:
    array = compute.struct_field(array, list(column[1:]))
  return array.cast(pyarrow.large_binary()).to_pylist()


# ----------------------------------------------------------------- columns


def _find_columns(schema: Any, columns: str, path: str) -> list[Column]:
  """Returns the columns of a field such as 'title,text'.

  Raises:
    DataError: a column is missing or does not hold text.
  """
  if _find(schema, columns):
    return [_find_text(schema, columns, path)]
  return [_find_text(schema, name.strip(), path) for name in columns.split(",")]


def _find_text(schema: Any, name: str, path: str) -> Column:
  found = _find(schema, name)
  texts = [".".join(column) for column, kind in _leaves(schema) if _is_text(kind)]
  names = ", ".join(texts[:MAX_NAMES]) + ", ..." * (len(texts) > MAX_NAMES)
  remedy = f"Choose one of {shorten(names)}" if texts else "No other column has text"
  if not found:
    raise DataError(f"{path}: no column {name!r} with text. {remedy}")
  if not _is_text(found[1]):
    kind = shorten(str(found[1]))
    raise DataError(f"{path}: the column {name!r} holds {kind} instead of text. {remedy}")
  if schema.names.count(found[0][0]) > 1:
    raise DataError(f"{path}: the column {name!r} occurs twice. Rename one of them")
  return found[0]


def _find(fields: Iterable, name: str) -> tuple[Column, Any] | None:
  """Returns the column of a dotted name, and its type; None if there is none."""
  for field in fields:
    if field.name == name:
      return (name,), field.type
  for field in fields:
    inner = name.removeprefix(f"{field.name}.")
    if inner != name and (found := _find(_fields(field.type), inner)):
      return (field.name, *found[0]), found[1]
  return None


def _leaves(fields: Iterable) -> Iterator[tuple[Column, Any]]:
  for field in fields:
    yield (field.name,), field.type
    for column, kind in _leaves(_fields(field.type)):
      yield (field.name, *column), kind


def _fields(kind: Any) -> Iterable:
  """Returns the fields of a type; none unless it is a struct."""
  from pyarrow import types
  return list(kind) if types.is_struct(kind) else []


def _is_text(kind: Any) -> bool:
  """Returns whether values of a type are text: strings, bytes, or nothing at all."""
  import pyarrow
  from pyarrow import types
  if isinstance(kind, pyarrow.BaseExtensionType):
    kind = kind.storage_type
  if types.is_dictionary(kind):
    kind = kind.value_type
  return any(is_kind(kind) for is_kind in (
      types.is_string, types.is_large_string, types.is_string_view,
      types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null))
