"""Texts inside a record: a field, a field of a field, or several fields joined."""

from collections.abc import Iterable
from typing import Any

JOINT = "\n\n"  # A blank line, as between a title and its text.


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
    field: name of a field, or several names, separated by commas, of which some may be null. 'a.b'
      is the field b of the object a. A field whose own name has these commas or dots comes first.
  """
  is_name = isinstance(record, dict) and field in record
  names = [field] if is_name else [name.strip() for name in field.split(",")]
  values = [_find(record, name) for name in names]
  are_texts = all(value is None or isinstance(value, str) for value in values)
  return join(values) if are_texts and any(value is not None for value in values) else None


def _find(record: Any, name: str) -> Any:
  """Returns the value of a field, which may be null; False if there is none."""
  if not isinstance(record, dict):
    return False
  if name in record:
    return record[name]
  for key in record:
    inner = name.removeprefix(f"{key}.")
    if inner != name and (value := _find(record[key], inner)) is not False:
      return value
  return False
