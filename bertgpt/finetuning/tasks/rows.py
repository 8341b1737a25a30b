"""Rows of tokens for a model that is fine-tuned, and batches of them.

Axes: B rows, L length.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bertgpt.config import ConfigDict, families
from bertgpt.data.batches import buckets
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError

GROUP_BATCHES = 32  # Batches within which examples are sorted by length, when they are.

HEAD_SHARE = 128 / 510  # What `head_tail` keeps of the front (Sun et al. 2019, arXiv:1905.05583).

NEW_TOKENS = 3  # That a GPT gets besides its vocabulary: start, delimiter, extract.


@dataclasses.dataclass(frozen=True)
class Rows:
  """Examples as the model reads them, padding left out.

  Attributes:
    tokens, segment_ids: for every row, int32 [length].
    labels: int32 [N], float32 [N], int32 [N, 2] (start and end), or for every row int32
      [length] with -1 where nothing is asked. Zeros or -1 where they are not known.
  """

  tokens: list[np.ndarray]
  segment_ids: list[np.ndarray]
  labels: Any

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def lengths(self) -> np.ndarray:
    return np.array([len(tokens) for tokens in self.tokens])

  def fingerprint(self) -> str:
    """Changes with any token, segment, label or the order of the rows."""
    labels = [self.labels] if isinstance(self.labels, np.ndarray) else self.labels
    digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
    for arrays in (self.tokens, self.segment_ids, labels):
      for x in arrays:
        digest.update(x.tobytes())
    return digest.hexdigest()


class EvalSet(NamedTuple):
  """Rows that are predicted.

  Attributes:
    name: 'dev', 'dev_mismatched', 'test'.
    score: outputs of all rows in order -> the official metrics, by name; None where labels are
      not known.
    write: (outputs, folder) -> writes the predictions in the official format.
  """

  name: str
  rows: Rows
  score: Callable[[np.ndarray], dict[str, float]] | None
  write: Callable[[np.ndarray, Any], None]


class Task(NamedTuple):
  """A task as it is fine-tuned.

  Attributes:
    kind: of the outputs; a key of `task_objectives.HEADS` together with the family.
    labels: what each of the model's outputs stands for; C of them.
    baseline: scores of the answer that is most frequent in training, on every set with labels.
    notes: what the user should know of the data.
  """

  name: str
  kind: str
  labels: tuple[str, ...]
  train: Rows
  evals: tuple[EvalSet, ...]
  baseline: dict[str, dict[str, float]]
  notes: tuple[str, ...] = ()


class Format(NamedTuple):
  """How texts become a row: [first] a [last], or [first] a [between] b [last].

  Attributes:
    segments: the second text has another segment.
    max_length, truncation: fields of `config.task`.
  """

  tokenizer: Tokenizer
  first: int
  between: int
  last: int
  segments: bool
  max_length: int
  truncation: str

  def make_row(self, a: np.ndarray, b: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segment ids) of one text or two, cut to `max_length`."""
    if b is None:
      a = truncate(a, self.max_length - 2, self.truncation)
      tokens = np.concatenate([[self.first], a, [self.last]])
      return tokens.astype(np.int32), np.zeros(len(tokens), np.int32)
    keep_a, keep_b = share_length(len(a), len(b), self.max_length - 3)
    a, b = truncate(a, keep_a, self.truncation), truncate(b, keep_b, self.truncation)
    tokens = np.concatenate([[self.first], a, [self.between], b, [self.last]])
    segment_ids = np.repeat([0, int(self.segments)], [len(a) + 2, len(b) + 1])
    return tokens.astype(np.int32), segment_ids.astype(np.int32)


def make_format(tokenizer: Tokenizer, model: ConfigDict, task: ConfigDict) -> Format:
  """Returns an encoder's [CLS] a [SEP] b [SEP], or a decoder's start a delimiter b extract.

  The tokens of a decoder are new ones (Radford et al. 2018, 3.3).

  Args:
    model: group of the pretrained run's config.
    task: group of the fine-tuning's config.
  Raises:
    ConfigError: the tokenizer lacks an encoder's special tokens.
  """
  if families.FAMILIES[model.family].kind == "decoder":
    size = tokenizer.vocab_size
    return Format(tokenizer, size, size + 1, size + 2, False, task.max_length, task.truncation)
  if min(tokenizer.cls_id, tokenizer.sep_id) < 0:
    raise ConfigError(f"the tokenizer ({tokenizer.kind}) has no [CLS] and [SEP], so no text can be "
                      "marked; fine-tune a run whose tokenizer has them")
  return Format(tokenizer, tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id,
                model.num_segments >= 2, task.max_length, task.truncation)


def vocab_size(tokenizer: Tokenizer, family: str) -> int:
  """Returns the number of the model's tokens, with those that `make_format` adds."""
  return tokenizer.vocab_size + (NEW_TOKENS if families.FAMILIES[family].kind == "decoder" else 0)


def truncate(tokens: np.ndarray, size: int, mode: str) -> np.ndarray:
  """At most `size` tokens: the first, the last, or 128 : 382 of both."""
  if len(tokens) <= size:
    return tokens
  head = {"head": size, "tail": 0, "head_tail": round(size * HEAD_SHARE)}[mode]
  return np.concatenate([tokens[:head], tokens[len(tokens) - (size - head):]])


def share_length(a: int, b: int, room: int) -> tuple[int, int]:
  """Tokens of two texts that are kept: the longer loses first (google-research/bert)."""
  if a + b <= room:
    return a, b
  shorter = min(a, b, room // 2)
  return (room - shorter, shorter) if a > b else (shorter, room - shorter)


# ------------------------------------------------------------------ batches


def order_epoch(lengths: np.ndarray, batch_size: int, seed: int, epoch: int,
                group_by_length: bool) -> list[np.ndarray]:
  """Row numbers of every batch of an epoch; all rows once, the last batch may be short.

  A function of the arguments alone.
  """
  rng = np.random.default_rng((seed, epoch))
  order = rng.permutation(len(lengths))
  if group_by_length:
    window = GROUP_BATCHES * batch_size
    parts = (order[i:i + window] for i in range(0, len(order), window))
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
  batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
  return [batches[i] for i in rng.permutation(len(batches))] if group_by_length else batches


def order_evaluation(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  """Row numbers of every batch; texts about as long come together."""
  order = np.argsort(lengths, kind="stable")
  for i in range(0, len(order), batch_size):
    yield order[i:i + batch_size]


def collate(rows: Rows, index: np.ndarray, batch_size: int, max_length: int,
            seed: int) -> dict[str, np.ndarray]:
  """The batch of some rows, as `task_objectives` describes it; missing rows weigh nothing."""
  length = buckets.bucket(max(len(rows.tokens[i]) for i in index), max_length)
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
