"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): the answer to a question is a span of a text.

A test set whose questions have no answers is predicted and not scored.
"""

import collections
import functools
import pathlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.text.intake import take_text
from bertgpt.errors import ConfigError, DataError, one_line
from bertgpt.files import write_json
from bertgpt.finetuning.tasks import files
from bertgpt.finetuning.tasks.rows import EvalSet, Task, TextFormat
from bertgpt.finetuning.tasks.scores import harmonic_mean
from bertgpt.finetuning.tasks.spans import VERSIONS, Answer, Question, find_answers, make_rows


def open_task(config: ConfigDict, text_format: TextFormat) -> Task:
  """Reads the files of a task.

  Args:
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
  Raises:
    ConfigError: a row has no room for a context.
    DataError: files are missing, or are not in the official format.
  """
  if config.max_length <= config.max_question + text_format.marks.count(is_pair=True):
    raise ConfigError(f"task.max_length={config.max_length} leaves no room for a text next to "
                      f"task.max_question={config.max_question}. Raise task.max_length, or set "
                      f"task.max_question={max(config.max_length // 3, 1)}")
  _, has_unanswerable = VERSIONS[config.name]
  train = _read_set(config, "train")
  train = [train[i] for i in
           files.choose_examples(len(train), config.max_train_examples, is_random=True)]
  train_rows = make_rows(train, config, text_format)[0]
  evals, baseline = [], {}
  for name in ("dev", "test"):
    questions = _read_set(config, name)
    if not questions:
      continue
    labeled = is_labeled(questions)  # Perhaps none of the first ones has an answer.
    if name == "dev":
      questions = questions[:config.max_dev_examples or None]
    rows, windows = make_rows(questions, config, text_format)
    predict = functools.partial(find_answers, questions, windows, config)
    score_outputs = functools.partial(_score_outputs, questions, predict, has_unanswerable)
    evals.append(EvalSet(
        name, rows, score_outputs if labeled else None,
        functools.partial(write, name, questions, predict, has_unanswerable),
        gold=[(q.id, q.answers, q.is_impossible) for q in questions] if labeled else None))
    if labeled:
      baseline[name] = score(questions, [""] * len(questions), has_unanswerable)
  return Task(config.name, "spans", ("start", "end"), train_rows, tuple(evals), baseline)


def _read_set(config: ConfigDict, name: str) -> list[Question]:
  """Returns the questions of a set; [] if there is no test set."""
  version, has_unanswerable = VERSIONS[config.name]
  paths = files.find_given(config.data, config[name], f"task.{name}",
                           [f"{name}-{version}.json"], needed=name != "test")
  found = [(path, question) for path in paths
           for question in read_questions(path, needs_answers=name != "test")]
  if has_unanswerable and name == "test" and is_labeled([question for _, question in found]):
    for path in paths:  # A question without the key would count as one without an answer.
      read_questions(path)
  check_ids(found)
  questions = [question for _, question in found]
  lacking = [(path, question.id) for path, question in found if not question.answers]
  if not has_unanswerable and lacking and (name != "test" or is_labeled(questions)):
    path, id_ = lacking[0]
    raise DataError(f"{path}: question {id_} has no answer, but SQuAD 1.1 has one for every "
                    "question. Use --task squad2, or remove the question")
  if name != "test" and not is_labeled(questions):
    raise DataError(f"{paths[0]}: no question has an answer, or is marked with is_impossible. Give "
                    f"a file with answers as task.{name}")
  return questions


def check_ids(found: Sequence[tuple[pathlib.Path, Question]]) -> None:
  """Checks that every question of a set has an id of its own, by which its prediction is found.

  Args:
    found: (file, question) of all questions of the set.
  Raises:
    DataError: two questions have the same id.
  """
  first: dict[Any, pathlib.Path] = {}
  for path, question in found:
    if question.id in first:
      other = "" if first[question.id] == path else f", which is also in {first[question.id]}"
      raise DataError(f"{path}: the id {question.id!r} occurs twice{other}. Give every question of "
                      "a set an id of its own")
    first[question.id] = path


NO_ANSWER = {"answers": (), "is_impossible": False}


def is_labeled(questions: Sequence[Question]) -> bool:
  """Returns whether any question has an answer, or is marked as having none."""
  return any(question.answers or question.is_impossible for question in questions)


def read_questions(path: pathlib.Path, *, needs_answers: bool = True,
                   reads_answers: bool = True) -> list[Question]:
  """Returns the questions of a file.

  Args:
    path: file in the official JSON format, plain or compressed.
    needs_answers: whether every question needs the key `answers`, unless it `is_impossible`.
    reads_answers: whether to read answers; otherwise they may be anything.
  Raises:
    DataError: the file is not in the official format, or an answer is not at the place in the
      context that the file gives.
  """
  content = files.read_json(path)
  try:
    questions = [make_question(qa if reads_answers else {**qa, **NO_ANSWER}, paragraph,
                               needs_answers) for article in content["data"]
                 for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
  except (KeyError, TypeError) as e:
    raise DataError(f"{path}: not in SQuAD's JSON ({one_line(e)}). Give an official file") from e
  except ValueError as e:
    raise DataError(f"{path}: {one_line(e)}. Repair the file") from e
  for question in questions:
    for start, answer in question.answers:
      if not isinstance(start, int) or start < 0 or not isinstance(answer, str):
        raise DataError(f"{path}: question {question.id}: answer_start={start!r} and text="
                        f"{str(answer)[:40]!r} are not a whole number from 0 on and a text. Repair "
                        "the file")
      if question.context[start:start + len(answer)] != answer or not answer:
        raise DataError(f"{path}: question {question.id}: its answer {answer[:40]!r} is not at "
                        f"character {start} of the context. Repair the file")
  if not questions:
    raise DataError(f"{path}: holds no questions. Give an official file")
  return questions


def make_question(qa: Mapping[str, Any], paragraph: Mapping[str, Any],
                  needs_answers: bool) -> Question:
  """Returns a question.

  Args:
    qa: entry of the question in SQuAD's JSON.
    paragraph: entry of its paragraph, which holds the `context`.
    needs_answers: see `read_questions`.
  Raises:
    KeyError, TypeError: an entry lacks a key, or is of another type.
    ValueError: a value is not clean text.
  """
  id_, text, context = qa["id"], qa["question"], paragraph["context"]
  id_ = files.take_id(id_)
  text = take_text(text, f"the question of {id_!r}")
  # `answer_start` counts the characters of the unchanged context.
  context = take_text(context, f"the context of {id_!r}", keeps_line_ends=True)
  is_impossible = qa.get("is_impossible") or 0
  if is_impossible not in (0, 1):  # True and false, too.
    raise ValueError(f"is_impossible of {id_!r} is {is_impossible!r}, not true or false")
  is_impossible = bool(is_impossible)
  answers = () if is_impossible else qa["answers"] if needs_answers else qa.get("answers") or ()
  return Question(id_, text, context, tuple(
      (answer["answer_start"], answer["text"]) for answer in answers), is_impossible)


# ------------------------------------------------------------- predictions


def write(name: str, questions: Sequence[Question],
          predict: Callable[[Sequence[np.ndarray]], list[Answer]], has_unanswerable: bool,
          outputs: Sequence[np.ndarray], folder: pathlib.Path) -> None:
  """Writes predictions.json, nbest_predictions.json and null_odds.json, as run_squad.py does.

  Args:
    name: name of the set. File names of all sets but 'dev' begin with it: 'test_...'.
    questions: questions of the set.
    predict: outputs -> answers, as `find_answers` returns them.
    has_unanswerable: whether to write null_odds.json.
    outputs: logits of starts and ends in every window, float32 [2, length] each.
    folder: folder of the files.
  """
  answers = {q.id: answer for q, answer in zip(questions, predict(outputs), strict=True)}
  prefix = "" if name == "dev" else f"{name}_"
  contents: dict[str, Any] = {
      "predictions": {id_: answer.text for id_, answer in answers.items()},
      "nbest_predictions": {
          id_: [{"text": guess.text, "score": guess.score} for guess in answer.guesses]
          for id_, answer in answers.items()}}
  if has_unanswerable:
    contents["null_odds"] = {id_: answer.odds for id_, answer in answers.items()}
  for stem, content in contents.items():
    write_json(folder / f"{prefix}{stem}.json", content, indent=1)


# ------------------------------------------------------------------ scores


def _score_outputs(questions: Sequence[Question], find: Callable, has_unanswerable: bool,
                   outputs: Any) -> dict[str, float]:
  """Scores the outputs of a model, which `find` turns into answers."""
  return score(questions, [answer.text for answer in find(outputs)], has_unanswerable)


def score(questions: Sequence[Question], answers: Sequence[str], has_unanswerable: bool
          ) -> dict[str, float]:
  """Returns exact match ('em') and F1 ('f1') of answers, as in the task's official script.

  They are the best over the right answers of a question, averaged over all questions. The right
  answer to a question without an answer is ''.

  Args:
    questions: questions of a set.
    answers: predicted answer to each of them.
    has_unanswerable: whether questions of the task may have no answer, as in SQuAD 2.0.
  """
  exact = f1 = 0.0
  for question, found in zip(questions, answers, strict=True):
    expected = [text for _, text in question.answers
                if not has_unanswerable or normalize(text)] or [""]
    exact += max(normalize(found) == normalize(text) for text in expected)
    f1 += max(word_f1(found, text, has_unanswerable) for text in expected)
  return {"em": exact / len(questions), "f1": f1 / len(questions)}


def word_f1(found: str, expected: str, has_unanswerable: bool) -> float:
  """Returns the F1 of two texts as bags of normalized words (Rajpurkar et al. 2016, 6.1).

  If one of the two has no words, it is 0. If both have none and questions may have no answer, it
  is 1.

  Args:
    found: predicted answer.
    expected: right answer.
    has_unanswerable: whether questions of the task may have no answer, as in SQuAD 2.0.
  """
  found, expected = normalize(found).split(), normalize(expected).split()
  if not found or not expected:
    return float(has_unanswerable and found == expected)
  common = collections.Counter(found) & collections.Counter(expected)
  return harmonic_mean(sum(common.values()), len(found), len(expected))


def normalize(text: str) -> str:
  """Returns a text in lower case, without ASCII punctuation and the words a, an, the.

  White space becomes single spaces, as in the official scripts.
  """
  text = text.lower().translate(str.maketrans("", "", string.punctuation))
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
