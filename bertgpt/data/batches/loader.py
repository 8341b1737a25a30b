"""Batches: a pure function of (corpus, config, seed, step).

Step s of a phase consists of the rows [s B, (s + 1) B) of `mixture.PhaseRows`. There is no state:
reading may start at any step, in any number of threads, processes or hosts.

Arrays of every batch, int32 [B, L] for B rows of L tokens:
  tokens         token ids; padding is [PAD], or 0 if the tokenizer has no [PAD]
  sequence_ids   0: padding; 1, 2, ...: the sequence; tokens of different ones do not see each other
  positions      0, 1, ... from the first token of the sequence
The row format of the objective adds its own arrays (`formats`).
"""

import contextlib
import functools
import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np
from absl import flags

from bertgpt.config import ConfigDict, mixtures
from bertgpt.data.batches.mixture import NO_OTHERS, Member, PhaseRows, make_member
from bertgpt.data.batches.parts import Batch
from bertgpt.data.batches.rows import EvalRows, TrainRows
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.devices import children
from bertgpt.errors import DataError, WorkerError

# A corpus whose tokens would fill at least this many batches has enough rows, so they are not
# counted.
AMPLE_BATCHES = 64

READ_THREADS = 2
BATCHES_AHEAD = 4  # Batches in host memory, in addition to `data.prefetch` on the device.


def read_step(rows: PhaseRows | TrainRows, batch_size: int, local_rows: np.ndarray | slice,
              step: int) -> Batch:
  """Returns this host's part of the global batch of a step.

  Args:
    rows: rows of the phase; without a mixture, they are the rows of its only corpus.
    batch_size: rows of the global batch.
    local_rows: rows of this host within the global batch.
    step: step, counted from the start of the phase.
  """
  return rows.read(step * batch_size + np.arange(batch_size)[local_rows])


def check_rows(corpus: Corpus, config: ConfigDict,
               others: Mapping[str, Corpus] = NO_OTHERS) -> None:
  """Checks that an epoch of every corpus of every phase fills its part of at least one batch.

  Args:
    corpus: split to train on.
    config: whole config.
    others: name -> the same split of the other corpora of mixtures.
  Raises:
    DataError: an epoch has fewer rows.
  """
  corpora = {**others, mixtures.MAIN: corpus}
  for i, phase in enumerate(config.phases):
    ample = AMPLE_BATCHES * phase.batch_size * phase.seq_len
    for name in mixtures.find_shares(phase):
      if corpora[name].num_tokens < ample:
        check_rows_of_member(make_member(corpora[name], config, i, name), config, i)


def check_rows_of_member(member: Member, config: ConfigDict, phase_index: int) -> None:
  """Checks that an epoch of a corpus of a phase fills its part of at least one batch.

  Args:
    member: the corpus and its share.
    config: whole config.
    phase_index: index of the phase.
  Raises:
    DataError: an epoch has fewer rows.
  """
  phase, corpus = config.phases[phase_index], member.corpus
  in_batch = math.ceil(phase.batch_size * member.share)
  if member.rows.rows_per_epoch < in_batch:
    part, remedy = (f"the {in_batch} of ", "its weight, ") if phase.mixture else ("", "")
    raise DataError(
        f"{corpus.path}: the {corpus.split} split makes {member.rows.rows_per_epoch} rows of "
        f"{phase.seq_len} tokens, fewer than {part}phases[{phase_index}].batch_size="
        f"{phase.batch_size}. Lower {remedy}batch_size or seq_len, or prepare more text")


def make_train_batches(corpus: Corpus, config: ConfigDict, phase_index: int, first_step: int,
                       local_rows: np.ndarray | slice,
                       others: Mapping[str, Corpus] = NO_OTHERS) -> "TrainBatches":
  """Starts reading this host's batches of a phase, up to its last step.

  The batches are assembled by `data.reader_workers` processes, or by threads if that is 0. They
  are the same in both cases.

  Args:
    corpus: split to train on.
    config: whole config.
    phase_index: index of the phase.
    first_step: first step, counted from the start of the phase.
    local_rows: rows of this host within every global batch.
    others: name -> the same split of the other corpora of mixtures.
  Raises:
    DataError: an epoch has fewer rows than a batch.
  """
  phase, data = config.phases[phase_index], config.data
  rows = PhaseRows(corpus, config, phase_index, others)
  for member in rows.members:
    check_rows_of_member(member, config, phase_index)
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
        num_workers=data.reader_workers, per_worker_buffer_size=1), _start_reader)
  starting = children.spawning if data.reader_workers else contextlib.nullcontext
  return TrainBatches(batches, starting)


def _start_reader(index: int, count: int) -> None:
  """Runs in a reader process before it gets its rows."""
  del index, count
  children.exit_with_parent()
  children.leave_signals_to_parent()


class TrainBatches:
  """Iterator over batches that owns reader threads or processes.

  Close it, or use it in a `with` statement.

  Args:
    dataset: Grain's dataset of the batches.
    starting: makes the context in which the readers start.
  """

  def __init__(self, dataset: grain.IterDataset,
               starting: Callable[[], contextlib.AbstractContextManager]):
    self._iterator, self._starting, self._has_started = iter(dataset), starting, False

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if self._iterator is None:
      raise StopIteration
    try:
      if self._has_started:
        return next(self._iterator)
      self._has_started = True  # The readers start with the first batch.
      with self._starting():
        return next(self._iterator)
    except BaseException as e:
      # Grain would skip the batch that failed and continue with the next one.
      self.close()
      if isinstance(e, RuntimeError) and "terminated unexpectedly" in str(e):
        raise WorkerError("a reader process ended unexpectedly (out of memory?). Lower "
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
  return _fill_batches(EvalRows(corpus, config, phase_index), config.eval.max_rows or sys.maxsize,
                       np.arange(config.eval.batch_size), local_rows)


def count_eval_rows(corpus: Corpus, config: ConfigDict, phase_index: int) -> int:
  """Returns the number of rows that `make_eval_batches` reads.

  Args:
    corpus, config, phase_index: see `make_eval_batches`.
  Raises:
    DataError: the split holds no text.
  """
  return EvalRows(corpus, config, phase_index).count(config.eval.max_rows or sys.maxsize)


def _fill_batches(rows: EvalRows, most: int, batch: np.ndarray,
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
