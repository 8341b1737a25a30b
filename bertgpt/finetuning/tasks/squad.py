"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): the answer to a question is a span of a text.

A test set whose questions have no answers is predicted and not scored.

Long texts are read in overlapping windows. The labels of a window are the answer's first and last
token. If the window does not contain the answer, or if there is none (2.0), both are the [CLS].
"""

import collections
import functools
import pathlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.text.intake import take_text
from bertgpt.data.tokens.offsets import encode_with_offsets
from bertgpt.errors import ConfigError, DataError, one_line
from bertgpt.files import write_json
from bertgpt.finetuning.tasks import files
from bertgpt.finetuning.tasks.rows import EvalSet, Rows, Task, TextFormat
from bertgpt.finetuning.tasks.scores import harmonic_mean

VERSIONS = {"squad": "v1.1", "squad2": "v2.0"}

NO_SPAN_SCORE = -1e9  # Score of a text without any span; JSON has no infinity.


class Question(NamedTuple):
  """A question about a text.

  Attributes:
    id: official id.
    question: the question.
    context: text that holds the answer.
    answers: (number of its first character in the context, text) of every correct answer; () if the
      question has no answer, or if its answers are unknown.
    is_impossible: whether it is known that the question has no answer.
  """

  id: str
  question: str
  context: str
  answers: tuple[tuple[int, str], ...]
  is_impossible: bool = False


class Window(NamedTuple):
  """A part of a context, which is one row.

  Attributes:
    question: number of the question.
    first: position in the row of the window's first token.
    offsets: (first character, character after the last) in the context of each of the window's N
      tokens, int32 [N, 2].
    has_max_context: whether no other window shows more of a token's surroundings, bool [N].
  """

  question: int
  first: int
  offsets: np.ndarray
  has_max_context: np.ndarray


class Guess(NamedTuple):
  """Text of a span, and the sum of the logits of its start and its end.

  Attributes:
    score: sum of the logits.
    text: text of the span; '': no answer.
    start: number of its first character in the context; None for no answer.
    end: number of the character after its last.
  """

  score: float
  text: str
  start: int | None = None
  end: int | None = None


def open_task(config: ConfigDict, text_format: TextFormat) -> Task:
  """Reads the files of a task.

  Args:
    config: group `task` of a fine-tuning's config.
    text_format: format of the rows.
  Raises:
    ConfigError: a row has no room for a context.
    DataError: files are missing, or are not in the official format.
  """
  if config.max_length <= config.max_question + 3:
    raise ConfigError(f"task.max_length={config.max_length} leaves no room for a text next to "
                      f"task.max_question={config.max_question}. Raise task.max_length")
  version = VERSIONS[config.name]
  train = _read_set(config, "train", version)
  train = [train[i] for i in
           files.choose_examples(len(train), config.max_train_examples, is_random=True)]
  evals, baseline = [], {}
  for name in ("dev", "test"):
    questions = _read_set(config, name, version)
    if not questions:
      continue
    if name == "dev":
      questions = questions[:config.max_dev_examples or None]
    rows, windows = make_rows(questions, config, text_format)
    predict = functools.partial(find_answers, questions, windows, config)
    labeled = is_labeled(questions)
    evals.append(EvalSet(
        name, rows, functools.partial(_score_outputs, questions, predict) if labeled else None,
        functools.partial(write, name, predict, config.name == "squad2")))
    if labeled:
      baseline[name] = score(questions, {question.id: "" for question in questions})
  return Task(config.name, "spans", ("start", "end"), make_rows(train, config, text_format)[0],
              tuple(evals), baseline)


def _read_set(config: ConfigDict, name: str, version: str) -> list[Question]:
  """Returns the questions of a set; [] if there is no test set."""
  paths = files.find_given(config.data, config[name], [f"{name}-{version}.json"],
                           needed=name != "test")
  found = [(path, question) for path in paths
           for question in read_questions(path, needs_answers=name != "test")]
  check_ids(found)
  questions = [question for _, question in found]
  lacking = [(path, question.id) for path, question in found if not question.answers]
  if version == "v1.1" and lacking and (name != "test" or is_labeled(questions)):
    path, id_ = lacking[0]
    raise DataError(f"{path}: question {id_} has no answer, but SQuAD 1.1 has one for every "
                    "question. Use --task squad2, or remove the question")
  return questions


def check_ids(found: Sequence[tuple[pathlib.Path, Question]]) -> None:
  """Checks that every question of a set has an id of its own, which its prediction is named by.

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


def is_labeled(questions: Sequence[Question]) -> bool:
  """Returns whether any question has an answer, or says that it has none."""
  return any(question.answers or question.is_impossible for question in questions)


def read_questions(path: pathlib.Path, *, needs_answers: bool = True) -> list[Question]:
  """Returns the questions of a file.

  Args:
    path: file in the official JSON format, plain or compressed.
    needs_answers: whether every question needs the key `answers`, unless it `is_impossible`.
  Raises:
    DataError: the file is not in the official format, or an answer is not at the place in the
      context that the file gives.
  """
  content = files.read_json(path)
  try:
    questions = [make_question(qa, paragraph, needs_answers) for article in content["data"]
                 for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
  except (KeyError, TypeError) as e:
    raise DataError(f"{path}: not in SQuAD's JSON ({one_line(e)}). Give an official file") from e
  except ValueError as e:
    raise DataError(f"{path}: {one_line(e)}. Repair the file") from e
  for question in questions:
    for start, answer in question.answers:
      if not isinstance(start, int) or start < 0 or not isinstance(answer, str):
        raise DataError(f"{path}: question {question.id}: answer_start={start!r} and text="
                        f"{str(answer)[:40]!r} are not a number from 0 up and a text. Repair the "
                        "file")
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
  # `answer_start` counts the characters of the context as it is.
  context = take_text(context, f"the context of {id_!r}", keeps_line_ends=True)
  is_impossible = bool(qa.get("is_impossible"))
  answers = () if is_impossible else qa["answers"] if needs_answers else qa.get("answers") or ()
  return Question(id_, text, context, tuple(
      (answer["answer_start"], answer["text"]) for answer in answers), is_impossible)


# ----------------------------------------------------------------- windows


def make_rows(questions: Sequence[Question], config: ConfigDict, text_format: TextFormat
              ) -> tuple[Rows, list[Window]]:
  """Returns the rows of all windows of all questions, with the first answer as their label.

  Args:
    questions: questions of a set.
    config: group `task` of a fine-tuning's config.
    text_format: format of the rows.
  Returns:
    (rows, window of every row).
  """
  contexts = list(dict.fromkeys(question.context for question in questions))
  encoded = dict(zip(contexts, encode_with_offsets(text_format.tokenizer, contexts), strict=True))
  tokens, segments, labels, windows = [], [], [], []
  asked = text_format.tokenizer.encode([question.question for question in questions])
  for number, (question, q_ids) in enumerate(zip(questions, asked, strict=True)):
    ids, offsets = encoded[question.context]
    asked_ids = q_ids[:config.max_question]
    head_length = len(asked_ids) + 2
    span = find_span(question, offsets)
    parts = cut(len(ids), config.max_length - head_length - 1, config.stride)
    for (start, end), has_max_context in zip(parts, find_max_context(parts), strict=True):
      tokens.append(text_format.marks.enclose(asked_ids, ids[start:end]))
      segments.append(np.repeat([0, int(text_format.segments)],
                                [head_length, end - start + 1]).astype(np.int32))
      is_inside = span is not None and start <= span[0] and span[1] < end
      labels.append([head_length + i - start for i in span] if is_inside else [0, 0])
      windows.append(Window(number, head_length, offsets[start:end], has_max_context))
  return Rows(tokens, segments, np.array(labels, np.int32)), windows


def find_span(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
  """Returns the numbers of the first and last token of the first answer; None without one.

  Args:
    question: question with its answers.
    offsets: (first character, character after the last) of each of the context's N tokens,
      int32 [N, 2].
  """
  if not question.answers or not len(offsets):
    return None
  first, text = question.answers[0]
  touched = np.flatnonzero((offsets[:, 1] > first) & (offsets[:, 0] < first + len(text)))
  return (int(touched[0]), int(touched[-1])) if len(touched) else None


def cut(length: int, room: int, stride: int) -> list[tuple[int, int]]:
  """Returns (first token, token after the last) of every window of a context, in order.

  Args:
    length: tokens of the context.
    room: tokens of a window.
    stride: tokens from the start of a window to the start of the next; at most `room` is used.
  """
  parts, start = [], 0
  while True:
    end = min(start + room, length)
    parts.append((start, end))
    if end == length:
      return parts
    start += min(stride, room)


def find_max_context(parts: Sequence[tuple[int, int]]) -> list[np.ndarray]:
  """Returns for every token of every window whether the window shows most of its surroundings.

  The measure is the number of tokens before or after it, whichever is less, plus 0.01 per token
  of the window; on a tie the earlier window is taken (google-research/bert, run_squad.py, 2018).

  Args:
    parts: (first token, token after the last) of every window of a context.
  Returns:
    For every window, bool [N] for its N tokens.
  """
  scores = np.full((len(parts), parts[-1][1]), -np.inf)
  for row, (start, end) in zip(scores, parts, strict=True):
    at = np.arange(end - start)
    row[start:end] = np.minimum(at, end - start - 1 - at) + 0.01 * (end - start)
  best = scores.argmax(0) if scores.size else np.zeros(0, int)
  return [best[start:end] == i for i, (start, end) in enumerate(parts)]


# ----------------------------------------------------------------- answers


def find_answers(questions: Sequence[Question], windows: Sequence[Window], config: ConfigDict,
                 outputs: Sequence[np.ndarray]
                 ) -> tuple[dict[str, str], dict[str, list[Guess]], dict[str, float]]:
  """Returns the answer to every question, its best guesses, and the odds of having no answer.

  Args:
    questions: questions of a set.
    windows: windows of all questions.
    config: group `task` of a fine-tuning's config.
    outputs: logits of starts and ends in every window, float32 [2, length] each.
  Returns:
    Three dicts by id of the question: its answer, '' for none; its guesses, the best first; the
    score of "no answer" minus the score of the best span. In SQuAD 2.0, a question whose
    difference exceeds `null_threshold` has no answer.
  """
  guesses = [[] for _ in questions]
  nulls = np.full(len(questions), np.inf)
  for window, logits in zip(windows, outputs, strict=True):
    context = questions[window.question].context
    guesses[window.question] += find_spans(window, logits, context, config)
    # The window with the lowest score of "no answer" counts, as in run_squad.py.
    nulls[window.question] = min(nulls[window.question], float(logits[0, 0] + logits[1, 0]))
  answers, n_best, odds = {}, {}, {}
  for question, found, null in zip(questions, guesses, nulls, strict=True):
    found = keep_best(found, config.n_best)
    best = found[0] if found else Guess(NO_SPAN_SCORE, "")
    odds[question.id] = float(null - best.score)
    is_null = config.name == "squad2" and odds[question.id] > config.null_threshold
    answers[question.id] = "" if is_null else best.text
    if config.name == "squad2":
      found = sorted([*found, Guess(null, "")], key=lambda guess: -guess.score)
    n_best[question.id] = found
  return answers, n_best, odds


def find_spans(window: Window, logits: np.ndarray, context: str, config: ConfigDict
               ) -> list[Guess]:
  """Returns the best spans between the window's likeliest starts and ends, the best first.

  Args:
    window: part of the context.
    logits: logits of starts and ends in its row, float32 [2, length].
    context: text of the question.
    config: group `task` of a fine-tuning's config; at most `n_best` spans of at most `max_answer`
      tokens are returned.
  """
  inside = slice(window.first, window.first + len(window.offsets))
  starts, ends = (np.argsort(-row[inside], kind="stable")[:config.n_best] for row in logits)
  starts = starts[window.has_max_context[starts]]
  scores = logits[0, inside][starts][:, None] + logits[1, inside][ends][None]
  lengths = ends[None] - starts[:, None] + 1
  scores = np.where((lengths >= 1) & (lengths <= config.max_answer), scores, -np.inf)
  order = np.argsort(-scores, axis=None, kind="stable")[:config.n_best]
  found = []
  for i, j in zip(*np.unravel_index(order, scores.shape), strict=True):
    if np.isfinite(scores[i, j]):
      first, last = map(int, (window.offsets[starts[i], 0], window.offsets[ends[j], 1]))
      text = context[first:last].strip()
      first += len(context[first:last]) - len(context[first:last].lstrip())
      found.append(Guess(float(scores[i, j]), text, first, first + len(text)))
  return found


def keep_best(guesses: Sequence[Guess], count: int) -> list[Guess]:
  """Returns the best guess of every text that is not empty, the best first.

  Args:
    guesses: guesses in any order.
    count: most guesses that are returned.
  """
  best: dict[str, Guess] = {}
  for guess in sorted(guesses, key=lambda guess: -guess.score):
    if guess.text:
      best.setdefault(guess.text, guess)
  return list(best.values())[:count]


def write(name: str, predict: Callable[[Sequence[np.ndarray]], tuple[dict, dict, dict]],
          with_odds: bool, outputs: Sequence[np.ndarray], folder: pathlib.Path) -> None:
  """Writes predictions.json, nbest_predictions.json and null_odds.json, as run_squad.py does.

  Args:
    name: name of the set. All file names except those of 'dev' begin with it, 'test_'.
    predict: outputs -> (answers, guesses, odds), as `find_answers` returns them.
    with_odds: write null_odds.json, for SQuAD 2.0.
    outputs: logits of starts and ends in every window, float32 [2, length] each.
    folder: folder of the files.
  """
  answers, n_best, odds = predict(outputs)
  prefix = "" if name == "dev" else f"{name}_"
  contents = {"predictions": answers, "nbest_predictions": {
      id_: [{"text": guess.text, "score": guess.score} for guess in found]
      for id_, found in n_best.items()}}
  if with_odds:
    contents["null_odds"] = odds
  for stem, content in contents.items():
    write_json(folder / f"{prefix}{stem}.json", content, indent=1)


# ------------------------------------------------------------------ scores


def _score_outputs(questions: Sequence[Question], find: Callable, outputs: Any
                   ) -> dict[str, float]:
  """Scores the outputs of a model, which `find` turns into answers."""
  return score(questions, find(outputs)[0])


def score(questions: Sequence[Question], answers: dict[str, str]) -> dict[str, float]:
  """Returns exact match ('em') and F1 ('f1') of answers, as in the official scripts.

  They are the best over the right answers of a question, averaged over all questions. The right
  answer to a question without an answer is ''.

  Args:
    questions: questions of a set.
    answers: predicted answers by id of the question; a missing one counts 0.
  """
  exact = f1 = 0.0
  for question in questions:
    found = answers.get(question.id)
    expected = [text for _, text in question.answers if normalize(text)] or [""]
    if found is not None:
      exact += max(normalize(found) == normalize(text) for text in expected)
      f1 += max(word_f1(found, text) for text in expected)
  return {"em": exact / len(questions), "f1": f1 / len(questions)}


def word_f1(found: str, expected: str) -> float:
  """Returns the F1 of two texts as bags of normalized words (Rajpurkar et al. 2016, 6.1).

  Args:
    found: predicted answer.
    expected: right answer. If one of the two has no words, F1 is 1 if both have none, else 0.
  """
  found, expected = normalize(found).split(), normalize(expected).split()
  if not found or not expected:
    return float(found == expected)
  common = collections.Counter(found) & collections.Counter(expected)
  return harmonic_mean(sum(common.values()), len(found), len(expected))


def normalize(text: str) -> str:
  """Returns a text in lower case, without ASCII punctuation and the words a, an, the.

  White space becomes single spaces, as in the official scripts.
  """
  text = text.lower().translate(str.maketrans("", "", string.punctuation))
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
