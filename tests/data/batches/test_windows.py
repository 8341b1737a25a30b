"""bertgpt.data.batches.windows: the documents of the windows of an epoch."""

import hashlib
import types

import numpy as np
import pytest

from bertgpt.data.batches import windows as windows_lib
from bertgpt.data.batches.windows import divide, draw_documents, ranges
from bertgpt.errors import DataError


def make_corpus(lengths):
  """Returns the fields of a corpus that `windows` reads."""
  return types.SimpleNamespace(path="memory", split="train", document_lengths=np.array(lengths))


def random_lengths(count, mean=8, seed=0):
  """Returns lengths of documents, some of which are empty."""
  return np.random.default_rng(seed).geometric(1 / mean, count) - 1


def draw_epoch(corpus, windows, key=(0, 0)):
  return [draw_documents(corpus, windows, w, key) for w in range(windows.count)]


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("at_once", [7, 1000, 2**20])
def test_blocks_are_runs_of_about_equal_length(count, at_once, monkeypatch):
  monkeypatch.setattr(windows_lib, "DOCUMENTS_AT_ONCE", at_once)
  monkeypatch.setattr(windows_lib, "BLOCKS_PER_WINDOW", 20)
  lengths = random_lengths(5000)
  windows = divide(lengths, count)
  assert windows.starts[0] == 0 and windows.starts[-1] == 5000
  tokens = [lengths[a:b].sum() for a, b in zip(windows.starts, windows.starts[1:], strict=False)]
  assert windows.tokens.tolist() == tokens
  size = lengths.sum() // (20 * count)
  assert abs(windows.tokens[:-1] - size).max() <= lengths.max()  # The last block has the rest.
  assert windows.tokens[-1] <= size + lengths.max()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("blocks", [10, 1024])
def test_windows_hold_every_document_once_and_as_many_tokens(count, blocks, monkeypatch):
  monkeypatch.setattr(windows_lib, "BLOCKS_PER_WINDOW", blocks)
  corpus = make_corpus(random_lengths(20_000))
  epoch = draw_epoch(corpus, divide(corpus.document_lengths, count))
  assert np.array_equal(np.sort(np.concatenate(epoch)), np.flatnonzero(corpus.document_lengths))
  tokens = [corpus.document_lengths[documents].sum() for documents in epoch]
  assert max(tokens) - min(tokens) <= 2 * (sum(tokens) / count / blocks + 100)


def test_a_document_longer_than_a_window_is_read_and_the_others_too():
  corpus = make_corpus([5, 100_000, 0, 7, 6])
  epoch = draw_epoch(corpus, divide(corpus.document_lengths, 10))
  assert all(len(documents) for documents in epoch)
  assert set(np.concatenate(epoch).tolist()) == {0, 1, 3, 4}


def test_every_epoch_mixes_the_documents_within_and_across_windows():
  corpus = make_corpus(np.full(4000, 10))
  windows = divide(corpus.document_lengths, 2)
  epochs = [draw_epoch(corpus, windows, (0, epoch)) for epoch in range(2)]
  again = draw_epoch(corpus, windows, (0, 1))
  assert all(np.array_equal(a, b) for a, b in zip(epochs[1], again, strict=True))
  first = set(epochs[0][0].tolist())
  common = len(first.intersection(epochs[1][0].tolist())) / len(first)
  assert 0.4 < common < 0.6  # Two independent windows share half of their documents.
  places = np.argsort(np.concatenate(epochs[0]))
  # Neighbors, even in one block, are as far apart as any two documents of a window.
  assert np.median(abs(np.diff(places))) > 300


def test_a_corpus_of_one_window_is_shuffled_document_by_document():
  """The order is part of the meaning of a seed, so it may not change between releases."""
  corpus = make_corpus(random_lengths(1000))
  (documents,) = draw_epoch(corpus, divide(corpus.document_lengths, 1), (3, 1, 4))
  assert hashlib.sha256(documents.astype("<i8")).hexdigest().startswith("fdd999f27c610f40")


def test_a_corpus_without_tokens_is_an_error():
  for count in (1, 3):
    with pytest.raises(DataError, match="train split holds no text"):
      draw_documents(make_corpus([0, 0]), divide(np.zeros(2, np.int64), count), 0, (0,))


def test_ranges_are_joined():
  starts, counts = np.array([5, 0, 9, 2]), np.array([2, 0, 1, 3])
  expected = [x for a, n in zip(starts, counts, strict=True) for x in range(a, a + n)]
  assert ranges(starts, counts).tolist() == expected
