"""Rows in few different lengths, so that few programs are compiled for them.

Axes: B rows, L length.
"""

from collections.abc import Iterator, Sequence

import numpy as np

SMALLEST = 32


def bucket(length: int, most: int) -> int:
  """Returns the smallest of 32, 64, 128, ... that is at least `length`.

  Args:
    length: tokens of a row.
    most: upper limit of the result, such as the positions of the model.
  """
  return min(most, max(SMALLEST, 1 << (length - 1).bit_length()))


def batches(lengths: Sequence[int], batch_size: int, most: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields batches in which all rows have the same bucket, until every row has occurred once.

  Args:
    lengths: tokens of every row, at most `most`.
    batch_size: rows per batch, at most.
    most: upper limit of the buckets.
  Yields:
    (integers [B], numbers of the rows in ascending order; their bucket).
  """
  sizes = np.array([bucket(int(length), most) for length in lengths])
  for size in np.unique(sizes):
    rows = np.flatnonzero(sizes == size)
    for first in range(0, len(rows), batch_size):
      yield rows[first:first + batch_size], int(size)


def pad(rows: Sequence[np.ndarray], length: int, batch_size: int) -> np.ndarray:
  """Returns rows padded with 0: int32 [B, L], where B is a power of two or `batch_size`.

  Args:
    rows: at most `batch_size` arrays of at most `length` token ids.
    length: L.
    batch_size: upper limit of B.
  """
  count = min(batch_size, 1 << (len(rows) - 1).bit_length())
  tokens_BL = np.zeros((count, length), np.int32)
  for row_L, tokens in zip(tokens_BL, rows, strict=False):
    row_L[:len(tokens)] = tokens
  return tokens_BL
