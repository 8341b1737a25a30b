"""The rows of a phase: which row of which corpus is row i.

The rows of a phase come from one corpus, or from several in fixed shares (`phases[].mixture`). Row
i is a pure function of (corpora, config, i):

- `Schedule` says which corpus row i comes from, and how many of its rows came before.
- `Origin` says where the rows of a corpus begin in it. A phase with a mixture continues after the
  rows that earlier phases with rows of the same length have read, so that no document is read again
  before the corpus is used up. A phase without a mixture begins a new order.
- `rows.TrainRows` is the order of the rows within a corpus. It does not depend on other corpora.

A change of any of them needs another `rows.ORDER_VERSION`.
"""

import functools
import heapq
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bertgpt.config import ConfigDict, mixtures
from bertgpt.config.derived import ranges_to_train
from bertgpt.data.batches.parts import Batch
from bertgpt.data.batches.rows import TrainRows
from bertgpt.data.corpus.corpus import Corpus

NO_OTHERS: Mapping[str, Corpus] = {}  # A run without a mixture reads only its own corpus.


class Schedule:
  """The order in which rows come from K corpora with given shares.

  Among the first n rows, the number of rows from a corpus differs from its share of n by less than
  one row, for every n. The order repeats after P rows, when all shares are whole numbers of rows,
  so it is a table of P entries, and any row is found without the rows before it.

  Row j of a corpus with share w takes one of the places floor(j / w), ..., ceil((j + 1) / w) - 1:
  these are the places at which the difference stays below one row. If every place is given to the
  corpus whose next row must come first, each row gets one of its places.

  Args:
    shares: name of a corpus -> its share, above 0; the K shares add up to 1.

  Source: Baruah, Cohen, Plaxton and Varvel, "Proportionate progress" (Algorithmica 15, 1996), for
  one resource.
  """

  def __init__(self, shares: Mapping[str, Fraction]):
    period = mixtures.period(shares)
    self._names = list(shares)
    self._quotas = np.array([int(share * period) for share in shares.values()])
    self._which = np.array(_order(self._quotas.tolist()), np.int32)
    is_from = self._which[:, None] == np.arange(len(shares))
    self._rank = np.cumsum(is_from, axis=0)[np.arange(period), self._which] - 1

  def find(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corpora of rows, and how many rows of the same corpus come before each.

    Args:
      row_numbers: int64 [B], indices of the rows.
    Returns:
      (int32 [B] in [0, K), int64 [B]).
    """
    repeats, place = np.divmod(row_numbers, len(self._which))
    which = self._which[place]
    return which, repeats * self._quotas[which] + self._rank[place]

  def count(self, num_rows: int) -> dict[str, int]:
    """Returns how many of the first rows come from each corpus: its name -> number of rows.

    Args:
      num_rows: number of first rows.
    """
    repeats, rest = divmod(num_rows, len(self._which))
    counts = repeats * self._quotas + np.bincount(self._which[:rest], minlength=len(self._names))
    return dict(zip(self._names, counts.tolist(), strict=True))


def make_schedule(phase: ConfigDict) -> Schedule:
  """Returns the schedule of a phase. It is kept, because a long table takes a second.

  Args:
    phase: one of `config.phases`.
  """
  return _keep_schedule(tuple(mixtures.find_shares(phase).items()))


@functools.lru_cache(16)
def _keep_schedule(shares: tuple[tuple[str, Fraction], ...]) -> Schedule:
  return Schedule(dict(shares))


def _order(quotas: Sequence[int]) -> list[int]:
  """Returns the corpora of one period, in which corpus k has quotas[k] rows."""
  period, order = sum(quotas), []
  # (place, corpus, row): the first place that the row may have; (last place + 1, corpus, row).
  coming = [(0, k, 0) for k in range(len(quotas))]
  waiting: list[tuple[int, int, int]] = []
  for place in range(period):
    while coming and coming[0][0] <= place:
      _, k, row = heapq.heappop(coming)
      heapq.heappush(waiting, (-(-(row + 1) * period // quotas[k]), k, row))
    _, k, row = heapq.heappop(waiting)
    order.append(k)
    if row + 1 < quotas[k]:
      heapq.heappush(coming, ((row + 1) * period // quotas[k], k, row + 1))
  return order


class Origin(NamedTuple):
  """Where the rows of a corpus begin in a phase.

  Attributes:
    phase_index: index of the phase that began the order of the rows.
    row: rows of this order that earlier phases have read.
  """

  phase_index: int
  row: int


def find_origin(config: ConfigDict, phase_index: int, name: str) -> Origin:
  """Returns where a phase begins in one of its corpora.

  Args:
    config: whole config.
    phase_index: index of the phase.
    name: name of the corpus.
  """
  phase = config.phases[phase_index]
  for i in reversed(range(phase_index if phase.mixture else 0)):
    before = config.phases[i]
    if before.seq_len == phase.seq_len and name in mixtures.find_shares(before):
      origin = find_origin(config, i, name)
      num_read = make_schedule(before).count(before.steps * before.batch_size)[name]
      return Origin(origin.phase_index, origin.row + num_read)
  return Origin(phase_index, 0)


class Member(NamedTuple):
  """A corpus among those of a phase.

  Attributes:
    name: its name in the mixture.
    share: its share of the rows.
    corpus: split to train on.
    rows: its rows.
    first: index of the first one that the phase reads.
  """

  name: str
  share: Fraction
  corpus: Corpus
  rows: TrainRows
  first: int


def make_member(corpus: Corpus, config: ConfigDict, phase_index: int, name: str) -> Member:
  """Returns one of the corpora of a phase.

  Args:
    corpus: split to train on.
    config: whole config.
    phase_index: index of the phase.
    name: name of the corpus in the mixture.
  """
  share = mixtures.find_shares(config.phases[phase_index])[name]
  origin = find_origin(config, phase_index, name)
  rows = TrainRows(corpus, config, origin.phase_index, config.seed)
  return Member(name, share, corpus, rows, origin.row)


class PhaseRows:
  """The rows of a phase by index, from all of its corpora.

  Args:
    corpus: split to train on, of the run's own corpus.
    config: whole config.
    phase_index: index of the phase.
    others: name -> the same split of the other corpora that the phase reads.

  Attributes:
    members: the corpora of the phase.
  """

  def __init__(self, corpus: Corpus, config: ConfigDict, phase_index: int,
               others: Mapping[str, Corpus] = NO_OTHERS):
    corpora, phase = {**others, mixtures.MAIN: corpus}, config.phases[phase_index]
    self._schedule = make_schedule(phase)
    self.members = [make_member(corpora[name], config, phase_index, name)
                    for name in mixtures.find_shares(phase)]

  def find(self, row_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the members that rows come from, and the indices of the rows among those of a member.

    Args:
      row_numbers: integers [B], indices of the rows in the phase.
    Returns:
      (integers [B], indices of `members`; int64 [B], indices for `Member.rows`).
    """
    which, index = self._schedule.find(np.asarray(row_numbers, np.int64))
    return which, index + np.array([member.first for member in self.members])[which]

  def find_documents(self, row_numbers: np.ndarray) -> dict[str, list[int]]:
    """Returns name of a corpus -> indices of its documents of which some rows hold a part.

    Args:
      row_numbers: integers [B], indices of the rows in the phase.
    """
    which, index = self.find(row_numbers)
    plans = [member.rows.plan(index[which == k])[0] for k, member in enumerate(self.members)]
    return {member.name: np.unique(parts["document"]).tolist()
            for member, parts in zip(self.members, plans, strict=True)}

  def read(self, row_numbers: np.ndarray) -> Batch:
    """Returns the batch of some rows.

    Args:
      row_numbers: integers [B], indices of the rows in the phase, in the order of the batch.
    """
    which, index = self.find(row_numbers)
    chosen = np.unique(which).tolist() or [0]
    batches = {k: self.members[k].rows.read(index[which == k]) for k in chosen}
    if len(chosen) == 1:
      return batches[chosen[0]]
    mixed = {name: np.empty((len(which), *array.shape[1:]), array.dtype)
             for name, array in batches[chosen[0]].items()}
    for k, batch in batches.items():
      for name, array in batch.items():
        mixed[name][which == k] = array
    return mixed


def count_rows(config: ConfigDict, phase_index: int, step: int) -> dict[str, int]:
  """Returns how many rows of every corpus a phase has read, without `train.skip_steps`.

  Args:
    config: whole config.
    phase_index: index of the phase.
    step: steps that the run has done.
  Returns:
    Name of the corpus -> number of rows.
  """
  phase = config.phases[phase_index]
  first = sum(p.steps for p in config.phases[:phase_index])
  counts = dict.fromkeys(mixtures.find_shares(phase), 0)
  for steps in ranges_to_train(config.train.skip_steps, first, min(step, first + phase.steps)):
    before, after = (make_schedule(phase).count((s - first) * phase.batch_size) for s in steps)
    counts = {name: count + after[name] - before[name] for name, count in counts.items()}
  return counts


def describe_shares(config: ConfigDict, step: int) -> list[str]:
  """Returns a line per phase: the shares of the rows that it has read from every corpus.

  Args:
    config: whole config.
    step: steps that the run has done.
  Returns:
    The lines; none if no phase has a mixture.
  """
  if not any(p.mixture for p in config.phases):
    return []
  lines = []
  for i in range(len(config.phases)):
    counts = count_rows(config, i, step)
    if total := sum(counts.values()):
      shares = ", ".join(f"{name} {count / total:.2%}" for name, count in counts.items())
      lines.append(f"phase {i}: {shares} of {total:,} rows")
  return lines
