"""Windows of an epoch: the documents of each plan, and their order.

A small corpus is one window with all its documents, shuffled. A larger one is planned window by
window. A window is then a random choice of blocks, which are runs of neighboring documents with a
thousandth of the tokens of a window, and its documents are shuffled. So one pass over the lengths
of the documents serves all epochs. The time and memory per window do not grow with the corpus
(except for 16 bytes per block), and the index is read in runs, not document by document.
"""

from typing import NamedTuple

import numpy as np

from bertgpt.data.corpus.corpus import Corpus, read_pieces, release, sum_lengths
from bertgpt.errors import DataError

BLOCKS_PER_WINDOW = 1024
DOCUMENTS_AT_ONCE = 2**20  # Documents per step of the pass over the lengths.


class Windows(NamedTuple):
  """Division of the epochs of a corpus into windows of K blocks in total; see `divide`.

  Attributes:
    count: windows per epoch.
    starts: int64 [K+1], first document of every block, and the number of documents.
    tokens: int64 [K], tokens of every block; at least 1, unless the corpus holds no token.
  """

  count: int  # type: ignore[assignment]  # A tuple has a method of this name.
  starts: np.ndarray
  tokens: np.ndarray


def divide(document_lengths: np.ndarray, count: int) -> Windows:
  """Cuts a corpus into blocks for `count` windows per epoch.

  Args:
    document_lengths: integers [D], tokens; may be a memory-mapped file, since it is read in pieces.
    count: windows per epoch.
  """
  num_tokens = sum_lengths(document_lengths)
  if count == 1:
    return Windows(1, np.array([0, len(document_lengths)]), np.array([num_tokens]))
  size = max(1, num_tokens // (count * BLOCKS_PER_WINDOW))
  starts, before = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
  total, block, first = 0, 0, 0
  for lengths in read_pieces(document_lengths, DOCUMENTS_AT_ONCE):
    ends = total + np.cumsum(lengths, dtype=np.int64)
    # A document belongs to the block in which it begins; an empty one does not begin a block.
    number = np.maximum.accumulate(np.where(lengths > 0, (ends - lengths) // size, block))
    begins = np.flatnonzero(np.diff(number, prepend=block))
    starts.append(first + begins)
    before.append((ends - lengths)[begins])
    total, block, first = int(ends[-1]), int(number[-1]), first + len(lengths)
  starts.append(np.array([len(document_lengths)]))
  before.append(np.array([total]))
  return Windows(count, np.concatenate(starts), np.diff(np.concatenate(before)))


def draw_documents(corpus: Corpus, windows: Windows, window: int,
                   key: tuple[int, ...]) -> np.ndarray:
  """Returns the documents of one window in random order, int64 [any], none of them empty.

  Together, the windows of an epoch hold every document once, and about the same number of tokens
  each. If a block is longer than a window, some windows can only repeat a block.

  Args:
    corpus: corpus, of which only `document_lengths` is read.
    windows: division of the corpus.
    window: index of the window within the epoch.
    key: integers that identify the epoch.
  Raises:
    DataError: the corpus holds no token.
  """
  if not windows.tokens.any():
    raise DataError(f"{corpus.path}: the {corpus.split} split holds no text. Prepare it from "
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
  release(corpus.document_lengths)
  return make_rng((*key, window, 1)).permutation(documents)


def make_rng(key: tuple[int, ...]) -> np.random.Generator:
  """Returns a generator that depends only on a key of integers, which may be negative."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([k % 2**64 for k in key])))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Returns the concatenation of ranges: starts[0], starts[0] + 1, ..., starts[1], ...

  Args:
    starts: integers [N], first integer of every range.
    counts: integers [N], length of every range, possibly 0.
  Returns:
    int64 [sum of counts].
  """
  skipped = starts - (np.cumsum(counts) - counts)
  return np.repeat(skipped, counts) + np.arange(counts.sum())
