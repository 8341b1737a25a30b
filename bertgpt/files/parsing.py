"""Strict reading of JSON, and what cannot be written in it."""

import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from bertgpt.errors import DataError, one_line
from bertgpt.files import paths

# Beginning of the file that stands for another one in a clone without Git LFS, as a pattern.
LFS_POINTER = rb"version https://git-lfs\.github\.com/spec"


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Args:
    path: file in UTF-8.
    remedy: second sentence of the error message, which says what to do if the file is damaged.
  Raises:
    DataError: the file cannot be read, is not valid UTF-8 or JSON, has a duplicate key or a number
      that is not finite, or holds no object. The message is one line that names the file.
  """
  try:
    content = parse_json(path.read_bytes(), is_strict=True)
  except OSError as e:
    paths.raise_if_unanswered(e)
    raise DataError(f"{path}: cannot be read ({e.strerror}). {remedy}") from e
  except ValueError as e:
    raise DataError(f"{path}: {e}. {remedy}") from e
  if not isinstance(content, dict):
    raise DataError(f"{path}: holds JSON of type {type(content).__name__} instead of "
                    f"dict. {remedy}")
  return content


def parse_json(text: str | bytes, *, is_strict: bool = False) -> Any:
  """Parses JSON.

  Args:
    text: JSON as text, or as UTF-8 with or without a byte-order mark.
    is_strict: whether to refuse duplicate keys of an object, NaN and Infinity.
  Raises:
    ValueError: the text is not usable. The message is one line that follows the name of the text,
      such as "is not valid JSON (Expecting value: ...)".
  """
  decoder = _STRICT if is_strict else _LENIENT
  try:
    return decoder.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
  except RecursionError:
    raise ValueError("is not usable JSON (nested too deeply)") from None
  except ValueError as e:  # Also raised for invalid UTF-8, and for integers of thousands of digits.
    if "set_int_max_str_digits" in str(e):
      raise ValueError("is not usable JSON (a number has more than "
                       f"{sys.get_int_max_str_digits():,} digits)") from None
    raise ValueError(f"is not valid JSON ({one_line(e)})") from e


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """Yields (line, its JSON value) for every line of a file that is valid JSON.

  A crash, or a full disk, may have damaged the others.

  Args:
    path: file in UTF-8; without a file, there are no lines.
  Raises:
    OSError: the file cannot be read.
  """
  if not path.is_file():  # A device, such as /dev/full, may have no end.
    return
  for line in path.read_text("utf-8", "replace").split("\n"):
    try:
      value = parse_json(line)
    except ValueError:
      continue
    yield line, value


def without_nonfinite(value: Any) -> Any:
  """Returns JSON values in which null replaces NaN and infinity, which JSON lacks."""
  if isinstance(value, dict):
    return {name: without_nonfinite(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [without_nonfinite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is not a finite number")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
  return found


_LENIENT = json.JSONDecoder()
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_make_object)
