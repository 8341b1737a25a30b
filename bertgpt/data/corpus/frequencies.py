"""Frequencies of the tokens of a corpus, counted on a part of it."""

from collections.abc import Iterator

import numpy as np

from bertgpt.data.corpus.corpus import Corpus

SAMPLE_TOKENS = 20_000_000
MAX_ORDERED = 2**22  # A random order of more documents would take gigabytes.


def unigram_probabilities(corpus: Corpus, vocab_size: int, is_causal: bool) -> np.ndarray:
  """Returns token frequencies, with one added to every count: float64 [vocab_size].

  Args:
    corpus: split whose tokens are counted.
    vocab_size: number of ids, possibly padded.
    is_causal: whether the end of every document is also predicted, and therefore counted.
  """
  counts = np.ones(vocab_size)
  for tokens in sample_documents(corpus):
    counts += np.bincount(tokens, minlength=vocab_size)
    counts[corpus.tokenizer.eod_id] += is_causal
  return counts / counts.sum()


def sample_documents(corpus: Corpus) -> Iterator[np.ndarray]:
  """Yields the token ids of documents in random order, about SAMPLE_TOKENS in total.

  In a corpus of more than `MAX_ORDERED` documents, this many are drawn, a few of them twice.
  """
  rng, size = np.random.default_rng(0), len(corpus)
  order = rng.permutation(size) if size <= MAX_ORDERED else rng.integers(size, size=MAX_ORDERED)
  count = int(np.searchsorted(np.cumsum(corpus.document_lengths[order]), SAMPLE_TOKENS)) + 1
  for chunk in np.array_split(order[:count], max(1, count // 1000)):
    yield from corpus.tokens(chunk)
