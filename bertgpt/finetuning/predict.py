"""Predictions of a fine-tuned model on new examples, one by one and in bounded memory.

    predictor = open_predictor(pathlib.Path("runs/sst2"))
    for prediction in predict_records(predictor, [{"sentence": "A fine film."}]):
      print(prediction["label"], prediction["probabilities"])

`bertgpt.finetuning.inputs` has the forms of examples and predictions.
"""

import contextlib
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from bertgpt import console, files
from bertgpt.config import families
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import from_json
from bertgpt.data.text import intake, paths
from bertgpt.errors import ConfigError, DataError
from bertgpt.finetuning import inputs, lengths
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.finetuning.inputs.form import Form, Prediction, Setting
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows
from bertgpt.models import Module, precision
from bertgpt.progress import Progress
from bertgpt.runs import folder_kinds, word_tables
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

CHUNK_BATCHES = 32  # Batches whose rows are sorted by length together.


class Predictor(NamedTuple):
  """A fine-tuned model, ready for use.

  Attributes:
    trained: the run.
    form: form of the examples and predictions of its task.
    setting: settings that rows and predictions depend on.
    model: module with the head of the task.
    head: losses and predictions of this head.
    params: parameters, on the device.
  """

  trained: Trained
  form: Form
  setting: Setting
  model: Module
  head: task_objectives.Head
  params: Any

  @property
  def task(self) -> str:
    """Name of the task."""
    return self.setting.config.name


def find_run(path: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a fine-tuning run.

  Args:
    path: this folder, or a fine-tuning workdir, which stands for its best run.
  Raises:
    ConfigError: there is no run, or the weights of the best run were not saved.
    DataError: results.json is damaged.
  """
  if folder_kinds.is_of_transformers(path / "config.json"):
    raise ConfigError(f"--workdir {path}: holds a model of transformers, whose task this program "
                      "does not read. Give the --workdir of the `bertgpt finetune` that made the "
                      "model, such as runs/sst2")
  if not folder_kinds.is_run(path):
    raise ConfigError(folder_kinds.describe_missing(
        path, "--workdir", "Give the --workdir of a `bertgpt finetune`"))
  return folder_kinds.find_best_run(path)


def open_predictor(path: pathlib.Path, dtype: str = trained_lib.SCORING_DTYPE) -> Predictor:
  """Opens a fine-tuning run.

  Args:
    path: see `find_run`.
    dtype: type of activations and matmuls, one of the choices of `model.dtype`.
  Raises:
    ConfigError: there is no such run, or it was not fine-tuned.
    DataError: the run is damaged.
  """
  path = find_run(path)
  trained = trained_lib.load_any(path, dtype=dtype)
  if not trained.task:
    raise ConfigError(f"--workdir {path}: holds a model that was not fine-tuned. Give the "
                      "--workdir of a `bertgpt finetune`")
  kind, labels = trained.task["kind"], tuple(trained.task["labels"])
  columns = tuple(trained.task.get("texts", ()))  # Earlier versions did not write it.
  config = from_json(trained.task["config"], finetune_config.base).task
  text_format = rows_lib.make_text_format(trained.tokenizer, trained.config.model, config)
  head = task_objectives.find_task_head(trained.config, kind)
  model = head.make_model(FrozenConfigDict(trained.config.model), len(labels))
  return Predictor(trained, inputs.FORMS[kind], Setting(config, text_format, labels, columns),
                   model, head, jax.device_put(trained.params))


def predict_records(predictor: Predictor, records: Iterable[Mapping[str, Any]],
                    batch_size: int = 8) -> Iterator[Prediction]:
  """Yields the predictions of records, in order.

  Args:
    predictor: result of `open_predictor`.
    records: objects as in a .jsonl file of the form, such as {"sentence": "A fine film."}.
    batch_size: rows that are computed at a time.
  Raises:
    ConfigError: `batch_size` is not positive.
    DataError: a record lacks a key, or has a value of another type.
  """
  if batch_size < 1:
    raise ConfigError(f"batch_size={batch_size}: give at least 1")
  def parse() -> Iterator[Any]:
    for i, record in enumerate(records):
      try:
        yield predictor.form.parse(record, str(i), predictor.task)
      except ValueError as e:
        raise DataError(f"record {i}: {e}") from e

  return predict(predictor, parse(), batch_size)


def predict(predictor: Predictor, examples: Iterable[Any], batch_size: int = 8,
            on_rows: Callable[[int, Rows], Any] = lambda count, rows: None
            ) -> Iterator[Prediction]:
  """Yields the predictions of examples, in order; few examples are in memory at a time.

  Args:
    predictor: result of `open_predictor`.
    examples: examples of the form, as `inputs.read_examples` yields them.
    batch_size: rows that are computed at a time.
    on_rows: called with the number of examples whose predictions follow, and their rows.
  """
  form, most = predictor.form, CHUNK_BATCHES * batch_size
  size, row_lengths, remaining = 0, (), iter(examples)
  known = predictor
  while chunk := list(itertools.islice(remaining, most)):
    predictor = extend_vocabulary(known, chunk)
    setting = predictor.setting
    rows, places = form.make_rows(chunk, setting)
    if not size:
      # A few rows need neither a full batch nor all lengths, as every length is compiled.
      size = min(batch_size, 1 << (len(rows) - 1).bit_length())
      if len(chunk) < most:
        row_lengths = lengths.for_rows(predictor.trained.config, rows, size, jax.default_backend())
    outputs = _compute(predictor, rows, size, row_lengths)
    on_rows(len(chunk), rows)
    yield from form.answer(chunk, places, outputs, setting)


def extend_vocabulary(predictor: Predictor, examples: Sequence[Any]) -> Predictor:
  """Returns a predictor that knows the words of examples, if its model reads whole words.

  Args:
    predictor: result of `open_predictor`.
    examples: examples of its form.
  """
  trained, setting = predictor.trained, predictor.setting
  if not families.find(trained.config).reads_words:
    return predictor
  with_tokenizer = lambda tokenizer: setting._replace(
      text_format=setting.text_format._replace(tokenizer=tokenizer))
  recording = word_tables.record_unknown_words(trained)
  predictor.form.make_rows(examples, with_tokenizer(recording))
  trained = word_tables.extend_vocabulary(
      trained, word_tables.recorded_words(recording), is_rounded=True)
  model = predictor.head.make_model(FrozenConfigDict(trained.config.model), len(setting.labels))
  return predictor._replace(trained=trained, setting=with_tokenizer(trained.tokenizer),
                            model=model, params=jax.device_put(trained.params))


def _compute(predictor: Predictor, rows: Rows, batch_size: int,
             row_lengths: tuple[int, ...]) -> list[np.ndarray]:
  """Returns the outputs of every row, in order."""
  outputs: list[Any] = [None] * len(rows)
  most = predictor.setting.config.max_length
  for index in rows_lib.order_evaluation(rows.lengths, batch_size):
    batch = rows_lib.collate(rows, index, batch_size, most, 0, row_lengths)
    with precision.matmul_precision(predictor.trained.config):
      values = jax.device_get(_outputs(predictor.head, predictor.model, predictor.params, batch))
    for row, i in enumerate(index):
      outputs[i] = values[row]
  return outputs


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(head, model, params, batch):
  return head.outputs(model, params, batch)


# ----------------------------------------------------------------- bertgpt predict


def run(path: pathlib.Path, source: pathlib.Path, out: pathlib.Path | None, style: str,
        batch_size: int, dtype: str) -> None:
  """Writes the predictions of the examples in a file.

  Args:
    path: see `find_run`.
    source: file of examples, see `inputs.read_examples`.
    out: new file; None: the predictions are printed.
    style: 'text' or 'jsonl'; '': 'jsonl' if `out` ends in .jsonl, otherwise
      'text'.
    batch_size: rows that are computed at a time.
    dtype: see `open_predictor`.
  Raises:
    ConfigError: `out` exists; see also `open_predictor` and `inputs.read_examples`.
    DataError: see these functions. `out` then does not exist.
  """
  if out:
    files.refuse_existing(out, "--out")
    files.require_parent(out, "--out")
    if intake.is_compressed(str(out)):
      raise ConfigError(f"--out {out}: predictions are written without compression. Name the "
                        f"file {out.with_suffix('').name}")
  files.require_file(source, "--input")
  predictor = open_predictor(path, dtype)
  kind = predictor.trained.task["kind"]
  examples = inputs.read_examples(source, kind, predictor.task)
  style = style or ("jsonl" if out and paths.find_ending(out) == ".jsonl" else "text")
  # A stdout in another encoding would get escapes that are not JSON's.
  is_ascii = not out and (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
  progress, remarks = Progress(0, "examples"), rows_lib.Remarks(predictor.setting.text_format)

  def count(num_examples: int, rows: Rows) -> None:
    progress.add(num_examples)
    remarks.add(rows)

  lines = format_lines(predictor, predict(predictor, examples, batch_size, count), style, is_ascii)
  with contextlib.ExitStack() as stack:
    file = sys.stdout
    if out:
      scratch = stack.enter_context(files.publish_when_done(out, "--out"))
      file = stack.enter_context(scratch.open("w", encoding="utf-8", newline="\n"))
    file.writelines(line + "\n" for line in next(lines))  # The header.
    for of_one in lines:
      file.writelines(line + "\n" for line in of_one)
  for remark in remarks.lines(str(source)):
    console.say(f"note: {remark}")
  trained, total = predictor.trained, progress.done
  console.say(f"note: {total} prediction{'s' * (total != 1)} of {predictor.task} by "
              f"{trained.workdir}, computed in {trained.config.model.dtype}")


def format_lines(predictor: Predictor, predictions: Iterable[Prediction], style: str,
                 is_ascii: bool = False) -> Iterator[list[str]]:
  """Yields the lines of the header, and then those of every prediction.

  The first prediction is made before the header is yielded, so that no header precedes an error.

  Args:
    predictor: model that made the predictions.
    predictions: predictions of its form.
    style: 'text' or 'jsonl'.
    is_ascii: whether JSON has escapes for all characters outside of ASCII.
  """
  is_json, remaining = style == "jsonl", iter(predictions)
  first = list(itertools.islice(remaining, 1))
  yield [] if is_json else predictor.form.header(predictor.setting.labels)
  for prediction in itertools.chain(first, remaining):
    yield ([json.dumps(prediction, ensure_ascii=is_ascii)] if is_json else
           predictor.form.to_text(prediction))
