"""Rows of tokens for fine-tuning, and batches of rows.

Axes: B rows, L length.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict, families
from bertgpt.data.batches import buckets
from bertgpt.data.tokens import marks, unknown
from bertgpt.data.tokens.marks import Marks
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError

GROUP_BATCHES = 32  # Number of batches whose rows are sorted by length together.

HEAD_SHARE = 128 / 510  # Share of the head in `head_tail` (Sun et al. 2019, arXiv:1905.05583).

NEW_TOKENS = marks.of_tuned_decoder(0).count(is_pair=True)  # Added to a decoder's vocabulary.


@dataclasses.dataclass(frozen=True)
class Rows:
  """Examples as the model reads them, without padding.

  Attributes:
    tokens: token ids of every row, N arrays int32 [length].
    segment_ids: segments of every row, N arrays int32 [length].
    labels: by kind of the task: classes int32 [N]; values float32 [N]; start and end of a span
      int32 [N, 2]; classes of tokens, N arrays int32 [length] with -1 for tokens without a label.
      Unknown labels are 0, or -1 for tokens.
    num_cut: rows that lack a part of their texts, which was too long.
  """

  tokens: list[np.ndarray]
  segment_ids: list[np.ndarray]
  labels: Any
  num_cut: int = 0

  def __len__(self) -> int:
    """Returns N, the number of rows."""
    return len(self.tokens)

  @property
  def lengths(self) -> np.ndarray:
    """Number of tokens of every row, int64 [N]."""
    return np.array([len(tokens) for tokens in self.tokens])

  def fingerprint(self) -> str:
    """Returns a SHA-256 (hex) over all tokens, segments and labels, in the order of the rows."""
    labels = [self.labels] if isinstance(self.labels, np.ndarray) else self.labels
    digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
    for arrays in (self.tokens, self.segment_ids, labels):
      for x in arrays:
        digest.update(x.tobytes())
    return digest.hexdigest()


class EvalSet(NamedTuple):
  """A set of rows that is predicted.

  Attributes:
    name: 'dev', 'dev_mismatched', 'test', ...
    rows: rows of the set.
    score: outputs of all rows, in order -> official metrics by name; None if labels are unknown.
    write: (outputs, folder) -> None; writes the predictions in the official format.
    gold: what `score` compares with, as JSON, if the labels of the rows are not all of it.
  """

  name: str
  rows: Rows
  score: Callable[[Any], dict[str, float]] | None
  write: Callable[[np.ndarray, Any], None]
  gold: Any = None


class Task(NamedTuple):
  """A task with its data.

  Attributes:
    name: key of `tasks.TASKS`.
    kind: kind of the outputs; with the kind of the family, a key of `objectives.TASK_HEADS`.
    labels: names of the model's C outputs.
    train: rows of the training set.
    evals: sets to predict; the first is the dev set.
    baseline: metrics by set, for sets with labels, of the answer that is most frequent in training.
    notes: remarks about the data for the user, one line each.
    texts: columns of the texts, for a task whose examples may be single texts or pairs.
  """

  name: str
  kind: str
  labels: tuple[str, ...]
  train: Rows
  evals: tuple[EvalSet, ...]
  baseline: dict[str, dict[str, float]]
  notes: tuple[str, ...] = ()
  texts: tuple[str, ...] = ()


class TextFormat(NamedTuple):
  """Format of a row of one or two texts.

  Attributes:
    tokenizer: tokenizer of the pretrained run.
    marks: special tokens around the texts.
    segments: whether the second text has segment 1; otherwise all tokens have segment 0.
    max_length: tokens of the longest row.
    truncation: part of a longer text that is kept: 'head', 'tail' or 'head_tail'.
  """

  tokenizer: Tokenizer
  marks: Marks
  segments: bool
  max_length: int
  truncation: str

  def cuts(self, a: np.ndarray, b: np.ndarray | None = None) -> bool:
    """Returns whether one text or two are too long for a row; see `make_row`."""
    length = len(a) + (0 if b is None else len(b))
    return length + self.marks.count(is_pair=b is not None) > self.max_length

  def make_row(self, a: np.ndarray, b: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of one text or two, truncated to `max_length` tokens.

    Args:
      a: token ids of the first text, int32 [length].
      b: token ids of the second text; None: there is only one.
    Returns:
      (token ids, segment ids), both int32 [length].
    """
    if b is None:
      a = truncate(a, self.max_length - self.marks.count(), self.truncation)
      return self.marks.enclose(a), self.marks.segments(len(a), None, self.segments)
    keep_a, keep_b = share_length(len(a), len(b), self.max_length - self.marks.count(is_pair=True))
    a, b = truncate(a, keep_a, self.truncation), truncate(b, keep_b, self.truncation)
    return self.marks.enclose(a, b), self.marks.segments(len(a), len(b), self.segments)


class Remarks:
  """What a user should know about rows: how many are cut, and how much of them is unknown.

  Args:
    text_format: format of the rows.
  """

  def __init__(self, text_format: TextFormat):
    self._format = text_format
    self._num_rows = self._num_cut = self._num_tokens = self._num_unknown = 0

  def add(self, rows: Rows) -> None:
    """Counts rows."""
    self._num_rows += len(rows)
    self._num_cut += rows.num_cut
    self._num_tokens += int(rows.lengths.sum())
    self._num_unknown += unknown.count_tokens(self._format.tokenizer, rows.tokens)

  def lines(self, of_what: str) -> list[str]:
    """Returns the remarks, one line each.

    Args:
      of_what: what the rows are, such as 'the train set'.
    """
    lines = []
    if self._num_cut:
      lines.append(f"{self._num_cut} of {self._num_rows} rows of {of_what} are cut to "
                   f"task.max_length={self._format.max_length} tokens "
                   f"(task.truncation={self._format.truncation!r})")
    if remark := unknown.describe(self._num_unknown, self._num_tokens, f"the tokens of {of_what}"):
      lines.append(remark)
    return lines


def make_text_format(tokenizer: Tokenizer, model: ConfigDict, task: ConfigDict) -> TextFormat:
  """Returns the format of rows: texts with marks around them, see `marks.of_family`.

  Args:
    tokenizer: tokenizer of the pretrained run.
    model: group `model` of the pretrained run's config.
    task: group `task` of the fine-tuning config.
  Raises:
    ConfigError: the tokenizer lacks an encoder's special tokens.
  """
  family = families.FAMILIES[model.family]
  is_encoder = family.kind == "encoder"
  if is_encoder and min(tokenizer.cls_id, tokenizer.sep_id) < 0:
    raise ConfigError(f"the tokenizer ({tokenizer.kind}) has no [CLS] and [SEP], which mark texts. "
                      "Fine-tune a run whose tokenizer has them")
  return TextFormat(tokenizer, marks.of_family(family, tokenizer, is_tuned=True),
                    is_encoder and model.num_segments >= 2, task.max_length, task.truncation)


def vocab_size(tokenizer: Tokenizer, family: str) -> int:
  """Returns the number of tokens of the fine-tuned model, with those that `make_text_format` adds.

  Args:
    tokenizer: tokenizer of the pretrained run.
    family: key of `families.FAMILIES`.
  """
  return tokenizer.vocab_size + (NEW_TOKENS if families.FAMILIES[family].kind == "decoder" else 0)


def truncate(tokens: np.ndarray, size: int, mode: str) -> np.ndarray:
  """Returns at most `size` tokens of a text.

  Args:
    tokens: token ids, [length].
    size: maximum number of tokens that are kept.
    mode: part that is kept: 'head', 'tail', or 'head_tail', which keeps both in the ratio 128 : 382
      (Sun et al. 2019, arXiv:1905.05583).
  """
  if len(tokens) <= size:
    return tokens
  head = {"head": size, "tail": 0, "head_tail": round(size * HEAD_SHARE)}[mode]
  return np.concatenate([tokens[:head], tokens[len(tokens) - (size - head):]])


def share_length(a: int, b: int, room: int) -> tuple[int, int]:
  """Returns how many tokens of each of two texts are kept; the longer text is cut first.

  The result is that of _truncate_seq_pair in google-research/bert, run_classifier.py (2018).

  Args:
    a: tokens of the first text.
    b: tokens of the second text.
    room: maximum number of tokens of both together.
  """
  if a + b <= room:
    return a, b
  if a <= room // 2:
    return a, room - a
  kept = min(b, room // 2)  # Of two texts that are too long, the second loses the odd token.
  return room - kept, kept


# ------------------------------------------------------------------ batches


def order_epoch(lengths: np.ndarray, batch_size: int, seed: int, epoch: int,
                group_by_length: bool) -> list[np.ndarray]:
  """Returns the row indices of every batch of an epoch: every row once; one batch may be short.

  The order depends only on the arguments.

  Args:
    lengths: tokens of every row, [N].
    batch_size: rows per batch.
    seed: seed of the run.
    epoch: index of the epoch, from 0.
    group_by_length: sort the rows of `GROUP_BATCHES` batches by length, so that there is less
      padding; the batches are then shuffled.
  """
  rng = np.random.default_rng((seed, epoch))
  order = rng.permutation(len(lengths))
  if group_by_length:
    size = GROUP_BATCHES * batch_size
    parts = (order[i:i + size] for i in range(0, len(order), size))
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
  batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
  return [batches[i] for i in rng.permutation(len(batches))] if group_by_length else batches


def order_evaluation(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  """Yields the row indices of every batch, with rows of similar length together.

  Args:
    lengths: tokens of every row, [N].
    batch_size: rows per batch; the last batch may be short.
  """
  order = np.argsort(lengths, kind="stable")
  for i in range(0, len(order), batch_size):
    yield order[i:i + batch_size]


def collate(rows: Rows, index: np.ndarray, batch_size: int, max_length: int, seed: int,
            lengths: Sequence[int] = ()) -> dict[str, np.ndarray]:
  """Returns a batch of some rows, with the entries that `finetuning.objectives` describes.

  Args:
    rows: rows of a set.
    index: indices of the rows of the batch, at most `batch_size`.
    batch_size: rows of the batch; empty rows with weight 0 fill it up.
    max_length: tokens of the longest row that is allowed.
    seed: seed of the run.
    lengths: lengths that a batch may have, ascending; the first that holds all rows is used. If
      none does, it is one of `buckets`.
  """
  longest = max(len(rows.tokens[i]) for i in index)
  length = next((n for n in lengths if n >= longest), buckets.bucket(longest, max_length))
  zeros = np.zeros((batch_size, length), np.int32)
  batch = {"tokens": zeros.copy(), "segment_ids": zeros.copy(), "sequence_ids": zeros.copy(),
           "positions": np.tile(np.arange(length, dtype=np.int32), (batch_size, 1)),
           "example_weights": (np.arange(batch_size) < len(index)).astype(np.float32),
           "seed": np.full(batch_size, seed, np.int32)}
  for row, i in enumerate(index):
    size = len(rows.tokens[i])
    batch["tokens"][row, :size] = rows.tokens[i]
    batch["segment_ids"][row, :size] = rows.segment_ids[i]
    batch["sequence_ids"][row, :size] = 1
  if isinstance(rows.labels, np.ndarray):
    batch["labels"] = np.zeros((batch_size, *rows.labels.shape[1:]), rows.labels.dtype)
    batch["labels"][:len(index)] = rows.labels[index]
    return batch
  batch["labels"] = zeros - 1
  for row, i in enumerate(index):
    batch["labels"][row, :len(rows.labels[i])] = rows.labels[i]
  return batch
