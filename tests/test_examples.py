"""bertgpt.data.examples: BERT's algorithm against a plain copy of it, and what must be conserved."""

import random
from typing import NamedTuple

import numpy as np
import pytest
from memory_corpus import make_corpus, random_corpus

from bertgpt import config as config_lib
from bertgpt.data import examples
from bertgpt.errors import DataError

CORPORA = {
    "ordinary": random_corpus(40, 12, 15),
    "two documents": make_corpus([[3, 4, 5], [6]]),
    "one document": make_corpus([[7, 2, 9, 30, 1, 1, 4] * 5]),
    "one word each": make_corpus([[1]] * 20),
    "one word in all": make_corpus([[1]]),
    "empty documents among others": make_corpus([[], [5, 5], [], [], [9, 1, 2], []]),
    "sentences longer than a row": make_corpus([[900], [2, 700, 3], [5000, 4]]),
    "one giant among small": make_corpus([[4] * 3000] + [[5, 6]] * 10),
}
every_corpus = pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA.keys())
every_length = pytest.mark.parametrize("seq_len", [8, 33, 128])


def make_config(objective="mlm_nsp", **data):
  config = config_lib.base()
  config.objective.name = objective
  config.data.update(data)
  return config


def make_texts(corpus):
  return examples.select(corpus, np.flatnonzero(corpus.document_lengths))


def draw(corpus, max_tokens, seed=0, **data):
  return examples.draw_pairs(make_texts(corpus), make_config(**data).data, max_tokens,
                             np.random.default_rng(seed))


# ------------------------------------------------------ the published loop


class Pair(NamedTuple):
  """Sentences as (document, sentence) numbers."""

  a: tuple
  b: tuple
  label: int


def published_pairs(documents, max_tokens, decide):
  """create_pretraining_data.py, sentence by sentence.

  Args:
    documents: for each, the lengths of its sentences.
    decide: answers the algorithm's random choices.
  Yields:
    (document, Pair)
  """
  for d, document in enumerate(documents):
    target = decide.target(d, max_tokens)
    chunk, length, i = [], 0, 0
    while i < len(document):
      chunk.append((d, i))
      length += document[i]
      if i == len(document) - 1 or length >= target:
        a_end = 1 if len(chunk) == 1 else decide.cut(d, len(chunk))
        a = chunk[:a_end]
        if len(chunk) == 1 or decide.is_random(d):
          room = target - sum(document[j] for _, j in a)
          other, start = decide.other(d, documents)
          b, taken = [], 0
          for j in range(start, len(documents[other])):
            b.append((other, j))
            taken += documents[other][j]
            if taken >= room:
              break
          label = 1
          i -= len(chunk) - a_end
        else:
          b, label = chunk[a_end:], 0
        yield d, Pair(tuple(a), tuple(b), label)
        chunk, length = [], 0
      i += 1


class Replay:
  """Answers as the plan under test did."""

  def __init__(self, texts, pairs):
    self.pairs, self.texts = pairs, texts
    self.queues = [np.flatnonzero(pairs.document == d).tolist()
                   for d in range(len(texts.documents))]
    self.current = [None] * len(texts.documents)

  def target(self, d, max_tokens):
    (target,) = set(self.pairs.target[self.queues[d]])
    return target

  def _next(self, d):
    self.current[d] = self.queues[d].pop(0)
    return self.current[d]

  def cut(self, d, size):
    n = self._next(d)
    cut = int(self.pairs.cut[n] - self.pairs.first[n])
    assert 1 <= cut < size
    return cut

  def is_random(self, d):
    return self.pairs.label[self.current[d]] == 1

  def other(self, d, documents):
    n = self.current[d]
    if n is None or self.pairs.cut[n] - self.pairs.first[n] != 1 or self.pairs.label[n] != 1 or (
        getattr(self, "answered", None) == n):
      n = self._next(d)  # A chunk of one sentence: `cut` was not asked.
    self.answered = n
    other = int(self.pairs.document_b[n])
    return other, int(self.pairs.first_b[n] - self.texts.offsets[other])


class Dice:
  """Draws the published way, with Python's own generator."""

  def __init__(self, seed, short_prob, random_prob):
    self.rng, self.short_prob, self.random_prob = random.Random(seed), short_prob, random_prob

  def target(self, d, max_tokens):
    return self.rng.randint(2, max_tokens) if self.rng.random() < self.short_prob else max_tokens

  def cut(self, d, size):
    return self.rng.randint(1, size - 1)

  def is_random(self, d):
    return self.rng.random() < self.random_prob

  def other(self, d, documents):
    while (other := self.rng.randrange(len(documents))) == d:
      pass
    return other, self.rng.randrange(len(documents[other]))
