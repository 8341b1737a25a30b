"""Input and output formats of `bertgpt predict`, one file and one table line per kind of task."""

import pathlib
from collections.abc import Iterator
from typing import Any

from bertgpt import files as file_lib
from bertgpt.data.text.intake import parse_record
from bertgpt.data.text.paths import find_ending, is_json_lines
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning.inputs import questions, texts, words
from bertgpt.finetuning.inputs.form import Form
from bertgpt.finetuning.tasks import files

# Kind of the outputs of a task -> form of its examples and predictions.
FORMS: dict[str, Form] = {
    "classes": texts.CLASSES,
    "values": texts.VALUES,
    "tokens": words.FORM,
    "spans": questions.FORM,
}


def read_examples(path: pathlib.Path, kind: str, name: str) -> Iterator[Any]:
  """Yields the examples of a file, which is read piece by piece.

  Args:
    path: file in one of the formats of the form, or with one JSON object per line if its ending is
      in `paths.JSON_ENDINGS` (in SQuAD's format, if it is .json); plain or compressed.
    kind: kind of the outputs of the task, a key of `FORMS`.
    name: name of the task.
  Raises:
    ConfigError: there is no such file, or it holds no examples.
    DataError: the file cannot be read, or is in another format.
  """
  file_lib.require_file(path, "--input")
  form, count = FORMS[kind], 0
  is_records = is_json_lines(path) and not (kind == "spans" and find_ending(path) == ".json")
  for example in _read_records(path, form, name) if is_records else form.read(path, name):
    count += 1
    yield example
  if not count:
    raise ConfigError(f"--input {path}: holds no examples. Give {form.formats}")


def _read_records(path: pathlib.Path, form: Form, name: str) -> Iterator[Any]:
  place = 0
  for number, line in files.read_text_lines(path):
    if not line.strip():
      continue
    try:
      record = parse_record(line)
    except ValueError as e:
      raise DataError(f"{path}, line {number}: {e}. Give one JSON object per line") from e
    try:
      example = form.parse(record, str(place), name)
    except ValueError as e:
      raise DataError(f"{path}, line {number}: {e}. Repair the line") from e
    yield example
    place += 1
