"""Batches: a pure function of (corpus, config, seed, step).

Rows of a phase are numbered through all its epochs. Step s of a phase is rows
[s B, (s + 1) B); a row's number says which row of which epoch's plan it is. There is no state:
reading may start at any step, in any number of threads, processes or hosts.

Arrays that every batch holds, int32 [B, L] for B rows of L tokens:
  tokens         token ids; padding is [PAD], or 0 if the tokenizer has none
  sequence_ids   0: padding; 1, 2, ...: the sequence of the row; sequences must not mix
  positions      0, 1, ... from the first token of the sequence
The row format of the objective adds its own (`formats`).
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from bertgpt.config import ConfigDict, phase_at, total_steps
from bertgpt.data.batches import formats
from bertgpt.data.batches.parts import NO_LABEL, PART, Batch, Plan, token_sizes
from bertgpt.data.batches.windows import divide
from bertgpt.errors import ConfigError, DataError, PeerError

# An epoch of more tokens is planned in several windows: memory and the time before the first
# batch stay bounded (about 1.5 M pairs of 128 tokens: some seconds, half a GiB).
WINDOW_TOKENS = 2**27
KEPT_PLANS = 2  # A batch may hold the end of one window and the start of the next.

SURELY_ENOUGH = 64  # Batches' worth of tokens in a corpus whose rows need not be counted.

READ_THREADS = 2
BATCHES_AHEAD = 4  # In host memory, beyond `data.prefetch` on the device.

# Of the rows' order and content. Raise it with any change to them: a run that goes on would read
# other rows than it would have.
ORDER_VERSION = 1

ROWS_SHOWN = 5  # By `report`.
EVAL_SEED = 0  # One fixed plan of the validation split for all runs, so that they compare.


# -------------------------------------------------------------------- rows


class Rows:
  """The rows of a phase by number; holds the plans of the windows read last.

  Every window of every epoch is drawn afresh (see `windows`) and fitted to the number of rows of
  the very first one, so that a division leads from a row's number to its plan. An epoch thus
  covers the corpus but for a few rows; the first one, if it is a single window, covers all of it.

  Attributes:
    rows_per_window: rows of one plan.
    rows_per_epoch: rows after which a new epoch begins.
  """

  def __init__(self, corpus, config: ConfigDict, phase_index: int, seed: int,
               num_windows: int | None = None):
    self.seq_len = config.phases[phase_index].seq_len
    self._corpus, self._config, self._key = corpus, config, (seed, phase_index)
    self._layout = formats.make_layout(corpus.tokenizer, config, self.seq_len)
    num_tokens = int(corpus.document_lengths.sum())
    self._windows = divide(corpus.document_lengths,
                           num_windows or max(1, round(num_tokens / WINDOW_TOKENS)))
    self._plans: dict[int, Plan] = {}
    self._lock = threading.Lock()
    self.rows_per_window = None  # As the first plan has it.
    self.rows_per_window = self._plan(0).num_rows

  @property
  def rows_per_epoch(self) -> int:
    return self.rows_per_window * self._windows.count

  def read(self, row_numbers: np.ndarray, num_rows: int | None = None) -> Batch:
    """The batch of the rows `row_numbers`, integers [B], in this order.

    Args:
      num_rows: rows of the batch, if more than B; the last ones are empty.
    """
    parts, rows = self.plan(row_numbers)
    num_rows = len(row_numbers) if num_rows is None else num_rows
    batch = formats.find(self._config).assemble(parts, rows, self._read_texts(parts), num_rows,
                                                self._layout)
    return {name: np.ascontiguousarray(array) for name, array in batch.items()}

  def plan(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(PART [N], int64 [N]): the parts of the rows, and of each its row's index in [0, B)."""
    row_numbers = np.asarray(row_numbers, np.int64)
    window, row = np.divmod(row_numbers, self.rows_per_window)
    parts, rows = [np.zeros(0, PART)], [row[:0]]
    for w in np.unique(window).tolist():
      index = np.flatnonzero(window == w)
      plan = self._plan(w).take(row[index])
      parts.append(plan.parts)
      rows.append(np.repeat(index, np.diff(plan.offsets)))
    return np.concatenate(parts), np.concatenate(rows)

  def _plan(self, number: int) -> Plan:
    """The plan of the window `number`, counted through all epochs."""
    with self._lock:  # Reader threads that need the same new plan wait for one of them.
      if number not in self._plans:
        while len(self._plans) >= KEPT_PLANS:
          del self._plans[next(iter(self._plans))]
        epoch, window = divmod(number, self._windows.count)
        self._plans[number] = formats.make_plan(
            self._corpus, self._config, self.seq_len, (*self._key, epoch), window=window,
            windows=self._windows, num_rows=self.rows_per_window)
      return self._plans[number]

  def _read_texts(self, parts: np.ndarray) -> list[np.ndarray]:
    """The token ids of every part's span. A document is read once, however often it occurs."""
    documents, which = np.unique(parts["document"], return_inverse=True)
    tokens = self._corpus.tokens(documents)
    stops = parts["start"] + parts["length"]
    return [tokens[i][start:stop] for i, start, stop in
            zip(which.tolist(), parts["start"].tolist(), stops.tolist(), strict=True)]

  def __getstate__(self):
    """A reader process makes its own plans and lock."""
    return {**self.__dict__, "_plans": {}, "_lock": None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


# ----------------------------------------------------------------- batches


def read_step(rows: Rows, batch_size: int, local_rows: np.ndarray | slice, step: int) -> Batch:
  """The rows `local_rows` of the global batch of a step, counted from the phase's start."""
  return rows.read(step * batch_size + np.arange(batch_size)[local_rows])


def check_rows(corpus, config: ConfigDict) -> None:
  """Checks before training starts that an epoch of every phase fills a batch.

  Raises:
    DataError: it does not.
  """
  for i, phase in enumerate(config.phases):
    if corpus.num_tokens < SURELY_ENOUGH * phase.batch_size * phase.seq_len:
      _check_rows(Rows(corpus, config, i, config.seed), corpus, config, i)


def _check_rows(rows: Rows, corpus, config: ConfigDict, phase_index: int) -> None:
  phase = config.phases[phase_index]
  if rows.rows_per_epoch < phase.batch_size:
    raise DataError(
        f"{corpus.path}: the {corpus.split} split makes {rows.rows_per_epoch} rows of "
        f"{phase.seq_len} tokens, fewer than phases[{phase_index}].batch_size={phase.batch_size}; "
        "lower batch_size or seq_len, or prepare more text")


def make_train_batches(corpus, config: ConfigDict, phase_index: int, first_step: int,
                       local_rows: np.ndarray | slice) -> "TrainBatches":
  """This host's batches of a phase, from its step `first_step` to its last.

  `data.reader_workers` processes assemble them, or, if it is 0, threads; the batches are the same.

  Args:
    first_step: counted from the start of the phase.
    local_rows: this host's rows of every global batch, by number.
  Raises:
    DataError: an epoch has fewer rows than a batch.
  """
  phase, data = config.phases[phase_index], config.data
  rows = Rows(corpus, config, phase_index, config.seed)
  _check_rows(rows, corpus, config, phase_index)
  read = functools.partial(read_step, rows, phase.batch_size, local_rows)
  steps = grain.MapDataset.range(first_step, phase.steps)
  threads = 1 if data.reader_workers else READ_THREADS
  batches = steps.map(read).to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BATCHES_AHEAD))
  if data.reader_workers:
    # Grain hands its flags on to its processes; unparsed ones would be an error.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(
        num_workers=data.reader_workers, per_worker_buffer_size=1))
  return TrainBatches(batches)


class TrainBatches:
  """Iterator that owns reader threads or processes: close it, or use it in a `with`."""

  def __init__(self, dataset: grain.IterDataset):
    self._iterator = iter(dataset)

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._iterator is None:
      raise StopIteration
    try:
      return next(self._iterator)
    except BaseException as e:
      # Grain would go on behind the batch that failed.
      self.close()
      if isinstance(e, RuntimeError) and "terminated unexpectedly" in str(e):
        raise PeerError("a reader process ended unexpectedly (out of memory?); lower "
                        "data.reader_workers, or set it to 0") from e
      raise

  def close(self) -> None:
    """Ends the readers. A closed iterator is exhausted."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def __enter__(self) -> "TrainBatches":
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()


def make_eval_batches(corpus, config: ConfigDict, phase_index: int,
                      local_rows: np.ndarray | slice) -> Iterator[Batch]:
  """All rows of the first epoch, once, in batches of `eval.batch_size`, for every run the same.

  Rows that fill up the last batch are empty: sequence_ids and weights are 0. With
  `eval.max_rows` only so many rows, a random choice, are read.

  Args:
    local_rows: this host's rows of every global batch, by number.
  Raises:
    DataError: the split holds no text.
  """
  rows = Rows(corpus, config, phase_index, EVAL_SEED, num_windows=1)
  num_rows = min(config.eval.max_rows or rows.rows_per_epoch, rows.rows_per_epoch)
  size = config.eval.batch_size
  return (rows.read(local[local < num_rows], len(local)) for local in
          (first + np.arange(size)[local_rows] for first in range(0, num_rows, size)))


def batch_sha256(batch: Batch) -> str:
  """SHA-256 (hex) of a batch's names, types, shapes and values."""
  digest = hashlib.sha256()
  for name in sorted(batch):
    array = np.ascontiguousarray(batch[name])
    digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    digest.update(array)
  return digest.hexdigest()


# ------------------------------------------------------------------ report


def report(corpus, config: ConfigDict, steps: Sequence[int],
           mask_fn: Callable[[Batch], Batch] | None = None) -> str:
  """What training will see: every phase in numbers, some rows as text, hashes of batches.

  Args:
    steps: whose global batches are hashed, counted from 0 through the whole run.
    mask_fn: batch -> batch with masks, applied to the rows before they are shown.
  Raises:
    ConfigError: a step beyond the run.
    DataError: the corpus holds no text or does not fit the objective.
  """
  wrong = [step for step in steps if not 0 <= step < total_steps(config)]
  if wrong:
    raise ConfigError(f"--steps={wrong[0]}: the run has steps 0 to {total_steps(config) - 1}")
  phases = [Rows(corpus, config, i, config.seed) for i in range(len(config.phases))]
  lines = [line for i, rows in enumerate(phases) for line in _describe_phase(config, i, rows)]
  lines += _show_rows(phases[0].read(np.arange(min(ROWS_SHOWN, phases[0].rows_per_epoch))),
                      corpus.tokenizer, formats.find(config), mask_fn)
  for step in steps:
    i, first = phase_at(config, step)
    size = config.phases[i].batch_size
    batch = read_step(phases[i], size, slice(0, size), step - first)
    lines.append(f"step {step}: sha256 {batch_sha256(batch)}")
  return "\n".join(lines)


def _describe_phase(config: ConfigDict, phase_index: int, rows: Rows) -> list[str]:
  """Numbers of the first epoch, or of its first WINDOW_TOKENS tokens."""
  phase = config.phases[phase_index]
  num_rows = rows.rows_per_window
  parts, _ = rows.plan(np.arange(num_rows))
  row_format = formats.find(config)
  sizes = token_sizes(parts) - row_format.HAS_TARGET
  lengths = np.add.reduceat(sizes, np.flatnonzero(parts["column"] == parts["origin"]))
  labels = parts["label"][parts["label"] != NO_LABEL]
  lines = [f"phase {phase_index}: {phase.steps:,} steps of {phase.batch_size:,} rows of "
           f"{phase.seq_len:,} tokens",
           f"  rows an epoch    {rows.rows_per_epoch:,}",
           f"  epochs           {phase.steps * phase.batch_size / rows.rows_per_epoch:.2f}",
           f"  padding          {1 - sizes.sum() / (num_rows * phase.seq_len):.2%}",
           f"  sequences a row  {len(lengths) / num_rows:.2f}"]
  if len(labels):
    lines.append(f"  {row_format.PAIR_SHARE:<16} {labels.mean():.2%} of {len(labels):,} pairs")
  counts, edges = np.histogram(lengths, bins=8, range=(0.5, phase.seq_len + 0.5))
  shares = counts / len(lengths)
  return lines + ["  sequence lengths"] + [
      f"  {int(low + 0.5):>6} to {int(high - 0.5):<6} {share:7.2%} {'#' * round(40 * share)}"
      for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)]


def _show_rows(batch: Batch, tokenizer, row_format,
               mask_fn: Callable[[Batch], Batch] | None) -> list[str]:
  """The rows' segments as text, and what is to be predicted where `mask_fn` says so."""
  shown = mask_fn(batch) if mask_fn else batch
  lines = []
  for row, ids in enumerate(shown["sequence_ids"]):
    for sequence in range(1, ids.max() + 1):
      label = _label_text(batch, row_format, row, sequence)
      lines.append(f"row {row}, sequence {sequence}{label}")
      for segment, name in enumerate("AB" if "segment_ids" in batch else " "):
        here = ids == sequence
        if "segment_ids" in batch:
          here &= batch["segment_ids"][row] == segment
        if here.any():
          lines.append(f"  {name} {tokenizer.decode(shown['tokens'][row][here])}")
    if "predict_targets" in shown:
      slots = np.argsort(shown["predict_positions"][row])
      slots = slots[shown["predict_weights"][row][slots] > 0]
      targets = [tokenizer.decode([i]).strip() for i in shown["predict_targets"][row][slots]]
      lines.append(f"  to predict: {' | '.join(targets)}")
  return lines


def _label_text(batch: Batch, row_format, row: int, sequence: int) -> str:
  name = row_format.PAIR_NAME
  if not name or not batch[f"{name}_weights"][row, sequence - 1]:
    return ""
  return f", {row_format.PAIR_LABELS[batch[f'{name}_labels'][row, sequence - 1]]}"
