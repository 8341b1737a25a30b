"""Rows in few lengths, so that few programs are compiled for them.

Axes: B rows, L length.
"""

from collections.abc import Iterator, Sequence

import numpy as np

SMALLEST = 32


def bucket(length: int, most: int) -> int:
  """The smallest of 32, 64, 128, ... that holds `length`; `most` where that is less."""
  return min(most, max(SMALLEST, 1 << (length - 1).bit_length()))


def batches(lengths: Sequence[int], batch_size: int, most: int) -> Iterator[tuple[np.ndarray, int]]:
  """(which, length of their rows): every row once, with those of its bucket, in their order.

  Args:
    lengths: of the rows, at most `most`.
    batch_size: rows of a batch, at most.
  """
  sizes = np.array([bucket(int(length), most) for length in lengths])
  for size in np.unique(sizes):
    of_size = np.flatnonzero(sizes == size)
    for first in range(0, len(of_size), batch_size):
      yield of_size[first:first + batch_size], int(size)


def pad(rows: Sequence[np.ndarray], length: int, batch_size: int) -> np.ndarray:
  """The rows, filled up with 0: int32 [B, L], B being a power of two or `batch_size`."""
  count = min(batch_size, 1 << (len(rows) - 1).bit_length())
  tokens_BL = np.zeros((count, length), np.int32)
  for row_L, tokens in zip(tokens_BL, rows, strict=False):
    row_L[:len(tokens)] = tokens
  return tokens_BL
