"""bertgpt.data.corpus.frequencies against a plain count."""

import collections

import numpy as np
import pytest
from memory_corpus import EOD, FIRST, MemoryCorpus

from bertgpt.data.corpus import frequencies

LENGTHS = np.array([3, 40, 1, 25, 7] * 20)


class RepeatingCorpus(MemoryCorpus):
  """A corpus of few different tokens."""

  def tokens(self, documents):
    return [FIRST + (ids - FIRST) % 11 for ids in super().tokens(documents)]


@pytest.fixture
def corpus():
  return RepeatingCorpus(np.cumsum(LENGTHS) - LENGTHS, LENGTHS, LENGTHS)


@pytest.mark.parametrize("is_causal", [False, True])
def test_unigram_probabilities_are_the_counts_plus_one(corpus, is_causal):
  counts = collections.Counter(token for ids in corpus.tokens(range(len(corpus))) for token in ids)
  counts[EOD] += len(LENGTHS) * is_causal
  total = counts.total() + 30
  np.testing.assert_allclose(frequencies.unigram_probabilities(corpus, 30, is_causal=is_causal),
                             [(counts[token] + 1) / total for token in range(30)], rtol=1e-12)


def test_a_sample_of_a_large_corpus_is_counted(corpus, monkeypatch):
  """A sample of documents has as many ends as documents."""
  monkeypatch.setattr(frequencies, "SAMPLE_TOKENS", LENGTHS.sum() // 4)
  sample = list(frequencies.sample_documents(corpus))
  tokens = sum(map(len, sample))
  assert LENGTHS.sum() // 4 <= tokens <= LENGTHS.sum() // 4 + LENGTHS.max()
  found = frequencies.unigram_probabilities(corpus, 30, is_causal=True)
  assert found[EOD] == pytest.approx((len(sample) + 1) / (tokens + len(sample) + 30))


def test_documents_of_a_very_large_corpus_are_drawn_without_a_list_of_all(monkeypatch):
  lengths = np.ones(10_000, np.int64)
  corpus = MemoryCorpus(np.arange(10_001), lengths, lengths.astype(np.int32))
  monkeypatch.setattr(frequencies, "MAX_ORDERED", 1000)
  drawn = np.array([ids[0] - FIRST for ids in frequencies.sample_documents(corpus)])
  assert len(drawn) == 1000 and len(np.unique(drawn)) > 900
  # Spread evenly: a fifth of the sample in each fifth of the corpus, within 6 deviations.
  counts = np.histogram(drawn, 5, (0, 10_000))[0]
  assert abs(counts - 200).max() < 6 * np.sqrt(1000 * 0.16)
