"""bertgpt.data.batches.halves: against a plain copy of ELECTRA's example builder."""

import numpy as np
import pytest
from memory_corpus import make_corpus, random_corpus

from bertgpt import config as config_lib
from bertgpt.data.batches import formats
from bertgpt.data.batches import parts as parts_lib

SEQ_LEN = 64


def make_plan(corpus, seq_len=SEQ_LEN, seed=0, **data):
  config = config_lib.base()
  config.objective.name = "rtd"
  config.data.update({"packing": False, "short_sequence_prob": 0.05, **data})
  texts = parts_lib.select(corpus, np.flatnonzero(corpus.document_lengths))
  return formats.find(config).plan(texts, config, seq_len, np.random.default_rng(seed))


def published_examples(documents, max_length, rng):
  """Yields (tokens of A, tokens of B) with the algorithm of build_pretraining_dataset.py (2020).

  One line differs: a sentence goes to A only as long as B is empty.
  """
  target = max_length
  for sentences in documents:
    gathered = []
    for i, sentence in enumerate(sentences):
      gathered.append(sentence)
      if sum(gathered) < target and i + 1 < len(sentences):
        continue
      half = 100_000 if rng.random() < 0.1 else (target - 3) // 2
      first = second = 0
      for size in gathered:
        if not second and (not first or first + size < half
                           or first < half and rng.random() < 0.5):
          first += size
        else:
          second += size
      first = min(first, max_length - 2)
      yield first, min(second, max(0, max_length - first - 3))
      gathered = []
      target = rng.integers(5, max_length + 1) if rng.random() < 0.05 else max_length


def lengths_of(plan):
  """Returns (tokens of A, tokens of B) of every sequence, int64 [N, 2]."""
  first = np.flatnonzero(plan.parts["segment"] == 0)
  has_second = np.append(plan.parts["segment"][1:], 0)[first] == 1
  second = np.append(plan.parts["length"][1:], 0)[first] * has_second
  return np.stack([plan.parts["length"][first], second], axis=1)


def test_halves_are_distributed_as_published():
  corpus = random_corpus(3000, 12, 15)
  sentences = np.split(corpus.sentence_lengths, corpus.document_offsets[1:-1])
  found = lengths_of(make_plan(corpus))
  expected = np.array([*published_examples(sentences, SEQ_LEN, np.random.default_rng(1))])
  assert len(found) == pytest.approx(len(expected), rel=0.03)
  for lengths in (found, expected):
    assert lengths.min(0).tolist()[0] >= 1
  for of in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 1] == 0,
             lambda x: x[:, 0] > (SEQ_LEN - 3) // 2, lambda x: x.sum(1) == SEQ_LEN - 3):
    a, b = (of(x).astype(float) for x in (found, expected))
    error = np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert abs(a.mean() - b.mean()) < 4.5 * error


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("corpus", [
    random_corpus(40, 12, 15), make_corpus([[1]]), make_corpus([[900], [2, 700, 3], [5000, 4]]),
    make_corpus([[], [5, 5], [], [9, 1, 2], []])])
@pytest.mark.parametrize("seq_len", [8, 33, 128])
def test_rows_hold_runs_of_text_and_fit(corpus, seq_len, packing):
  plan = make_plan(corpus, seq_len, packing=packing)
  parts = plan.parts
  sizes = parts_lib.token_sizes(parts)
  used = np.add.reduceat(sizes, plan.offsets[:-1])
  assert used.max() <= seq_len and parts["length"].min() > 0
  starts = parts["column"].copy()
  for row in range(plan.num_rows):  # Parts follow each other without a gap.
    span = slice(plan.offsets[row], plan.offsets[row + 1])
    np.testing.assert_array_equal(starts[span], np.cumsum(sizes[span]) - sizes[span])
  second = np.flatnonzero(parts["segment"] == 1)
  before = parts[second - 1]
  np.testing.assert_array_equal(before["start"] + before["length"], parts[second]["start"])
  np.testing.assert_array_equal(before["document"], parts[second]["document"])
  np.testing.assert_array_equal(parts["opens"], parts["segment"] == 0)
  if not packing:
    assert plan.num_rows == (parts["segment"] == 0).sum()


def test_an_epoch_holds_every_sentence_that_fits():
  """If the sentences divide the row, nothing is cut off."""
  corpus = make_corpus([[5] * 30] * 20)
  plan = make_plan(corpus, seq_len=28, short_sequence_prob=0.0)
  lost = corpus.document_lengths.sum() - plan.parts["length"].sum()
  assert 0 <= lost <= 20 * 5 * 5  # Six sentences for 25 or 26 tokens.


def test_short_sequences_are_as_frequent_as_asked():
  corpus = make_corpus([[1] * 2000] * 50)
  lengths = lengths_of(make_plan(corpus, short_sequence_prob=0.3)).sum(1)
  share = (lengths < SEQ_LEN - 3).mean()
  # A target of 5 to 64 tokens, of which 3 are special tokens, is short if it is below 61.
  assert abs(share - 0.3 * 56 / 60) < 4 * np.sqrt(0.21 / len(lengths)) + 50 / len(lengths)
