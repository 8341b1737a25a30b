"""Texts and pairs of texts, which get a class or a value.

| input  | content                                                                             |
|--------|-------------------------------------------------------------------------------------|
| .tsv   | the columns of the task's own files, or the names of TFDS; others are ignored       |
| .jsonl | the same names as keys; for single texts also `text`                                |
| .txt   | one text per line, without blank lines, for tasks of single texts                   |

    {"id": "7", "label": "positive", "probabilities": {"negative": 0.02, "positive": 0.98}}
    {"id": "7", "value": 3.75}
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.data.text.intake import take_text
from bertgpt.data.text.paths import find_ending
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning.inputs.form import (
    Form,
    Prediction,
    Setting,
    id_of,
    one_cell,
    short,
    softmax,
)
from bertgpt.finetuning.tasks import TASKS, files, glue
from bertgpt.finetuning.tasks.rows import Rows


class Example(NamedTuple):
  """One text or two, and a name."""

  id: str
  texts: tuple[str, ...]


def read(path: pathlib.Path, name: str) -> Iterator[Example]:
  """Yields the examples of a TSV file, or of a .txt file.

  Args:
    path: file, plain or compressed.
    name: name of the task.
  Raises:
    DataError: the file cannot be read, or lacks columns.
  """
  task = _columns(name)
  if find_ending(path) == ".csv":
    raise DataError(f"{path}: is a table with commas. Give {FORMATS}")
  lines = files.read_text_lines(path)
  needed = _find_needed(name)
  if find_ending(path) == ".txt" and len(needed) == 1:
    texts = (line for _, line in lines if line.strip())
    yield from (Example(str(i), (text,)) for i, text in enumerate(texts))
    return
  first = next(lines, (1, ""))
  header, wanted = first[1].split("\t"), _find_names(first[1].split("\t"), name)
  if not wanted and len(header) == len(task.header) and (
      header[task.header.index(task.label)] in task.labels):  # No header line: CoLA's train.tsv.
    lines, header, wanted = _chain(first, lines), list(task.header), task.texts
  lines = glue.check_columns(lines, path, len(header))
  is_named = not set(files.ID_KEYS).isdisjoint(header)
  for i, row in enumerate(glue.iterate_rows(lines, path, header, wanted or needed, task)):
    if row.values is None:
      raise DataError(f"{path}, line {row.line}: lacks columns. Repair the line or remove it")
    # Pandas writes whole numbers with a point if one of them is missing.
    id_ = re.sub(r"^(\d+)\.0$", r"\1", row.id.strip()) if is_named else ""
    yield Example(id_ or str(i), tuple(row.values))


def _columns(name: str) -> glue.Glue:
  """Returns the columns of a task's texts."""
  if (columns := TASKS[name].columns) is None:
    raise ConfigError(f"the task {name} does not say which columns its texts are in. Give it "
                      "`columns` in finetuning.tasks.TASKS")
  return columns


def _find_needed(name: str) -> tuple[str, ...]:
  """Returns the columns that every example of a task has: `classes` may have pairs or not."""
  columns = _columns(name)
  return min(columns.texts, columns.features, key=len)


def _chain(first, lines):
  yield first
  yield from lines


def _find_names(names: Any, task: str) -> tuple[str, ...]:
  """Returns which names stand for the texts of a task; () if there are none."""
  spec = _columns(task)
  plain = [("text",)] if len(spec.texts) == 1 else []
  return next((wanted for wanted in (spec.texts, spec.features, *plain)
               if all(name in names for name in wanted)), ())


def parse(record: Any, default_id: str, name: str) -> Example:
  """Returns the example of a JSON object.

  Args:
    record: JSON value.
    default_id: id if the object has none.
    name: name of the task.
  Raises:
    ValueError: the value is not an object, or lacks a text.
  """
  id_ = id_of(record, default_id)
  if not (wanted := _find_names(record, name)):
    raise ValueError(f"lacks {' or '.join(_find_needed(name))}; it has "
                     f"{', '.join(map(str, record)) or 'nothing'}")
  return Example(id_, tuple(take_text(record[key], key) for key in wanted))


def make_rows(examples: Sequence[Example], setting: Setting) -> tuple[Rows, None]:
  """Returns one row per example.

  Args:
    examples: at least one example.
    setting: see `Setting`.
  Raises:
    DataError: an example is a pair and the model was trained on single texts, or the reverse.
  """
  num_texts = len(setting.texts or examples[0].texts)
  if other := next((e for e in examples if len(e.texts) != num_texts), None):
    is_pair, second = num_texts == 2, _columns(setting.config.name).texts[-1]
    raise DataError(f"the example {other.id!r} {'lacks' if is_pair else 'has'} {second}, but the "
                    f"model was trained on {'pairs' if is_pair else 'single texts'}. Give examples "
                    f"{'with' if is_pair else 'without'} {second}")
  columns = tuple(list(column) for column in zip(*(e.texts for e in examples), strict=True))
  table = glue.Table(columns, [e.id for e in examples], None)
  return glue.make_rows(table, _columns(setting.config.name), setting.text_format), None


def answer_classes(examples: Sequence[Example], _: None, outputs: Sequence[np.ndarray],
                   setting: Setting) -> list[Prediction]:
  """Returns the likeliest class and the probabilities of all of them.

  Args:
    examples: N examples.
    outputs: logits, float32 [C] for every example.
    setting: see `Setting`.
  """
  predictions = []
  for example, logits in zip(examples, outputs, strict=True):
    chances = dict(zip(setting.labels, map(short, softmax(logits).tolist()), strict=True))
    predictions.append({"id": example.id, "label": setting.labels[int(np.argmax(logits))],
                        "probabilities": chances})
  return predictions


def answer_values(examples: Sequence[Example], _: None, outputs: Sequence[np.ndarray],
                  setting: Setting) -> list[Prediction]:
  """Returns the predicted values.

  Args:
    examples: N examples.
    outputs: values, float32 scalars.
    setting: see `Setting`.
  """
  del setting
  return [{"id": example.id, "value": short(float(value))}
          for example, value in zip(examples, outputs, strict=True)]


def _class_line(prediction: Prediction) -> list[str]:
  chances = (f"{p:.6f}" for p in prediction["probabilities"].values())
  return ["\t".join([one_cell(prediction["id"]), prediction["label"], *chances])]


def _value_line(prediction: Prediction) -> list[str]:
  return [f"{one_cell(prediction['id'])}\t{prediction['value']:.6g}"]


FORMATS = ("a .tsv file with the columns of the task, a .jsonl file with these keys, or a .txt "
           "file with one text per line")
CLASSES = Form(FORMATS, read, parse, make_rows, answer_classes,
               lambda labels: ["\t".join(["id", "prediction", *labels])], _class_line)
VALUES = Form(FORMATS, read, parse, make_rows, answer_values,
              lambda labels: ["id\tprediction"], _value_line)
