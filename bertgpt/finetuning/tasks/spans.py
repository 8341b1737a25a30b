"""Spans of texts that answer questions: rows of windows, and the likeliest spans in them.

Long texts are read in overlapping windows. The labels of a window are the answer's first and last
token. If the window does not contain the answer, or if there is none, both are the [CLS].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.tokens.offsets import encode_with_offsets
from bertgpt.finetuning.tasks.rows import Rows, TextFormat

# Task -> (version in the names of its files, whether some of its questions have no answer).
VERSIONS = {"squad": ("v1.1", False), "squad2": ("v2.0", True)}
NO_SPAN_SCORE = -1e9  # Score of a text without any span; JSON has no infinity.


class Question(NamedTuple):
  """A question about a text.

  Attributes:
    id: official id.
    question: the question.
    context: text that holds the answer.
    answers: (index of its first character in the context, text) of every correct answer; () if the
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
    question: index of the question.
    first: position of the window's first token in the row.
    null: position of the token in the row that stands for "no answer".
    offsets: (first character, character after the last) in the context of each of the window's N
      tokens, int32 [N, 2].
    has_max_context: whether no other window shows more of a token's surroundings, bool [N].
  """

  question: int
  first: int
  null: int
  offsets: np.ndarray
  has_max_context: np.ndarray


class Guess(NamedTuple):
  """Text of a span, and the sum of the logits of its start and its end.

  Attributes:
    score: sum of the logits.
    text: text of the span; '': no answer.
    start: index of its first character in the context; None for no answer.
    end: index of the character after its last.
  """

  score: float
  text: str
  start: int | None = None
  end: int | None = None


class Answer(NamedTuple):
  """Answer to a question.

  Attributes:
    text: text of the answer; '': the question has none.
    guesses: the best guesses, the best first.
    odds: score of "no answer" minus the score of the best span.
  """

  text: str
  guesses: list[Guess]
  odds: float


# ----------------------------------------------------------------- windows


def make_rows(questions: Sequence[Question], config: ConfigDict, text_format: TextFormat
              ) -> tuple[Rows, list[Window]]:
  """Returns the rows of all windows of all questions, with the first answer as their label.

  Args:
    questions: questions of a set.
    config: group `task` of the fine-tuning config.
    text_format: format of the rows.
  Returns:
    (rows, window of every row).
  """
  marks = text_format.marks
  contexts = list(dict.fromkeys(question.context for question in questions))
  encoded = dict(zip(contexts, encode_with_offsets(text_format.tokenizer, contexts), strict=True))
  tokens, segments, labels, windows = [], [], [], []
  asked = text_format.tokenizer.encode([question.question for question in questions])
  for number, (question, q_ids) in enumerate(zip(questions, asked, strict=True)):
    ids, offsets = encoded[question.context]
    asked_ids = q_ids[:config.max_question]
    first = marks.num_before + len(asked_ids) + len(marks.between)
    span = find_span(question, offsets)
    parts = cut(len(ids), config.max_length - first - marks.num_after, config.stride)
    for (start, end), has_max_context in zip(parts, find_max_context(parts), strict=True):
      row = marks.enclose(asked_ids, ids[start:end])
      null = 0 if marks.end is None else len(row) - 1
      tokens.append(row)
      segments.append(marks.segments(len(asked_ids), end - start, text_format.segments))
      is_inside = span is not None and start <= span[0] and span[1] < end
      labels.append([first + i - start for i in span] if is_inside else [null, null])
      windows.append(Window(number, first, null, offsets[start:end], has_max_context))
  return Rows(tokens, segments, np.array(labels, np.int32)), windows


def find_span(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
  """Returns the indices of the first and last token of the first answer; None without one.

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
    stride: tokens from the start of a window to the start of the next; capped at `room`.
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
  best_score, best = np.full(parts[-1][1], -np.inf), np.zeros(parts[-1][1], int)
  for i, (start, end) in enumerate(parts):
    at = np.arange(end - start)
    score = np.minimum(at, end - start - 1 - at) + 0.01 * (end - start)
    is_better = score > best_score[start:end]
    best_score[start:end][is_better] = score[is_better]
    best[start:end][is_better] = i
  return [best[start:end] == i for i, (start, end) in enumerate(parts)]


# ----------------------------------------------------------------- answers


def find_answers(questions: Sequence[Question], windows: Sequence[Window], config: ConfigDict,
                 outputs: Sequence[np.ndarray]) -> list[Answer]:
  """Returns the answer to every question.

  If questions may have no answer, those whose odds exceed `null_threshold` get none.

  Args:
    questions: questions of a set.
    windows: windows of all questions.
    config: group `task` of the fine-tuning config.
    outputs: logits of starts and ends in every window, float32 [2, length] each.
  """
  guesses = [[] for _ in questions]
  nulls = np.full(len(questions), np.inf)
  for window, logits in zip(windows, outputs, strict=True):
    context = questions[window.question].context
    guesses[window.question] += find_spans(window, logits, context, config)
    # The window with the lowest score of "no answer" counts, as in run_squad.py.
    nulls[window.question] = min(nulls[window.question], float(logits[:, window.null].sum()))
  _, has_unanswerable = VERSIONS[config.name]
  answers = []
  for found, null in zip(guesses, nulls, strict=True):
    found = keep_best(found, config.n_best)
    best = found[0] if found else Guess(NO_SPAN_SCORE, "")
    odds = float(null - best.score)
    is_null = has_unanswerable and odds > config.null_threshold
    if has_unanswerable:
      found = sorted([*found, Guess(null, "")], key=lambda guess: -guess.score)
    answers.append(Answer("" if is_null else best.text, found, odds))
  return answers


def find_spans(window: Window, logits: np.ndarray, context: str, config: ConfigDict
               ) -> list[Guess]:
  """Returns the best spans between the window's likeliest starts and ends, the best first.

  Args:
    window: part of the context.
    logits: logits of starts and ends in its row, float32 [2, length].
    context: text of the question.
    config: group `task` of the fine-tuning config; at most `n_best` spans of at most `max_answer`
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
    count: maximum number of guesses.
  """
  best: dict[str, Guess] = {}
  for guess in sorted(guesses, key=lambda guess: -guess.score):
    if guess.text:
      best.setdefault(guess.text, guess)
  return list(best.values())[:count]
