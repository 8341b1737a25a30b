"""Classification of texts, or of pairs of texts, with the user's own labels: two or more classes.

The files of `task.data` are train.tsv or train.jsonl, and the same for dev and, perhaps, test. TSV
files name their columns in the first line; JSONL files have the same keys in every line.

| column         | content                                                                    |
|----------------|----------------------------------------------------------------------------|
| text           | the text                                                                   |
| text2          | second text of a pair; all examples have one, or none has                  |
| label          | name of the class; a test set without labels is predicted and not scored   |
| id, index, idx | name of the example in the predictions; without it, its position, from 0   |

The classes are `task.labels` or, if it is empty, the labels of the training set: whole numbers by
their value, names in the order of their characters.
"""

import functools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.text.intake import parse_record, take_text
from bertgpt.data.text.paths import find_ending, is_json_lines
from bertgpt.errors import DataError
from bertgpt.finetuning.tasks import files, glue
from bertgpt.finetuning.tasks.rows import EvalSet, Task, TextFormat

TEXTS = ("text", "text2")
LABEL = "label"
ENDINGS = (".tsv", ".jsonl")  # Those of the official names; `task.train` may name other files.
COLUMNS = glue.Glue("", TEXTS, LABEL, (), ("accuracy", "macro_f1"), features=TEXTS[:1])
MOST_LISTED = 10  # Labels that a message lists.
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class Example(NamedTuple):
  """A text or two, and their class.

  Attributes:
    path: file of the example.
    line: number of its line, from 1.
    id: name of the example.
    texts: one text or two.
    label: name of its class; '' if it has none.
  """

  path: pathlib.Path
  line: int
  id: str
  texts: tuple[str, ...]
  label: str

  @property
  def where(self) -> str:
    """File and line, for error messages."""
    return f"{self.path}, line {self.line}"


def open_task(config: ConfigDict, text_format: TextFormat) -> Task:
  """Reads the files of a task.

  Args:
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
  Raises:
    DataError: files are missing or not as described above, there is only one class, or an example
      has a label that is not a class.
  """
  train = _read_set(config, "train", 0)
  labels = config.labels or find_labels(train, f"task.data={config.data}")
  spec = COLUMNS._replace(labels=labels)
  table = _to_table(train, spec)
  chosen = files.choose_examples(len(train), config.max_train_examples, is_random=True)
  train_rows = glue.make_rows(glue.take(table, chosen), spec, text_format)
  constant = glue.most_frequent(train_rows.labels)
  evals, baseline, notes = [], {}, _describe_labels(labels, train_rows.labels)
  for name in ("dev", "test"):
    examples = _read_set(config, name, len(train[0].texts))
    if not examples:
      continue
    if name == "dev":
      examples = examples[:config.max_dev_examples or None]
    table = _to_table(examples, spec)
    if table.repeats_ids:
      notes.append(f"the {name} set has an id twice, so its predictions number the rows from 0 "
                   "instead")
    score, gold = None, None
    if table.labels is not None:
      score, gold = functools.partial(glue.score, spec, table.labels), list(labels)
      baseline[name] = score(np.full(len(examples), constant))
    evals.append(EvalSet(name, glue.make_rows(table, spec, text_format), score,
                         functools.partial(glue.write, spec, f"{name}.tsv", ids=table.ids), gold))
  return Task(config.name, "classes", tuple(labels), train_rows, tuple(evals), baseline,
              tuple(notes), TEXTS[:len(train[0].texts)])


def find_labels(examples: Sequence[Example], source: str) -> tuple[str, ...]:
  """Returns the labels of a training set, in the order that the docstring of the module says.

  Args:
    examples: examples with labels.
    source: name of the set, for error messages.
  Raises:
    DataError: there is only one label, or some are numbers and others are not.
  """
  labels = sorted({example.label for example in examples})
  numbers = [label for label in labels if _NUMBER.fullmatch(label)]
  if len(labels) == 1:
    raise DataError(f"{source}: all examples of the training set have the label {labels[0]!r}. "
                    "Give examples of two classes or more")
  if 0 < len(numbers) < len(labels):
    name = next(label for label in labels if label not in numbers)
    raise DataError(f"{source}: the training set has numbers ({_list(numbers)}) and names (such as "
                    f"{name!r}) as labels. Write them in one form, or list all in task.labels")
  return tuple(sorted(labels, key=lambda label: (int(label), label)) if numbers else labels)


def _describe_labels(labels: Sequence[str], numbers: np.ndarray) -> list[str]:
  """Returns notes about the classes, one line each; `numbers` are those of the training rows."""
  counts = np.bincount(numbers, minlength=len(labels))
  lines = [f"{len(labels)} classes: {_list(labels)}"]
  if lacking := [label for label, count in zip(labels, counts, strict=True) if not count]:
    lines.append(f"no training row has the label {_list(lacking)}")
  return lines


def _list(labels: Sequence[str]) -> str:
  more, is_plain = len(labels) - MOST_LISTED, not any("," in label for label in labels)
  shown = ", ".join(label if is_plain else repr(label) for label in labels[:MOST_LISTED])
  return shown + (f" and {more} more" if more > 0 else "")


def _to_table(examples: Sequence[Example], spec: glue.Glue) -> glue.Table:
  """Returns examples as a table of numbered classes, without labels if they have none.

  Args:
    examples: at least one example.
    spec: columns, with the labels of the task.
  Raises:
    DataError: a label is not a class.
  """
  number = {label: i for i, label in enumerate(spec.labels)}
  if unknown := next((e for e in examples if e.label and e.label not in number), None):
    raise DataError(f"{unknown.where}: the label {unknown.label[:40]!r} is not a class "
                    f"({_list(spec.labels)}). Classes are the labels of the training set, unless "
                    "task.labels lists them. Repair the line, or list all classes there")
  has_labels = bool(examples[0].label)
  ids = [e.id for e in examples]
  if repeats_ids := len(set(ids)) < len(ids):
    ids = [str(i) for i in range(len(ids))]
  return glue.Table(
      tuple(list(texts) for texts in zip(*(e.texts for e in examples), strict=True)), ids,
      np.array([number[e.label] for e in examples], np.int32) if has_labels else None,
      repeats_ids=repeats_ids)


# -------------------------------------------------------------------- files


def _read_set(config: ConfigDict, name: str, num_texts: int) -> list[Example]:
  """Returns the examples of a set; [] if there is no test set.

  Args:
    config: group `task` of the fine-tuning config.
    name: 'train', 'dev' or 'test'.
    num_texts: texts per example; 0: as in the first example.
  """
  names = [name + ending for ending in ENDINGS]
  paths = files.find_given(config.data, config[name], f"task.{name}", names, needed=name != "test")
  if not config[name] and all(files.find(config.data, [n], needed=False) for n in names):
    raise DataError(f"task.data={config.data}: holds {' and '.join(names)}. Remove one of them, or "
                    f"set task.{name} to the one to read")
  examples: list[Example] = []
  for path in paths:
    examples += read_examples(path, num_texts)
    num_texts = len(examples[0].texts)
  if name != "test" or any(example.label for example in examples):
    if lacking := next((example for example in examples if not example.label), None):
      raise DataError(f"{lacking.where}: has no {LABEL}. Give every example of {name} a label"
                      + (", or none" if name == "test" else ""))
  return examples


def read_examples(path: pathlib.Path, num_texts: int = 0) -> list[Example]:
  """Returns the examples of a file; those without a label have ''.

  Args:
    path: TSV file, or one with JSON lines if its ending is in `paths.JSON_ENDINGS`; plain or
      compressed.
    num_texts: texts per example; 0: as in the first example.
  Raises:
    DataError: the file is in another format, a column is missing or is there twice, an example has
      another number of texts, or there is no example.
  """
  if find_ending(path) == ".csv":
    raise DataError(f"{path}: is a table with commas. Give a .tsv or .jsonl file")
  examples = list(_read_records(path) if is_json_lines(path) else _read_table(path))
  if not examples:
    raise DataError(f"{path}: holds no examples. Give a .tsv file with the columns text and label, "
                    "or a .jsonl file with these keys")
  num_texts = num_texts or len(examples[0].texts)
  if other := next((e for e in examples if len(e.texts) != num_texts), None):
    has = "lacks" if num_texts == 2 else "has"
    others = "have it" if num_texts == 2 else "do not"
    raise DataError(f"{other.where}: {has} {TEXTS[1]}, but earlier examples {others}. Give all "
                    "sets single texts, or all of them pairs")
  return examples


def _read_table(path: pathlib.Path) -> Iterator[Example]:
  lines = files.read_text_lines(path)
  header = next(lines, (1, ""))[1].split("\t")
  if header == [""]:
    return
  names = [name for name in (*TEXTS, LABEL) if name in header or name == TEXTS[0]]
  checked = glue.check_columns(lines, path, len(header))
  for row in glue.iterate_rows(checked, path, header, names, COLUMNS):
    cells = dict(zip(names, row.values or (), strict=True))
    # A whole number is written as 1.0 by pandas if another row has no label.
    label = re.sub(r"^([+-]?\d+)\.0$", r"\1", cells.pop(LABEL, "").strip())
    yield Example(path, row.line, row.id.strip() or str(row.place), tuple(cells.values()), label)


def _read_records(path: pathlib.Path) -> Iterator[Example]:
  lines = ((number, line) for number, line in files.read_text_lines(path) if line.strip())
  for place, (number, line) in enumerate(lines):
    try:
      record = parse_record(line)
      if not isinstance(record, Mapping):
        raise ValueError("is not a JSON object")
      if TEXTS[0] not in record:
        raise ValueError(f"lacks {TEXTS[0]}; it has {', '.join(record) or 'nothing'}")
      id_ = next((record[key] for key in files.ID_KEYS if record.get(key) is not None), str(place))
      # Predictions are a table, in which an id is one cell.
      id_ = " ".join(files.take_id(id_).split()) or str(place)
      texts = tuple(take_text(record[key], key) for key in TEXTS if key in record)
      yield Example(path, number, id_, texts, take_label(record.get(LABEL)))
    except ValueError as e:
      raise DataError(f"{path}, line {number}: {e}. Give one JSON object per line, with the keys "
                      "text and label") from e


def take_label(value: Any) -> str:
  """Returns a JSON value as the name of a class; '' for null.

  Args:
    value: JSON value. 1.0, which pandas writes for 1, becomes '1'.
  Raises:
    ValueError: it is neither a text of one line nor a whole number.
  """
  if value is None:
    return ""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, (str, int)):
    raise ValueError(f"the label {str(value)[:40]!r} is neither a text nor a whole number")
  label = take_text(str(value), LABEL).strip()
  if "\t" in label or "\n" in label:
    raise ValueError(f"the label {label[:40]!r} holds a tab or a line end")
  return label
