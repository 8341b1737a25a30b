"""An epoch in windows: which documents, in which order, each plan of it is made from.

A corpus that fits is one window: all its documents, shuffled. A larger one is planned window by
window. A window then is a random choice of blocks, which are runs of neighbouring documents a
thousandth of a window long, and its documents are shuffled among themselves. So one pass over the
lengths of the documents serves all epochs; what a window costs, in time and memory, does not
grow with the corpus (but for 16 bytes a block); and the index is read in runs, not document
by document.
"""

from typing import NamedTuple

import numpy as np

from bertgpt.errors import DataError

BLOCKS_PER_WINDOW = 1024
DOCUMENTS_AT_ONCE = 2**20  # In the pass over the lengths.


class Windows(NamedTuple):
  """How the epochs of a corpus are divided; see `divide`. K blocks.

  Attributes:
    count: windows an epoch.
    starts: int64 [K+1], first document of every block, and the number of documents.
    tokens: int64 [K], of every block; at least 1, unless the corpus holds none.
  """

  count: int
  starts: np.ndarray
  tokens: np.ndarray


def divide(document_lengths: np.ndarray, count: int) -> Windows:
  """Cuts a corpus into blocks for `count` windows an epoch.

  Args:
    document_lengths: integers [D], tokens; read in pieces, so it may be a map of a file.
  """
  num_tokens = int(document_lengths.sum())
  if count == 1:
    return Windows(1, np.array([0, len(document_lengths)]), np.array([num_tokens]))
  size = max(1, num_tokens // (count * BLOCKS_PER_WINDOW))
  starts, before = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
  total, block = 0, 0
  for first in range(0, len(document_lengths), DOCUMENTS_AT_ONCE):
    lengths = document_lengths[first:first + DOCUMENTS_AT_ONCE]
    ends = total + np.cumsum(lengths, dtype=np.int64)
    # A document belongs to the block in which it begins; an empty one begins none.
    number = np.maximum.accumulate(np.where(lengths > 0, (ends - lengths) // size, block))
    begins = np.flatnonzero(np.diff(number, prepend=block))
    starts.append(first + begins)
    before.append((ends - lengths)[begins])
    total, block = int(ends[-1]), int(number[-1])
  starts.append(np.array([len(document_lengths)]))
  before.append(np.array([total]))
  return Windows(count, np.concatenate(starts), np.diff(np.concatenate(before)))


def draw_documents(corpus, windows: Windows, window: int, key: tuple[int, ...]) -> np.ndarray:
  """The documents of one window of an epoch in random order, int64 [any], none of them empty.

  The windows of an epoch hold every document once and about equally many tokens each; but where
  a block is longer than a window, some windows can only repeat one.

  Args:
    corpus: has `document_lengths`.
    key: integers that name the epoch.
  Raises:
    DataError: the corpus holds no token.
  """
  if not windows.tokens.any():
    raise DataError(f"{corpus.path}: the {corpus.split} split holds no text; prepare it from "
                    "more documents, or change data.validation_fraction")
  if windows.count == 1:
    return make_rng(key).permutation(np.flatnonzero(corpus.document_lengths))
  blocks = make_rng(key).permutation(len(windows.tokens))
  ends = np.cumsum(windows.tokens[blocks])
  first, last = np.searchsorted(ends, ends[-1] * np.arange(window, window + 2) // windows.count)
  last = max(last + (window == windows.count - 1), first + 1)
  blocks = blocks[first:last]
  documents = ranges(windows.starts[blocks], windows.starts[blocks + 1] - windows.starts[blocks])
  documents = documents[corpus.document_lengths[documents] > 0]
  return make_rng((*key, window, 1)).permutation(documents)


def make_rng(key: tuple[int, ...]) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([k % 2**64 for k in key])))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ...: int64 [sum of counts]."""
  skipped = starts - (np.cumsum(counts) - counts)
  return np.repeat(skipped, counts) + np.arange(counts.sum())
