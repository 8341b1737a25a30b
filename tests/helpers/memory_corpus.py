"""A corpus in memory whose token ids show their place in it."""

import dataclasses

import numpy as np

PAD, CLS, SEP, EOD, MASK, UNK, FIRST = 0, 1, 2, 3, 4, 5, 10


@dataclasses.dataclass(frozen=True)
class Specials:
  """A tokenizer with special ids, which decodes ids into readable text."""

  kind: str = "dummy"
  has_words: bool = True
  unk_id: int = UNK
  pad_id: int = PAD
  cls_id: int = CLS
  sep_id: int = SEP
  eod_id: int = EOD
  mask_id: int = MASK

  def decode(self, ids):
    return " ".join(str(int(i)) for i in ids)


@dataclasses.dataclass(frozen=True)
class MemoryCorpus:
  """Has the attributes of `data.corpus.corpus.Corpus`. Token i has the id FIRST + i."""

  document_offsets: np.ndarray
  document_lengths: np.ndarray
  sentence_lengths: np.ndarray
  path: str = "memory"
  split: str = "train"
  tokenizer: Specials = Specials()

  def tokens(self, documents):
    ends = np.cumsum(self.document_lengths)
    return [FIRST + np.arange(ends[d] - self.document_lengths[d], ends[d]) for d in documents]

  def __len__(self):
    return len(self.document_lengths)


def make_corpus(documents) -> MemoryCorpus:
  """Args: documents: for each, the lengths of its sentences."""
  counts = np.array([len(d) for d in documents])
  lengths = np.array([sum(d) for d in documents], np.int64)
  sentences = np.array([n for d in documents for n in d], np.int32)
  return MemoryCorpus(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), lengths, sentences)


def random_corpus(num_documents, mean_sentences, mean_tokens, seed=0) -> MemoryCorpus:
  """Draws the numbers of sentences, and of tokens in them, from geometric distributions."""
  rng = np.random.default_rng(seed)
  return make_corpus([rng.geometric(1 / mean_tokens, n).tolist()
                      for n in rng.geometric(1 / mean_sentences, num_documents)])


def document_of(corpus, tokens) -> np.ndarray:
  """Returns, for each token id, the index of its document."""
  return np.searchsorted(np.cumsum(corpus.document_lengths), np.asarray(tokens) - FIRST,
                         side="right")
