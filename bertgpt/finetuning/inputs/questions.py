"""Questions about texts, which are answered with a span of the text.

| input  | content                                                                  |
|--------|--------------------------------------------------------------------------|
| .json  | SQuAD's format; answers are ignored. The whole file is read into memory. |
| .jsonl | `question` and `context`                                                 |

    {"id": "5733", "answer": "Denver", "start": 177, "end": 183, "probability": 0.93,
     "n_best": [{"text": "Denver", "start": 177, "end": 183, "probability": 0.93}, ...]}

`start` and `end` count the characters of the context. Probabilities are relative to the best spans
and, in SQuAD 2.0, to "no answer", which is an empty text without a position (run_squad.py of
google-research/bert, 2018).
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bertgpt.data.text.intake import take_text
from bertgpt.finetuning.inputs.form import (
    Form,
    Prediction,
    Setting,
    id_of,
    one_cell,
    short,
    softmax,
)
from bertgpt.finetuning.tasks import spans, squad
from bertgpt.finetuning.tasks.rows import Rows
from bertgpt.finetuning.tasks.spans import Question, Window


def read(path: pathlib.Path, name: str) -> Iterator[Question]:
  """Yields the questions of a file in SQuAD's format.

  Args:
    path: file, plain or compressed.
    name: name of the task.
  Raises:
    DataError: the file cannot be read, or is in another format.
  """
  del name
  yield from squad.read_questions(path, needs_answers=False, reads_answers=False)


def parse(record: Any, default_id: str, name: str) -> Question:
  """Returns the question of a JSON object.

  Args:
    record: JSON value.
    default_id: id if the object has none.
    name: name of the task.
  Raises:
    ValueError: the value is not an object, or lacks the question or the context.
  """
  del name
  id_ = id_of(record, default_id)
  if missing := [key for key in ("question", "context") if key not in record]:
    raise ValueError(f"lacks {' and '.join(missing)}")
  context = take_text(record["context"], "context", keeps_line_ends=True)  # For correct offsets.
  return Question(id_, take_text(record["question"], "question"), context, ())


def make_rows(examples: Sequence[Question], setting: Setting) -> tuple[Rows, list[Window]]:
  """Returns the rows of all windows of all questions.

  Args:
    examples: at least one question.
    setting: see `Setting`.
  """
  return spans.make_rows(examples, setting.config, setting.text_format)


def answer(examples: Sequence[Question], windows: Sequence[Window], outputs: Sequence[np.ndarray],
           setting: Setting) -> list[Prediction]:
  """Returns the answers, their probabilities and the other spans that were considered.

  Args:
    examples: N questions.
    windows: windows of all questions.
    outputs: logits of starts and ends in every window, float32 [2, length] each.
    setting: see `Setting`.
  """
  answers = spans.find_answers(examples, windows, setting.config, outputs)
  predictions: list[Prediction] = []
  for question, (text, guesses, _) in zip(examples, answers, strict=True):
    chances = softmax(np.array([guess.score for guess in guesses])) if guesses else []
    found = [{"text": guess.text, "start": guess.start, "end": guess.end, "probability": short(p)}
             for guess, p in zip(guesses, chances, strict=True)]
    none: Prediction = {"text": "", "start": None, "end": None, "probability": 0.0}
    best = next((x for x in found if x["text"] == text), none)
    predictions.append({"id": question.id, "answer": best["text"], "start": best["start"],
                        "end": best["end"], "probability": best["probability"], "n_best": found})
  return predictions


def to_text(prediction: Mapping[str, Any]) -> list[str]:
  """Returns the line of a question in a table: id, answer, probability."""
  return ["\t".join([one_cell(prediction["id"]), one_cell(prediction["answer"]),
                     f"{prediction['probability']:.6f}"])]


FORM = Form("a .json file in SQuAD's format, or a .jsonl file with the keys question and context",
            read, parse, make_rows, answer, lambda labels: ["id\tprediction\tprobability"], to_text)
