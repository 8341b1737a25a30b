"""Rows by index: a pure function of (corpus, config, seed, index).

The rows of a phase are numbered through all its epochs, and an epoch consists of windows, which are
drawn independently of each other (see `windows`). The index of a row determines its epoch, its
window and its place in the plan of that window.
"""

import abc
import threading

import numpy as np

from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.batches.parts import PART, Batch, Placed, Plan
from bertgpt.data.batches.windows import divide
from bertgpt.data.corpus.corpus import Corpus, sum_lengths

# Larger epochs are planned in several windows, which bounds the memory and the time before the
# first batch: some seconds and half a GiB for the 1.5 million pairs of 128 tokens in a window.
WINDOW_TOKENS = 2**27
KEPT_PLANS = 2  # A batch may hold the end of one window and the start of the next.

# Version of the order and the content of the rows. Raise it with any change to them: otherwise, a
# resumed run would read different rows than a run that was not interrupted.
ORDER_VERSION = 1

# One fixed plan of the validation split per row length, so that all runs are comparable.
EVAL_SEED = 0


class Rows(abc.ABC):
  """The rows of a phase by index, with the plans of the windows that were read last.

  `TrainRows` and `EvalRows` say which window holds a row.

  Args:
    corpus: split to read.
    config: whole config.
    phase_index: index of the phase.
    key: random key of the plans; the number of the epoch is added to it.
    num_windows: windows per epoch; None: as many as `WINDOW_TOKENS` demands.
    num_streams: rows of a batch, if every row continues the same row of the previous step (see
      `formats`).

  Attributes:
    seq_len: tokens per row.
    rows_per_window: rows that every window gets; None: as many as its text makes.
  """

  rows_per_window: int | None = None

  def __init__(self, corpus: Corpus, config: ConfigDict, phase_index: int, key: tuple[int, int],
               num_windows: int | None, num_streams: int):
    self.seq_len = config.phases[phase_index].seq_len
    self._corpus, self._config = corpus, config
    self._key, self._num_streams = key, num_streams
    self._layout = formats.make_layout(corpus.tokenizer, config, self.seq_len)
    num_tokens = sum_lengths(corpus.document_lengths)
    self._windows = divide(corpus.document_lengths,
                           num_windows or max(1, round(num_tokens / WINDOW_TOKENS)))
    self._plans: dict[int, Plan] = {}
    self._lock = threading.Lock()

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
    batch = row_format.assemble(Placed(parts, rows, texts, num_rows, self._layout))
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
      plan = self._plan(w, self.rows_per_window).take(row[index])
      parts.append(plan.parts)
      rows.append(np.repeat(index, np.diff(plan.offsets)))
    return np.concatenate(parts), np.concatenate(rows)

  @abc.abstractmethod
  def _find(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows of rows, and the indices of the rows in them."""

  def _plan(self, number: int, num_rows: int | None) -> Plan:
    """Returns the plan of a window, with `num_rows` rows or, if that is None, all that it makes.

    Windows are numbered through all epochs.
    """
    with self._lock:  # One reader thread makes a new plan, while the others that need it wait.
      if number not in self._plans:
        while len(self._plans) >= KEPT_PLANS:
          del self._plans[next(iter(self._plans))]
        epoch, window = divmod(number, self._windows.count)
        self._plans[number] = formats.make_plan(
            self._corpus, self._config, self.seq_len, (*self._key, epoch), window=window,
            windows=self._windows, num_rows=num_rows, num_streams=self._num_streams)
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


class TrainRows(Rows):
  """The rows of as many epochs as the steps of a phase need, each in another order.

  Every window gets as many rows as the first one has, so that the index of a row, divided by this
  number, gives its window. So an epoch covers the corpus except for a few rows; the first epoch
  covers all of it if it is a single window.

  Args:
    corpus: split to read.
    config: whole config.
    phase_index: index of the phase.
    seed: seed of all plans.
    num_windows: windows per epoch; None: as many as `WINDOW_TOKENS` demands.

  Attributes:
    rows_per_window: rows of one plan.
    rows_per_epoch: rows after which a new epoch begins.
  """

  rows_per_window: int

  def __init__(self, corpus: Corpus, config: ConfigDict, phase_index: int, seed: int,
               num_windows: int | None = None):
    super().__init__(corpus, config, phase_index, (seed, phase_index), num_windows,
                     config.phases[phase_index].batch_size)
    self.rows_per_window = self._plan(0, None).num_rows
    self.rows_per_epoch = self.rows_per_window * self._windows.count

  def _find(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(row_numbers, self.rows_per_window)


class EvalRows(Rows):
  """The rows of a single epoch, read in order: every window keeps all of its rows.

  They are the same for every run, unless `eval.rows_by` is 'phase'.

  Args:
    corpus: split to read.
    config: whole config.
    phase_index: index of the phase whose `seq_len` the rows have.
  """

  def __init__(self, corpus: Corpus, config: ConfigDict, phase_index: int):
    index = phase_index if config.eval.rows_by == "phase" else 0  # 0: as in a run of one phase.
    super().__init__(corpus, config, phase_index, (EVAL_SEED, index), None, config.eval.batch_size)
    self._ends = [self._plan(0, None).num_rows]  # Rows up to the end of each planned window.

  def count(self, most: int) -> int:
    """Returns the number of rows, but no more than `most`.

    Args:
      most: number of rows beyond which no window is planned.
    """
    while self._ends[-1] < most and len(self._ends) < self._windows.count:
      self._ends.append(self._ends[-1] + self._plan(len(self._ends), None).num_rows)
    return min(most, self._ends[-1])

  def _find(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows of rows, which `count` must have reached."""
    window = np.searchsorted(self._ends, row_numbers, side="right")
    return window, row_numbers - np.array([0, *self._ends])[window]
