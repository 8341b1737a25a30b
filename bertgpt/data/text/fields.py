"""Texts inside a record: a field, a field of a field, or several fields joined."""

import itertools
from collections.abc import Iterable
from typing import Any

from bertgpt.data.text.intake import JSON_LINES
from bertgpt.errors import shorten

JOINT = "\n\n"  # A blank line, as between a title and its text.
MAX_KEYS = 20  # Keys of an object that an error message names.
_ABSENT = object()
# Type of a JSON value that is not a text -> what a message calls it.
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number",
          list: "an array", dict: "an object"}


def join(texts: Iterable[str | None]) -> str:
  """Returns the texts of several fields as one, without those that are None or empty.

  Args:
    texts: texts in order.
  """
  return JOINT.join(text for text in texts if text)


def find_text(record: Any, field: str) -> str | None:
  """Returns the text of a field of a JSON object; None if it has none.

  Args:
    record: parsed JSON.
    field: name of a field, or several names, separated by commas; some of the fields may be null or
      absent. 'a.b' is the field b of the object a. A field whose own name contains the comma or the
      dot takes precedence.
  """
  values = [value for name in _split(record, field)
            if (value := _find(record, name)) is not _ABSENT]
  are_texts = all(value is None or isinstance(value, str) for value in values)
  return join(values) if are_texts and any(value is not None for value in values) else None


def describe(record: Any, field: str) -> str:
  """Returns what a JSON value has instead of the wanted text, as a sentence of a message.

  Args:
    record: parsed JSON.
    field: see `find_text`.
  """
  if not isinstance(record, dict):
    return JSON_LINES
  for name in _split(record, field):
    if kind := _KINDS.get(type(_find(record, name))):
      return f"Its {name!r} is {kind}."
  names = ", ".join(map(repr, itertools.islice(record, MAX_KEYS))) or "no keys"
  return shorten(f"It has {names}{', ...' * (len(record) > MAX_KEYS)}") + "."


def advise(record: Any, field: str) -> tuple[str, str]:
  """Returns what a message says about a JSON value without the wanted text.

  Args:
    record: parsed JSON.
    field: see `find_text`.
  Returns:
    (sentence about what it has, advice to choose another field). Either may be ''. Other fields
    are named only if one of the wanted ones is absent.
  """
  names = _text_names(record)
  are_absent = [_find(record, name) is _ABSENT for name in _split(record, field)]
  return ("" if names and all(are_absent) else describe(record, field),
          f"Choose one of {names}" if names and any(are_absent) else "")


def _text_names(record: Any) -> str:
  """Returns the names of the fields of a JSON value that hold texts, with commas; '' without any.
  """
  if not isinstance(record, dict):
    return ""
  names = [name for name, value in record.items() if isinstance(value, str) and value]
  listed = ", ".join(names[:MAX_KEYS]) + ", ..." * (len(names) > MAX_KEYS)
  return shorten(listed)


def _split(record: Any, field: str) -> list[str]:
  """Returns the names of fields that are separated by commas, unless the commas are part of one."""
  is_name = isinstance(record, dict) and field in record
  return [field] if is_name else [name.strip() for name in field.split(",")]


def _find(record: Any, name: str) -> Any:
  """Returns the value of a field, which may be null; `_ABSENT` if there is none."""
  if not isinstance(record, dict):
    return _ABSENT
  if name in record:
    return record[name]
  for key in record:
    inner = name.removeprefix(f"{key}.")
    if inner != name and (value := _find(record[key], inner)) is not _ABSENT:
      return value
  return _ABSENT
