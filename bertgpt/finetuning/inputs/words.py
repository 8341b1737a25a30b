"""Sentences of words, every one of which gets a tag.

| input  | content                                                                  |
|--------|--------------------------------------------------------------------------|
| CoNLL  | one word per line, see `tasks.conll`; tags are ignored                   |
| .jsonl | `words` or `tokens`, a list; or `text`, which is cut at white space      |

    {"id": "0", "words": ["Anna", "Ek"], "tags": ["B-person", "I-person"],
     "probabilities": [0.97, 0.91], "entities": [{"type": "person", "start": 0, "end": 2}]}

An entity consists of the words from index `start` up to, but not including, index `end`.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt import console
from bertgpt.data.text.intake import split_columns, take_text
from bertgpt.data.text.paths import find_ending
from bertgpt.errors import DataError
from bertgpt.finetuning.inputs.form import (
    Form,
    Prediction,
    Setting,
    id_of,
    one_cell,
    short,
    softmax,
)
from bertgpt.finetuning.tasks import conll, files, ner
from bertgpt.finetuning.tasks.rows import Rows

REMEDY = ("Give one word per line and an empty line between sentences, or a .jsonl file with the "
          "key words or text")
HEAD_LINES = 1000  # Lines that `_check_table` examines.
MAX_PARTS = 3  # Parts of a word that holds spaces, such as '10 000'.


class Example(NamedTuple):
  """The words of a sentence, and its name."""

  id: str
  words: list[str]


def read(path: pathlib.Path, name: str) -> Iterator[Example]:
  """Yields the sentences of a CoNLL file, numbered from 0.

  Args:
    path: file, plain or compressed.
    name: name of the task.
  Raises:
    DataError: the file cannot be read, or is in another format.
  """
  del name
  _check_table(path)
  for i, sentence in enumerate(conll.iterate_sentences(path, reads_tags=False)):
    yield Example(str(i), sentence.words)


def _check_table(path: pathlib.Path) -> None:
  """Raises a DataError for a table with a header; prints a note if other things look wrong."""
  if find_ending(path) == ".csv":
    raise DataError(f"{path}: is a table with commas, not a CoNLL file. {REMEDY}")
  head = [line for _, line in itertools.islice(files.read_text_lines(path), HEAD_LINES)
          if not line.startswith("#")]
  rows = [cells for line in head if (cells := split_columns(line)) and cells[0] != "-DOCSTART-"]
  first = rows[0] if rows else []
  if len(first) > 1 and conll.has_names(first):
    raise DataError(f"{path}: begins with the names of columns ({' '.join(first)}), which would be "
                    f"tagged as words. Remove them. {REMEDY}")
  for cell in (cell for line in head if "\t" in line for cell in conll.split_at_tabs(line)):
    if len(split_columns(cell)) > MAX_PARTS:
      raise DataError(f"{path}: {cell[:40]!r} in a column is more than one word. {REMEDY}")
  widths = {len(cells) for cells in rows}
  has_tags = any(conll.is_tag(cells[-1]) or cells[-1] in conll.NO_TAGS for cells in rows)
  if widths and max(widths) > 1 and not has_tags:
    console.say(f"note: {path}: its lines have several columns, and no tag in the last one. One "
                f"word per line is tagged. {REMEDY}")
  elif len(widths) > 2:
    console.say(f"note: {path}: its lines have {min(widths)} to {max(widths)} columns. One word "
                f"per line is tagged. {REMEDY}")


def parse(record: Any, default_id: str, name: str) -> Example:
  """Returns the sentence of a JSON object.

  Args:
    record: JSON value.
    default_id: id if the object has none.
    name: name of the task.
  Raises:
    ValueError: the value is not an object, or has no words.
  """
  del name
  id_ = id_of(record, default_id)
  key = next((key for key in ("words", "tokens", "text") if key in record), "words")
  words = record.get(key)
  if isinstance(words, str) and key == "text":
    words = words.split()
  if not isinstance(words, list):
    raise ValueError("has neither a list of words or tokens nor a text")
  return Example(id_, [take_text(word, f"a word of {key}") for word in words])


def make_rows(examples: Sequence[Example], setting: Setting) -> tuple[Rows, ner.Places]:
  """Returns the rows of sentences, and the places of their words.

  Args:
    examples: at least one example.
    setting: see `Setting`.
  """
  sentences = [conll.Sentence(e.words, None) for e in examples]
  return ner.make_rows(sentences, setting.labels, setting.text_format)


def answer(examples: Sequence[Example], places: ner.Places, outputs: Sequence[np.ndarray],
           setting: Setting) -> list[Prediction]:
  """Returns the likeliest tag of every word, its probability, and the entities.

  Args:
    examples: N sentences.
    places: places of their words.
    outputs: logits, float32 [length, C] for every row.
    setting: see `Setting`.
  """
  predictions: list[Prediction] = []
  for example, of_words in zip(examples, places, strict=True):
    chances = [softmax(outputs[row][token]) for row, token in of_words]
    tags = [setting.labels[int(p.argmax())] for p in chances]
    entities = [{"type": kind, "start": start, "end": end}
                for kind, start, end in sorted(ner.entities(tags), key=lambda e: e[1])]
    predictions.append({"id": example.id, "words": example.words, "tags": tags,
                        "probabilities": [short(p.max()) for p in chances], "entities": entities})
  return predictions


def to_text(prediction: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a sentence in a CoNLL file: word, tag, probability of the tag."""
  cells = zip(prediction["words"], prediction["tags"], prediction["probabilities"], strict=True)
  return [*(f"{one_cell(word)}\t{tag}\t{p:.6f}" for word, tag, p in cells), ""]


FORM = Form("a CoNLL file, or a .jsonl file with the key words", read, parse, make_rows, answer,
            lambda labels: [], to_text)
