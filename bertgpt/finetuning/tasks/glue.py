"""The nine GLUE tasks (Wang et al. 2018, arXiv:1804.07461): files, labels, metrics, submissions.

| source                          | value of `task.data`                                       |
|---------------------------------|------------------------------------------------------------|
| official files                  | folder with SST-2/train.tsv ..., or with train.tsv itself  |
| TFDS, prepared as ArrayRecord   | tfds:glue/sst2, or tfds:FOLDER of a prepared dataset       |

Test sets are predicted if they exist. Predictions have the official format, `index TAB
prediction`, and the file name of a submission. The index is that of the file, in its column `id`,
`index` or `idx`, of which the first is used (`idx` in TFDS). If there is no such column, or a value
occurs in it twice, it is the position of the row in the file, from 0.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.text import datasets
from bertgpt.data.text.intake import Counts, TextCleaner
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning.tasks import files
from bertgpt.finetuning.tasks.rows import EvalSet, Rows, Task, TextFormat
from bertgpt.finetuning.tasks.scores import METRICS


class Glue(NamedTuple):
  """One GLUE task.

  Attributes:
    folder: folder of the official files; also the name of the submission. '' for a task of the
      user's own files, which have no official form.
    texts: columns of the texts.
    label: column of the label.
    labels: labels in the official files, in the order of TFDS, which numbers them; () for a score
      from 0 to 5.
    metrics: keys of `scores.METRICS`.
    features: features of the texts in TFDS.
    splits: (suffix of the set's name, suffix of file and split, suffix of the submission) of every
      pair of dev and test set.
    header: columns of files without a header line; () if the files have one.
    skips_short: skip lines that lack columns, because texts contain line breaks.
    names: names of labels that are numbers, from TFDS.
  """

  folder: str
  texts: tuple[str, ...]
  label: str
  labels: tuple[str, ...]
  metrics: tuple[str, ...]
  features: tuple[str, ...]
  splits: tuple[tuple[str, str, str], ...] = (("", "", ""),)
  header: tuple[str, ...] = ()
  skips_short: bool = False
  names: tuple[str, ...] = ()

  @property
  def remedy(self) -> str:
    """What to do with a file that lacks columns."""
    return (f"Give the official {self.folder} file" if self.folder else
            "Name the columns in the first line, with tabs between them")


_PAIR = ("sentence1", "sentence2")
_ENTAILS = ("entailment", "not_entailment")
_MNLI_SPLITS = (("", "_matched", "-m"), ("_mismatched", "_mismatched", "-mm"))

TASKS = {
    "cola": Glue("CoLA", ("sentence",), "label", ("0", "1"), ("matthews",), ("sentence",),
                 header=("source", "label", "mark", "sentence"),
                 names=("unacceptable", "acceptable")),
    "sst2": Glue("SST-2", ("sentence",), "label", ("0", "1"), ("accuracy",), ("sentence",),
                 names=("negative", "positive")),
    "mrpc": Glue("MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1"), ("f1", "accuracy"),
                 _PAIR, names=("not_equivalent", "equivalent")),
    "stsb": Glue("STS-B", _PAIR, "score", (), ("pearson", "spearman"), _PAIR),
    "qqp": Glue("QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), ("f1", "accuracy"),
                ("question1", "question2"), skips_short=True,
                names=("not_duplicate", "duplicate")),
    "mnli": Glue("MNLI", _PAIR, "gold_label", ("entailment", "neutral", "contradiction"),
                 ("accuracy",), ("premise", "hypothesis"), _MNLI_SPLITS),
    "qnli": Glue("QNLI", ("question", "sentence"), "label", _ENTAILS, ("accuracy",),
                 ("question", "sentence")),
    "rte": Glue("RTE", _PAIR, "label", _ENTAILS, ("accuracy",), _PAIR),
    "wnli": Glue("WNLI", _PAIR, "label", ("0", "1"), ("accuracy",), _PAIR,
                 names=("not_entailment", "entailment")),
}


class Row(NamedTuple):
  """A row of a TSV file.

  Attributes:
    line: number of its line in the file, from 1.
    place: position of the row in the file, from 0.
    id: value of the column that names the rows, '' if the line lacks it; without such a column,
      `place` as text.
    values: values of the wanted columns; None: the line lacks columns, and is to be skipped.
  """

  line: int
  place: int
  id: str
  values: list[str] | None


class Table(NamedTuple):
  """Examples of a file, in its order.

  Attributes:
    texts: a list of N texts for each column of texts.
    ids: N values of the column that names the rows, or the positions of the rows, from 0.
    labels: classes int32 [N] or scores float32 [N]; None for a test set.
    skipped: number of lines that were skipped.
    leaves_labels: whether a test set has a column of labels, which is not read.
    repeats_ids: whether two rows have the same id. The rows are then numbered instead.
  """

  texts: tuple[list[str], ...]
  ids: list[str]
  labels: np.ndarray | None
  skipped: int = 0
  leaves_labels: bool = False
  repeats_ids: bool = False


def open_task(config: ConfigDict, text_format: TextFormat) -> Task:
  """Reads a GLUE task.

  Args:
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
  Raises:
    ConfigError: the config names files; the files of GLUE have official names.
    DataError: files are missing, or are not in the official format.
  """
  for name in ("train", "dev", "test"):
    if config[name]:
      raise ConfigError(f"task.{name}={config[name]}: the files of {config.name} have their "
                        "official names. Leave it empty, and give their folder as task.data")
  glue = TASKS[config.name]
  read = _read_tfds if config.data.startswith("tfds:") else _read_files
  table = read(config.data, glue, "train", "", needed=True)
  chosen = files.choose_examples(len(table.texts[0]), config.max_train_examples, is_random=True)
  train = make_rows(take(table, chosen), glue, text_format)
  evals, baseline, skipped, notes = [], {}, table.skipped, []
  for name in ("dev", "test"):
    for set_suffix, file_suffix, submission_suffix in glue.splits:
      table = read(config.data, glue, name, file_suffix, needed=name == "dev")
      if table is None:
        continue
      skipped += table.skipped
      if table.repeats_ids:
        notes.append(f"the {name}{set_suffix} set has an id twice, so its predictions number the "
                     "rows from 0 instead")
      if table.leaves_labels:
        notes.append(f"the {name}{set_suffix} set has labels, but is only predicted. To score it, "
                     "give it as dev.tsv to another fine-tuning")
      if name == "dev":
        first = files.choose_examples(len(table.texts[0]), config.max_dev_examples,
                                      is_random=False)
        table = take(table, first)
        constant = np.full(len(first), most_frequent(train.labels))
        baseline[name + set_suffix] = score(glue, table.labels, constant)
      file_name = f"{glue.folder}{submission_suffix}{'' if name == 'test' else '.dev'}.tsv"
      evals.append(EvalSet(
          name + set_suffix, make_rows(table, glue, text_format),
          functools.partial(score, glue, table.labels) if name == "dev" else None,
          functools.partial(write, glue, file_name, ids=table.ids)))
  if skipped:
    notes.append(f"{skipped} lines lack columns and were skipped")
  return Task(config.name, "classes" if glue.labels else "values",
              glue.names or glue.labels or ("score",), train, tuple(evals), baseline,
              tuple(notes))


def make_rows(table: Table, glue: Glue, text_format: TextFormat) -> Rows:
  """Returns the rows of a table; without labels, these are 0.

  Args:
    table: N examples.
    glue: task of the examples.
    text_format: format of the rows.
  """
  encoded = [text_format.tokenizer.encode(texts) for texts in table.texts]
  pairs = [text_format.make_row(*texts) for texts in zip(*encoded, strict=True)]
  num_cut = sum(text_format.cuts(*texts) for texts in zip(*encoded, strict=True))
  labels = table.labels
  if labels is None:
    labels = np.zeros(len(pairs), np.int32 if glue.labels else np.float32)
  return Rows([tokens for tokens, _ in pairs], [segments for _, segments in pairs], labels,
              num_cut)


def score(glue: Glue, labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
  """Returns the official metrics by name.

  Args:
    glue: task of the examples.
    labels: classes int32 [N], or scores float32 [N].
    outputs: predicted classes or scores [N].
  """
  return {name: METRICS[name](labels, outputs) for name in glue.metrics}


def most_frequent(labels: np.ndarray) -> float:
  """Returns the class that most examples have, or the mean of scores.

  Args:
    labels: classes int32 [N], or scores float32 [N].
  """
  return int(np.bincount(labels).argmax()) if labels.dtype == np.int32 else float(labels.mean())


def write(glue: Glue, name: str, outputs: np.ndarray, folder: pathlib.Path,
          ids: Sequence[str] | None = None) -> None:
  """Writes a submission: a header, then index and prediction of every row.

  Args:
    glue: task of the rows.
    name: name of the file.
    outputs: predicted classes int [N], or scores float [N], which are clipped to [0, 5].
    folder: folder of the file.
    ids: name of every row, N texts; None: the rows are counted from 0.
  """
  values = [glue.labels[i] for i in outputs] if glue.labels else [
      f"{min(max(value, 0.0), 5.0):.3f}" for value in outputs]
  names = range(len(values)) if ids is None else ids
  lines = ["index\tprediction", *(f"{i}\t{value}" for i, value in zip(names, values, strict=True))]
  (folder / name).write_text("\n".join(lines) + "\n", "utf-8")


def take(table: Table, index: np.ndarray) -> Table:
  """Returns some examples of a table with labels.

  Args:
    table: N examples.
    index: indices of the examples, int [M].
  """
  return Table(tuple([column[i] for i in index] for column in table.texts),
               [table.ids[i] for i in index], table.labels[index])


# ------------------------------------------------------------ official files


def _read_files(data: str, glue: Glue, name: str, suffix: str, needed: bool) -> Table | None:
  suffix = "" if name == "train" else suffix
  file_name = f"{name}{suffix}.tsv"
  path = files.find(data, [f"{glue.folder}/{file_name}", file_name], needed=needed)
  return read_table(path, glue, is_test=name == "test") if path else None


def read_table(path: pathlib.Path, glue: Glue, *, is_test: bool) -> Table:
  """Reads a TSV file of a task. Quotes are part of the text.

  Args:
    path: file, plain or compressed.
    glue: task of the file.
    is_test: the file has a header and no labels.
  Raises:
    DataError: a column is missing, or a line has too few or too many columns, or a wrong label.
  """
  lines = files.read_text_lines(path)
  header = list(glue.header)
  if is_test or not header:
    header = next(lines, (1, ""))[1].split("\t")
  wanted = [*glue.texts] if is_test else [*glue.texts, glue.label]
  columns, rows, skipped = [[] for _ in wanted], [], 0
  for row in iterate_rows(check_columns(lines, path, len(header)), path, header, wanted, glue):
    if row.values is None:
      skipped += 1
      continue
    rows.append(row)
    for column, value in zip(columns, row.values, strict=True):
      column.append(value)
    if not is_test:
      columns[-1][-1] = _parse_label(glue, row.values[-1], f"{path}, line {row.line}")
  if not rows:
    raise DataError(f"{path}: holds no examples. Give the official {glue.folder} file")
  ids = [row.id or str(row.place) for row in rows]
  if repeats_ids := len(set(ids)) < len(ids):
    ids = [str(row.place) for row in rows]
  if is_test:
    return Table(tuple(columns), ids, None, skipped, glue.label in header, repeats_ids)
  *texts, labels = columns
  return Table(tuple(texts), ids, _as_array(glue, labels), skipped, repeats_ids=repeats_ids)


def check_columns(lines: Iterator[tuple[int, str]], path: pathlib.Path, count: int
                  ) -> Iterator[tuple[int, str]]:
  """Yields the lines of a TSV file; a text with a tab in it would be cut there without a word.

  Args:
    lines: (number, line).
    path: file of the lines, for the message.
    count: columns of the file.
  Raises:
    DataError: a line has something in another column.
  """
  for number, line in lines:
    if any(map(str.strip, line.split("\t")[count:])):
      raise DataError(f"{path}, line {number}: has more than {count} columns. Replace the tabs in "
                      "texts by spaces")
    yield number, line


def iterate_rows(lines: Iterator[tuple[int, str]], path: pathlib.Path, header: Sequence[str],
                 wanted: Sequence[str], glue: Glue) -> Iterator[Row]:
  """Yields the rows of a TSV file, without empty lines.

  Args:
    lines: (number, line) of all lines after the header.
    path: file of the lines, for error messages.
    header: name of every column.
    wanted: names of the columns whose values are yielded.
    glue: task of the file.
  Raises:
    DataError: a column is missing or is there twice, or a line has too few columns.
  """
  if missing := [name for name in wanted if name not in header]:
    raise DataError(f"{path}: lacks the column {', '.join(missing)}; it has "
                    f"{', '.join(filter(None, header)) or 'none'}. {glue.remedy}")
  names = [name for name in files.ID_KEYS if name in header][:1]
  if twice := [name for name in (*wanted, *names) if header.count(name) > 1]:
    raise DataError(f"{path}: has the column {twice[0]} twice. Rename one")
  places = [header.index(name) for name in wanted]
  named = header.index(names[0]) if names else None
  rows = ((number, line) for number, line in lines if line.strip() or "\t" in line)
  for place, (number, line) in enumerate(rows):
    cells = line.split("\t")
    if len(cells) <= max(places):
      if not glue.skips_short:
        raise DataError(f"{path}, line {number}: has {len(cells)} columns, not {len(header)}. "
                        f"Repair the line ({' '.join(line.split())[:40]!r})")
      yield Row(number, place, "", None)
      continue
    id_ = str(place) if named is None else "".join(cells[named:named + 1])
    yield Row(number, place, id_, [cells[i] for i in places])


def _parse_label(glue: Glue, text: str, where: str) -> float:
  """Returns the index of a class, or a score; `where` names the line in an error."""
  if glue.labels:
    if text in glue.labels:
      return glue.labels.index(text)
    allowed = f"one of {', '.join(glue.labels)}"
  else:
    try:
      if 0 <= float(text) <= 5:
        return float(text)
    except ValueError:
      pass
    allowed = "a number from 0 to 5"
  raise DataError(f"{where}: label {text[:40]!r} is not {allowed} ({glue.folder}, column "
                  f"{glue.label}). Repair the file")


def _as_array(glue: Glue, labels: list) -> np.ndarray:
  return np.array(labels, np.int32 if glue.labels else np.float32)


# ---------------------------------------------------------------------- TFDS


def _read_tfds(data: str, glue: Glue, name: str, suffix: str, needed: bool) -> Table | None:
  split = {"train": "train", "dev": f"validation{suffix}", "test": f"test{suffix}"}[name]
  target = data.removeprefix("tfds:")
  if not needed and split not in datasets.open_builder(target, "task.data").info.splits:
    return None
  records = datasets.open_dataset(target, split, "task.data")
  cleaner = TextCleaner("error", Counts(), repair="Repair the text and prepare the dataset again")
  texts, ids, labels = tuple([] for _ in glue.features), [], []
  for i, record in datasets.read_dataset(records, f"{data}:{split}"):
    where = f"{data}:{split} record {i}"
    for column, feature in zip(texts, glue.features, strict=True):
      value = _feature(record, feature, where, glue)
      column.append(datasets.take_text(value, feature, f"{where}: {feature}", cleaner))
    label = _feature(record, "label", where, glue)
    if name != "test" and not _is_label(label, glue):
      raise DataError(f"{where}: label {label} is out of range for {glue.folder}. Give the task's "
                      "own dataset")
    labels.append(label)
    ids.append(str(record.get("idx", i)))
  if not labels:
    raise DataError(f"{data}:{split}: holds no examples. Give the task's own dataset")
  return Table(texts, ids, None if name == "test" else _as_array(glue, labels))


def _is_label(value: Any, glue: Glue) -> bool:
  if glue.labels:
    return isinstance(value, (int, np.integer)) and bool(0 <= value < len(glue.labels))
  return isinstance(value, (int, float, np.number)) and bool(0 <= value <= 5)


def _feature(record: dict, name: str, where: str, glue: Glue):
  if name not in record:
    raise DataError(f"{where}: lacks the feature {name!r}; it has {', '.join(record)}. Give the "
                    f"dataset of {glue.folder}")
  return record[name]
