"""Packing of sequences of different lengths into rows of one length."""

import bisect
import collections
from collections.abc import Iterator

import numpy as np

from bertgpt.config import ConfigDict, max_sequences
from bertgpt.data.batches.parts import Plan, place, token_sizes


def pack_sequences(parts_CP: np.ndarray, config: ConfigDict, seq_len: int,
                   rng: np.random.Generator) -> Plan:
  """Returns rows of one sequence each, or of several if `data.packing` is set.

  Args:
    parts_CP: PART [C, P], the parts of every sequence from left to right, at most `seq_len` tokens
      in total; changed in place. Parts without tokens are left out.
    config: whole config, of which `data` is read.
    seq_len: tokens per row.
    rng: decides which sequences share a row.
  """
  if not config.data.packing:
    return place(parts_CP, np.arange(len(parts_CP) + 1))
  sizes_C = token_sizes(parts_CP).sum(axis=1)
  members, offsets = pack(sizes_C, seq_len, max_sequences(config, seq_len), rng)
  return place(parts_CP[members], offsets)


def pack(lengths: np.ndarray, row_length: int, max_per_row: int,
         rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Packs sequences into few rows; chance decides which sequences of equal length share a row.

  It works on the histogram of the lengths, like Krell et al. 2021 (arXiv:2107.02027), so that its
  time hardly depends on the number of sequences: a row shape (lengths that fill a row) is found
  once and used for as many rows as there are sequences for it.

  Args:
    lengths: integers [N], tokens of every sequence, 1 to `row_length`.
    row_length: tokens per row.
    max_per_row: sequences per row, at most.
    rng: shuffles the sequences of each length.
  Returns:
    members int64 [N], a permutation of the sequences; offsets int64 [R+1]: row r holds the
    sequences members[offsets[r]:offsets[r + 1]], the longest first.
  """
  shuffled = rng.permutation(len(lengths))
  by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
  counts = np.bincount(lengths, minlength=row_length + 1)
  # Length -> index in `by_length` of the next sequence of this length that has no row yet.
  unused = np.cumsum(counts) - counts
  members, sizes = [by_length[:0]], [unused[:0]]
  for shape, num_rows in _row_shapes(counts, row_length, max_per_row):
    columns = []
    for length in shape:
      columns.append(by_length[unused[length]:unused[length] + num_rows])
      unused[length] += num_rows
    members.append(np.stack(columns, axis=1).ravel())
    sizes.append(np.full(num_rows, len(shape)))
  offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
  return np.concatenate(members), offsets


def _row_shapes(counts: np.ndarray, row_length: int,
                max_per_row: int) -> Iterator[tuple[list[int], int]]:
  """Yields (lengths of a row, rows of this shape) until the histogram `counts` is used up.

  A row begins with the longest sequence left and repeatedly takes the longest one that fits.
  Every shape uses up a length or nearly does, so there are about as many shapes as lengths.
  """
  left = {int(length): int(counts[length]) for length in np.flatnonzero(counts)}
  available = sorted(left)
  while available:
    used, shape, room = collections.Counter(), [], row_length
    while len(shape) < max_per_row:
      i = bisect.bisect_right(available, room) - 1
      while i >= 0 and used[available[i]] == left[available[i]]:
        i -= 1
      if i < 0:
        break
      shape.append(available[i])
      used[available[i]] += 1
      room -= available[i]
    num_rows = min(left[length] // n for length, n in used.items())
    yield shape, num_rows
    for length, n in used.items():
      left[length] -= n * num_rows
      if not left[length]:
        available.remove(length)
