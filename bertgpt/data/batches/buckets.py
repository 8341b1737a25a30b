"""A few lengths that rows are padded to, so that few programs are compiled.

Fine-tuning and inference pad to the same lengths: 16, 32, 64, 128, 192, 256, 384, 512, 768, ...
They are powers of two and, from 128 on, the lengths halfway between them too, so that at most a
third of a row of more than 128 tokens is padding. Up to 1024 there are ten lengths.

Axes: B rows, L length.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

SMALLEST = 16
DENSE_FROM = 128  # The first power of two with a length halfway to the next one.


def bucket(length: int, most: int) -> int:
  """Returns the smallest of these lengths that holds a row.

  Args:
    length: tokens of the row, at least 1.
    most: upper limit of the result, at least `length`.
  """
  power = max(SMALLEST, 1 << (length - 1).bit_length())
  halfway = power * 3 // 4
  return min(most, halfway if halfway >= max(length, DENSE_FROM) else power)


def choose(counts: Mapping[int, int], cost: float) -> tuple[int, ...]:
  """Returns the lengths with which padding and compilation cost the least together, ascending.

  Args:
    counts: length that batches need, ascending -> number of these batches.
    cost: cost of one more length, in units of one column of a batch.
  """
  needed = list(counts)
  best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # For the batches of the first N lengths.
  for end in range(1, len(needed) + 1):
    # The longest chosen length serves the needed lengths from index `start` on.
    best.append(min(
        (best[start][0] + cost + needed[end - 1] * sum(counts[n] for n in needed[start:end]),
         (*best[start][1], needed[end - 1])) for start in range(end)))
  return best[-1][1]


def batches(lengths: Sequence[int] | np.ndarray, batch_size: int,
            most: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields batches in which all rows have the same bucket, until every row has occurred once.

  Args:
    lengths: tokens of every row, at most `most`.
    batch_size: rows per batch, at most.
    most: upper limit of the buckets.
  Yields:
    (integers [B], indices of the rows in ascending order; their bucket).
  """
  sizes = np.array([bucket(int(length), most) for length in lengths])
  for size in np.unique(sizes):
    rows = np.flatnonzero(sizes == size)
    for first in range(0, len(rows), batch_size):
      yield rows[first:first + batch_size], int(size)


def pad(rows: Sequence[np.ndarray], length: int, batch_size: int,
        is_full: bool = False) -> np.ndarray:
  """Returns rows padded with 0: int32 [B, L], where B is a power of two or `batch_size`.

  Args:
    rows: at most `batch_size` arrays of at most `length` token ids.
    length: L.
    batch_size: upper limit of B.
    is_full: whether B is always `batch_size`: for many batches, so that few programs are compiled.
  """
  count = batch_size if is_full else min(batch_size, 1 << (len(rows) - 1).bit_length())
  tokens_BL = np.zeros((count, length), np.int32)
  for row_L, tokens in zip(tokens_BL, rows, strict=False):
    row_L[:len(tokens)] = tokens
  return tokens_BL
