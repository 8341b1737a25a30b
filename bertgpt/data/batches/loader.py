"""Batches: a pure function of (corpus, config, seed, step).

The rows of a phase are numbered through all its epochs. Step s of a phase consists of the rows
[s B, (s + 1) B), and the index of a row determines its epoch and its place in the plan of that
epoch. There is no state: reading may start at any step, in any number of threads, processes or
hosts.

Arrays of every batch, int32 [B, L] for B rows of L tokens:
  tokens         token ids; padding is [PAD], or 0 if the tokenizer has no [PAD]
  sequence_ids   0: padding; 1, 2, ...: the sequence; tokens of different ones do not see each other
  positions      0, 1, ... from the first token of the sequence
The row format of the objective adds its own arrays (`formats`).
"""

import functools
import hashlib
import itertools
import sys
import threading
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.batches.parts import PART, Batch, Plan
from bertgpt.data.batches.windows import divide
from bertgpt.data.corpus.corpus import Corpus, sum_lengths
from bertgpt.devices import children
from bertgpt.errors import DataError, PeerError

# Larger epochs are planned in several windows, which bounds the memory and the time before the
# first batch: some seconds and half a GiB for the 1.5 million pairs of 128 tokens in a window.
WINDOW_TOKENS = 2**27
KEPT_PLANS = 2  # A batch may hold the end of one window and the start of the next.

# A corpus whose tokens would fill at least this many batches has enough rows, so they are not
# counted.
AMPLE_BATCHES = 64

READ_THREADS = 2
BATCHES_AHEAD = 4  # Batches in host memory, in addition to `data.prefetch` on the device.

# Version of the order and the content of the rows. Raise it with any change to them: otherwise, a
# resumed run would read different rows than a run that was not interrupted.
ORDER_VERSION = 1

# One fixed plan of the validation split per row length, so that all runs are comparable.
EVAL_SEED = 0


# -------------------------------------------------------------------- rows


class Rows:
  """The rows of a phase by index, with the plans of the windows that were read last.

  Every window of every epoch is drawn independently (see `windows`) and gets as many rows as the
  first window has, so that the index of a row, divided by this number, gives its plan. So an epoch
  covers the corpus except for a few rows; the first epoch covers all of it if it is a single
  window.

  Args:
    corpus: split to read.
    config: whole config.
    phase_index: index of the phase.
    seed: seed of all plans.
    key: second part of the random key, after the seed; None: index of the phase.
    num_windows: windows per epoch; None: as many as `WINDOW_TOKENS` demands.
    reads_all: whether there is only one epoch, which is read in order, and every window keeps all
      of its rows, each of them once.
    num_streams: rows of a batch, if every row continues the same row of the previous step (see
      `formats`); None: the batch size of the phase.

  Attributes:
    seq_len: tokens per row.
    rows_per_window: rows of one plan.
    rows_per_epoch: rows after which a new epoch begins.
  """

  def __init__(self, corpus: Corpus, config: ConfigDict, phase_index: int, seed: int,
               key: int | None = None, num_windows: int | None = None,
               num_streams: int | None = None, reads_all: bool = False):
    self._num_streams = num_streams or config.phases[phase_index].batch_size
    self.seq_len = config.phases[phase_index].seq_len
    self._corpus, self._config = corpus, config
    self._key = (seed, phase_index if key is None else key)
    self._layout = formats.make_layout(corpus.tokenizer, config, self.seq_len)
    num_tokens = sum_lengths(corpus.document_lengths)
    self._windows = divide(corpus.document_lengths,
                           num_windows or max(1, round(num_tokens / WINDOW_TOKENS)))
    self._plans: dict[int, Plan] = {}
    self._lock = threading.Lock()
    self._ends: list[int] = []  # With `reads_all`: rows up to the end of each planned window.
    self.rows_per_window = None  # The first plan has all its rows, and sets this number.
    self.rows_per_window = self._plan(0).num_rows
    if reads_all:
      self._ends.append(self.rows_per_window)

  @property
  def rows_per_epoch(self) -> int:
    """Rows after which a new epoch begins."""
    return self.rows_per_window * self._windows.count

  def read(self, row_numbers: np.ndarray, num_rows: int | None = None) -> Batch:
    """Returns the batch of some rows.

    Args:
      row_numbers: integers [B], indices of the rows, in the order of the batch.
      num_rows: rows of the batch, at least B; rows from B on are empty. None: B.
    """
    parts, rows = self.plan(row_numbers)
    num_rows = len(row_numbers) if num_rows is None else num_rows
    row_format = formats.find(self._config)
    texts = self._read_texts(parts, *row_format.spans(parts))
    canvas = row_format.paint(parts, rows, texts, num_rows, self._layout)
    batch = row_format.assemble(canvas)
    return {name: np.ascontiguousarray(array) for name, array in batch.items()}

  def plan(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the parts of some rows.

    Args:
      row_numbers: integers [B], indices of the rows.
    Returns:
      (PART [N], the parts; int64 [N], the row in [0, B) of every part).
    """
    window, row = self._find(np.asarray(row_numbers, np.int64))
    parts, rows = [np.zeros(0, PART)], [row[:0]]
    for w in np.unique(window).tolist():
      index = np.flatnonzero(window == w)
      plan = self._plan(w).take(row[index])
      parts.append(plan.parts)
      rows.append(np.repeat(index, np.diff(plan.offsets)))
    return np.concatenate(parts), np.concatenate(rows)

  def count(self, most: int) -> int:
    """Returns the number of rows of the only epoch, with `reads_all`, but no more than `most`.

    Args:
      most: number of rows beyond which no window is planned.
    """
    while self._ends[-1] < most and len(self._ends) < self._windows.count:
      self._ends.append(self._ends[-1] + self._plan(len(self._ends)).num_rows)
    return min(most, self._ends[-1])

  def _find(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows of rows, and the indices of the rows in them."""
    if not self._ends:
      return np.divmod(row_numbers, self.rows_per_window)
    window = np.searchsorted(self._ends, row_numbers, side="right")
    return window, row_numbers - np.array([0, *self._ends])[window]

  def _plan(self, number: int) -> Plan:
    """Returns the plan of a window; windows are numbered through all epochs."""
    with self._lock:  # One reader thread makes a new plan, while the others that need it wait.
      if number not in self._plans:
        while len(self._plans) >= KEPT_PLANS:
          del self._plans[next(iter(self._plans))]
        epoch, window = divmod(number, self._windows.count)
        self._plans[number] = formats.make_plan(
            self._corpus, self._config, self.seq_len, (*self._key, epoch), window=window,
            windows=self._windows, num_rows=None if self._ends else self.rows_per_window,
            num_streams=self._num_streams)
      return self._plans[number]

  def _read_texts(self, parts: np.ndarray, starts: np.ndarray,
                  stops: np.ndarray) -> list[np.ndarray]:
    """Reads the token ids of every part. A document is read only once, even for many parts."""
    documents, which = np.unique(parts["document"], return_inverse=True)
    tokens = self._corpus.tokens(documents)
    return [tokens[i][start:stop] for i, start, stop in
            zip(which.tolist(), starts.tolist(), stops.tolist(), strict=True)]

  def __getstate__(self):
    """Leaves out the plans and the lock: a reader process makes its own."""
    return {**self.__dict__, "_plans": {}, "_lock": None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())
    children.end_with_parent()  # This runs in a reader process, which gets the rows by pickling.
    children.leave_signals_to_parent()


# ----------------------------------------------------------------- batches


def read_step(rows: Rows, batch_size: int, local_rows: np.ndarray | slice, step: int) -> Batch:
  """Returns this host's part of the global batch of a step.

  Args:
    rows: rows of the phase.
    batch_size: rows of the global batch.
    local_rows: rows of this host within the global batch.
    step: step, counted from the start of the phase.
  """
  return rows.read(step * batch_size + np.arange(batch_size)[local_rows])


def check_rows(corpus: Corpus, config: ConfigDict) -> None:
  """Checks that an epoch of every phase fills at least one batch.

  Args:
    corpus: split to train on.
    config: whole config.
  Raises:
    DataError: an epoch has fewer rows than a batch.
  """
  for i, phase in enumerate(config.phases):
    if corpus.num_tokens < AMPLE_BATCHES * phase.batch_size * phase.seq_len:
      check_rows_of_phase(Rows(corpus, config, i, config.seed), corpus, config, i)


def check_rows_of_phase(rows: Rows, corpus: Corpus, config: ConfigDict, phase_index: int) -> None:
  """Checks that an epoch of a phase fills at least one batch.

  Args:
    rows: rows of the phase.
    corpus, config: see `check_rows`.
    phase_index: index of the phase.
  Raises:
    DataError: an epoch has fewer rows than a batch.
  """
  phase = config.phases[phase_index]
  if rows.rows_per_epoch < phase.batch_size:
    raise DataError(
        f"{corpus.path}: the {corpus.split} split makes {rows.rows_per_epoch} rows of "
        f"{phase.seq_len} tokens, fewer than phases[{phase_index}].batch_size={phase.batch_size}. "
        "Lower batch_size or seq_len, or prepare more text")


def make_train_batches(corpus: Corpus, config: ConfigDict, phase_index: int, first_step: int,
                       local_rows: np.ndarray | slice) -> "TrainBatches":
  """Starts reading this host's batches of a phase, up to its last step.

  The batches are assembled by `data.reader_workers` processes, or by threads if that is 0. They
  are the same in both cases.

  Args:
    corpus: split to train on.
    config: whole config.
    phase_index: index of the phase.
    first_step: first step, counted from the start of the phase.
    local_rows: rows of this host within every global batch.
  Raises:
    DataError: an epoch has fewer rows than a batch.
  """
  phase, data = config.phases[phase_index], config.data
  rows = Rows(corpus, config, phase_index, config.seed)
  check_rows_of_phase(rows, corpus, config, phase_index)
  read = functools.partial(read_step, rows, phase.batch_size, local_rows)
  steps = grain.MapDataset.range(first_step, phase.steps)
  threads = 1 if data.reader_workers else READ_THREADS
  batches = steps.map(read).to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=BATCHES_AHEAD))
  if data.reader_workers:
    # Grain passes its flags to its processes, which fails if they are not parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(
        num_workers=data.reader_workers, per_worker_buffer_size=1))
  return TrainBatches(batches)


class TrainBatches:
  """Iterator over batches that owns reader threads or processes.

  Close it, or use it in a `with` statement.

  Args:
    dataset: Grain's dataset of the batches.
  """

  def __init__(self, dataset: grain.IterDataset):
    self._iterator, self._has_started = iter(dataset), False

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._iterator is None:
      raise StopIteration
    try:
      if self._has_started:
        return next(self._iterator)
      self._has_started = True  # The readers start with the first batch.
      with children.without_main():
        return next(self._iterator)
    except BaseException as e:
      # Grain would skip the batch that failed and continue with the next one.
      self.close()
      if isinstance(e, RuntimeError) and "terminated unexpectedly" in str(e):
        raise PeerError("a reader process ended unexpectedly (out of memory?). Lower "
                        "data.reader_workers, or set it to 0") from e
      raise

  def close(self) -> None:
    """Ends the readers. Afterwards the iterator yields nothing."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def __enter__(self) -> "TrainBatches":
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()


def make_eval_batches(corpus: Corpus, config: ConfigDict, phase_index: int,
                      local_rows: np.ndarray | slice) -> Iterator[Batch]:
  """Returns an iterator over the rows of one epoch, in batches of `eval.batch_size`.

  The rows are the same for every run, unless `eval.rows_by` is 'phase'. The last batch is filled
  with empty rows, whose sequence_ids and weights are 0. With `eval.max_rows`, that many rows are
  read, chosen at random; of streams, the first rows.

  Args:
    corpus: split to evaluate on.
    config: whole config.
    phase_index: index of the phase whose `seq_len` the rows have.
    local_rows: rows of this host within every global batch.
  Raises:
    DataError: the split holds no text.
  """
  return _fill_batches(_eval_rows(corpus, config, phase_index), config.eval.max_rows or sys.maxsize,
                       np.arange(config.eval.batch_size), local_rows)


def count_eval_rows(corpus: Corpus, config: ConfigDict, phase_index: int) -> int:
  """Returns the number of rows that `make_eval_batches` reads.

  Args:
    corpus, config, phase_index: see `make_eval_batches`.
  Raises:
    DataError: the split holds no text.
  """
  return _eval_rows(corpus, config, phase_index).count(config.eval.max_rows or sys.maxsize)


def _eval_rows(corpus: Corpus, config: ConfigDict, phase_index: int) -> Rows:
  key = None if config.eval.rows_by == "phase" else 0  # As in a run of one phase.
  return Rows(corpus, config, phase_index, EVAL_SEED, key, num_streams=config.eval.batch_size,
              reads_all=True)


def _fill_batches(rows: Rows, most: int, batch: np.ndarray,
                  local_rows: np.ndarray | slice) -> Iterator[Batch]:
  """Yields this host's part of batches with at most `most` rows in total.

  Args:
    rows: all rows of a split.
    most: number of rows.
    batch: indices of the rows of the first batch, of all hosts.
    local_rows: rows of this host within every batch.
  """
  for first in itertools.count(step=len(batch)):
    end = rows.count(min(first + len(batch), most))
    if end <= first:
      return
    local = (first + batch)[local_rows]
    yield rows.read(local[local < end], len(local))


def batch_sha256(batch: Batch) -> str:
  """Returns the SHA-256 (hex) of the names, dtypes, shapes and values of a batch."""
  digest = hashlib.sha256()
  for name in sorted(batch):
    array = np.ascontiguousarray(batch[name])
    digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    digest.update(array.data)
  return digest.hexdigest()
