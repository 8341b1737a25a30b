"""The record that describes the examples and predictions of one kind of task, and shared parts."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.finetuning.tasks import files
from bertgpt.finetuning.tasks.rows import Rows, TextFormat

Prediction = dict[str, Any]  # JSON values by name.


class Setting(NamedTuple):
  """Settings that rows and predictions depend on.

  Attributes:
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
    labels: names of the model's C outputs.
    texts: columns of the texts, for a task whose examples may be single texts or pairs.
  """

  config: ConfigDict
  text_format: TextFormat
  labels: tuple[str, ...]
  texts: tuple[str, ...] = ()


class Form(NamedTuple):
  """Examples without labels, and the predictions of them.

  Attributes:
    formats: description of the files that `read` reads, for error messages.
    read: (file, name of the task) -> examples, one by one.
    parse: (JSON value, id if the value has none, name of the task) -> example. It raises ValueError
      with a message that follows the name of the line.
    make_rows: (examples, setting) -> (rows, additional data for `answer`).
    answer: (examples, additional data from `make_rows`, outputs of every row, setting) ->
      predictions, one per example.
    header: labels -> the lines before the predictions, as text.
    to_text: prediction -> its lines, as text.
  """

  formats: str
  read: Callable[[pathlib.Path, str], Iterator[Any]]
  parse: Callable[[Any, str, str], Any]
  make_rows: Callable[[Sequence[Any], Setting], tuple[Rows, Any]]
  answer: Callable[[Sequence[Any], Any, Sequence[np.ndarray], Setting], list[Prediction]]
  header: Callable[[Sequence[str]], list[str]]
  to_text: Callable[[Prediction], list[str]]


def softmax(logits: np.ndarray) -> np.ndarray:
  """Returns probabilities over the last axis, float64 of the shape of `logits`."""
  logits = np.asarray(logits, np.float64)
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def short(value: float) -> float:
  """Returns a number with only the digits of its float32 value, so that JSON is short."""
  return float(f"{value:.7g}")


def id_of(record: Any, default: str) -> str:
  """Returns the name of a record, from the first key of `files.ID_KEYS` that is not null.

  Args:
    record: JSON value.
    default: name of a record without one.
  Raises:
    ValueError: the value is not an object, or its name is neither a text nor a whole number.
  """
  if not isinstance(record, Mapping):
    raise ValueError("is not a JSON object")
  return files.take_id(next(
      (record[key] for key in files.ID_KEYS if record.get(key) is not None), default))


def one_cell(text: str) -> str:
  """Returns a text without tabs and line ends, for a column of a table."""
  return " ".join(text.split()) if any(c in text for c in "\t\n\r") else text
