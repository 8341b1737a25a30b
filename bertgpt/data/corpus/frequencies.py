"""How often the tokens of a corpus occur, counted on a part of it."""

from collections.abc import Iterator

import numpy as np

from bertgpt.data.corpus.corpus import Corpus

SAMPLE_TOKENS = 20_000_000


def unigram_probabilities(corpus: Corpus, vocab_size: int, is_causal: bool) -> np.ndarray:
  """Token frequencies with one added to every count: float64 [vocab_size].

  Args:
    is_causal: the end of every document is predicted too, and counts.
  """
  counts = np.ones(vocab_size)
  for tokens in sample_documents(corpus):
    counts += np.bincount(tokens, minlength=vocab_size)
    counts[corpus.tokenizer.eod_id] += is_causal
  return counts / counts.sum()


def sample_documents(corpus: Corpus) -> Iterator[np.ndarray]:
  """Documents in random order, up to SAMPLE_TOKENS in all."""
  order = np.random.default_rng(0).permutation(len(corpus))
  count = np.searchsorted(np.cumsum(corpus.document_lengths[order]), SAMPLE_TOKENS) + 1
  for chunk in np.array_split(order[:count], max(1, count // 1000)):
    yield from corpus.tokens(chunk)
