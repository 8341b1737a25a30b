"""bertgpt.data.batches: BERT's algorithm against a plain copy of it, and tokens per epoch."""

import contextlib
import inspect
import random
import types
from typing import NamedTuple

import numpy as np
import pytest
from memory_corpus import make_corpus, random_corpus

from bertgpt import config as config_lib
from bertgpt.config import choices
from bertgpt.data.batches import formats
from bertgpt.data.batches import pairs as pairs_lib
from bertgpt.data.batches import parts as parts_lib
from bertgpt.data.batches.windows import divide, ranges
from bertgpt.errors import ConfigError, DataError

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
  return parts_lib.select(corpus, np.flatnonzero(corpus.document_lengths))


def draw(corpus, max_tokens, seed=0, **data):
  return pairs_lib.draw_pairs(make_texts(corpus), make_config(**data).data, max_tokens,
                              np.random.default_rng(seed))


@pytest.mark.parametrize("objective", choices.OBJECTIVES)
def test_only_formats_whose_rows_continue_rows_are_planned_in_streams(objective):
  plan = formats.find(make_config(objective)).plan
  assert (("num_streams" in inspect.signature(plan).parameters)
          == choices.OBJECTIVES[objective].continues_rows)


@pytest.mark.parametrize("target_words, refused", [(0, False), (1, True), (2, False)])
def test_the_unknown_word_is_among_those_that_are_predicted(target_words, refused):
  """The others are predicted as it."""
  config = make_config("bilm")
  config.model.update(family="elmo", target_words=target_words)
  tokenizer = types.SimpleNamespace(kind="words", has_words=True, pad_id=0, unk_id=1,
                                    cls_id=2, sep_id=3)
  with (pytest.raises(ConfigError, match="model.target_words=1: .* Set it to more than 1")
        if refused else contextlib.nullcontext()):
    formats.check_tokenizer(config, tokenizer)


# ------------------------------------------------------ the published loop


class Pair(NamedTuple):
  """A pair whose sentences are given as (document, sentence) indices."""

  a: list
  b: list
  label: int


def published_pairs(document, max_tokens, dice):
  """Returns the pairs of one document, with the loop of create_pretraining_data.py.

  Args:
    document: index of the document.
    max_tokens: longest target.
    dice: has `lengths`, the lengths of the sentences of every document, and makes the random
      choices.
  """
  sentences = dice.lengths[document]
  target = dice.choose_target(document, max_tokens)
  pairs, chunk, length, i = [], [], 0, 0
  while i < len(sentences):
    chunk.append((document, i))
    length += sentences[i]
    if i == len(sentences) - 1 or length >= target:
      a_end = 1
      if len(chunk) >= 2:
        a_end = dice.choose_cut(document, len(chunk))
      a, b = chunk[:a_end], []
      is_random = dice.choose_random(document, len(chunk))
      if is_random:
        room, taken = target - sum(sentences[j] for _, j in a), 0
        other, start = dice.choose_other(document)
        for j in range(start, len(dice.lengths[other])):
          b.append((other, j))
          taken += dice.lengths[other][j]
          if taken >= room:
            break
        i -= len(chunk) - a_end
      else:
        b = chunk[a_end:]
      pairs.append(Pair(a, b, int(is_random)))
      chunk, length = [], 0
    i += 1
  return pairs


class Dice:
  """Random choices as published, with Python's own generator."""

  def __init__(self, lengths, seed, short_prob=0.1):
    self.lengths, self.rng, self.short_prob = lengths, random.Random(seed), short_prob

  def choose_target(self, document, max_tokens):
    return self.rng.randint(2, max_tokens) if self.rng.random() < self.short_prob else max_tokens

  def choose_cut(self, document, size):
    return self.rng.randint(1, size - 1)

  def choose_random(self, document, size):
    return size == 1 or self.rng.random() < 0.5

  def choose_other(self, document):
    while (other := self.rng.randrange(len(self.lengths))) == document:
      pass
    return other, self.rng.randrange(len(self.lengths[other]))


class Replay:
  """The choices that led to given pairs, in the order in which the loop asks for them."""

  def __init__(self, lengths, texts, pairs):
    self.lengths, self.texts, self.pairs = lengths, texts, pairs
    chunks = [np.flatnonzero(pairs.document == d).tolist() for d in range(len(lengths))]
    self.chunks, self.now = [iter(c) for c in chunks], None
    self.targets = [set(pairs.target[c].tolist()) for c in chunks]

  def choose_target(self, document, max_tokens):
    (target,) = self.targets[document]
    return target

  def choose_cut(self, document, size):
    self.now = next(self.chunks[document])
    return int(self.pairs.cut[self.now] - self.pairs.first[self.now])

  def choose_random(self, document, size):
    if size == 1:
      self.now = next(self.chunks[document])  # The loop did not call `choose_cut`.
    return self.pairs.label[self.now] == 1

  def choose_other(self, document):
    other = int(self.pairs.document_b[self.now])
    return other, int(self.pairs.first_b[self.now] - self.texts.offsets[other])


def lengths_of(texts):
  sentences = np.diff(texts.bounds)
  return [sentences[a:b].tolist() for a, b in zip(texts.offsets, texts.offsets[1:], strict=False)]


def as_published(texts, pairs, document):
  """Returns the drawn pairs of a document in the form of `published_pairs`."""
  def run(d, first, last):
    return [(d, j) for j in range(first - texts.offsets[d], last - texts.offsets[d])]
  return [Pair(run(document, pairs.first[n], pairs.cut[n]),
               run(pairs.document_b[n], pairs.first_b[n], pairs.last_b[n]), int(pairs.label[n]))
          for n in np.flatnonzero(pairs.document == document)]


@pytest.mark.parametrize("name", [n for n in CORPORA if "one document" != n != "one word in all"])
@pytest.mark.parametrize("max_tokens", [5, 30, 125])
@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_are_the_published_ones_for_the_same_choices(name, max_tokens, seed):
  texts = make_texts(CORPORA[name])
  pairs = draw(CORPORA[name], max_tokens, seed, short_sequence_prob=0.3)
  lengths = lengths_of(texts)
  replay = Replay(lengths, texts, pairs)
  for document in range(len(lengths)):
    assert as_published(texts, pairs, document) == published_pairs(document, max_tokens, replay)
    assert next(replay.chunks[document], None) is None, "chunks that the published loop lacks"


def test_pairs_are_distributed_as_published():
  """Compares means over many epochs of a small corpus, within 4 standard errors."""
  corpus = random_corpus(8, 10, 12, seed=3)
  texts = make_texts(corpus)
  lengths = lengths_of(texts)

  def statistics(pairs):
    def tokens(part):
      return sum(lengths[d][j] for d, j in part)

    return (len(pairs), sum(p.label for p in pairs), sum(len(p.a) for p in pairs),
            sum(tokens(p.a) for p in pairs), sum(tokens(p.b) for p in pairs),
            sum(tokens(p.b) for p in pairs if p.label == 1), sum(p.b[0][1] for p in pairs),
            sum(p.b[0][0] for p in pairs), sum(tokens(p.b) ** 2 for p in pairs))

  def ours(seed):
    pairs = draw(corpus, 40, seed)
    return statistics([p for d in range(len(lengths)) for p in as_published(texts, pairs, d)])

  def published(seed):
    dice = Dice(lengths, seed)
    return statistics([p for d in range(len(lengths)) for p in published_pairs(d, 40, dice)])

  a, b = (np.array([f(seed) for seed in range(600)], float) for f in (ours, published))
  error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 600)
  assert np.all(np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error)


# --------------------------------------------------------- random choices


def test_half_of_the_pairs_with_a_possible_next_have_a_random_one():
  pairs = draw(random_corpus(2000, 20, 10), 125)
  could = pairs.last - pairs.first > 1
  share = (pairs.label[could] == 1).mean()
  assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(could.sum())
  assert np.all(pairs.label[~could] == 1), "a chunk of one sentence has no next sentence"


def targets_of(short_sequence_prob):
  """Returns the target of every document of a corpus of 20,000, for at most 125 tokens."""
  pairs = draw(make_corpus([[9, 9, 9]] * 20_000), 125, short_sequence_prob=short_sequence_prob)
  targets = np.zeros(20_000, int)
  targets[pairs.document] = pairs.target
  assert np.array_equal(targets[pairs.document], pairs.target), "one target per document"
  return targets


def test_short_targets_are_as_frequent_as_asked():
  short = (targets_of(0.2) < 125).sum()
  assert abs(short - 20_000 * 0.2 * 123 / 124) < 4 * np.sqrt(20_000 * 0.16)


def test_short_targets_are_uniform_from_2_to_the_most():
  targets = targets_of(1.0)
  assert (targets.min(), targets.max()) == (2, 125)
  counts = np.bincount(targets)[2:]
  chi_square = np.sum((counts - counts.mean()) ** 2 / counts.mean())
  assert abs(chi_square - 123) < 4 * np.sqrt(2 * 123)


def test_the_random_next_is_uniform_over_the_other_documents_and_their_sentences():
  corpus = make_corpus([[10]] * 3 + [[1, 1, 1, 1]])
  counts = np.zeros((4, 7))
  for seed in range(400):
    pairs = draw(corpus, 10, seed)
    mine = pairs.document < 3
    np.add.at(counts, (pairs.document[mine], pairs.first_b[mine]), 1)
  assert counts[0, 0] == counts[1, 1] == counts[2, 2] == 0, "drawn from the own document"
  others = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])[:, :, None] / 3 * 400
  assert np.all(np.abs(counts[:3, :3, None] - others) < 4 * np.sqrt(400 * 2 / 9))
  assert np.all(np.abs(counts[:3, 3:] - 400 / 12) < 4 * np.sqrt(400 / 12))


def test_a_single_document_is_its_own_next():
  for seed in range(20):
    pairs = draw(CORPORA["one document"], 30, seed)
    assert 1 not in pairs.label
    alone = pairs.last - pairs.first == 1
    assert alone.sum() <= 1 and np.all((pairs.label == parts_lib.NO_LABEL) == alone)


# -------------------------------------------------------------- truncation


def truncate_step_by_step(a, b, max_tokens, rng):
  """Truncates the lists a and b in place, as truncate_seq_pair of create_pretraining_data.py."""
  while len(a) + len(b) > max_tokens:
    longer = a if len(a) > len(b) else b
    if rng.random() < 0.5:
      del longer[0]
    else:
      longer.pop()


@pytest.mark.parametrize("max_tokens", [5, 6, 17])
def test_truncation_keeps_as_much_of_each_part_as_published(max_tokens):
  a, b = (x.ravel() for x in np.meshgrid(np.arange(1, 24), np.arange(1, 24)))
  skip_a, keep_a, skip_b, keep_b = pairs_lib.truncate(a, b, max_tokens, np.random.default_rng(0))
  for n in range(len(a)):
    left_a, left_b = list(range(a[n])), list(range(b[n]))
    truncate_step_by_step(left_a, left_b, max_tokens, random.Random(n))
    assert (keep_a[n], keep_b[n]) == (len(left_a), len(left_b)), (a[n], b[n])
  assert np.all((skip_a >= 0) & (skip_a + keep_a <= a) & (skip_b >= 0) & (skip_b + keep_b <= b))


def test_truncation_takes_front_and_back_as_often_as_published():
  size, rng = 20_000, random.Random(0)
  lengths = np.full(size, 30), np.full(size, 22)
  skips = pairs_lib.truncate(*lengths, 33, np.random.default_rng(0))[::2]
  published = np.zeros((2, size))
  for n in range(size):
    a, b = list(range(30)), list(range(22))
    truncate_step_by_step(a, b, 33, rng)
    published[:, n] = a[0], b[0]
  for ours, theirs in zip(skips, published, strict=True):
    ours, theirs = (np.bincount(x.astype(int), minlength=20) for x in (ours, theirs))
    assert np.all(np.abs(ours - theirs) <= 4.5 * np.sqrt(ours + theirs + 1))


# ------------------------------------------------------------ conservation


@every_corpus
@every_length
@pytest.mark.parametrize("segment", [3, 4096])
def test_an_epoch_of_pairs_holds_every_sentence_once(corpus, seq_len, segment, monkeypatch):
  """Counts every sentence in A or in the B that follows it, without random Bs."""
  monkeypatch.setattr(pairs_lib, "SEGMENT_SENTENCES", segment)
  pairs = draw(corpus, seq_len - 3)
  seen = np.zeros(len(corpus.sentence_lengths), int)
  np.add.at(seen, ranges(pairs.first, pairs.cut - pairs.first), 1)
  follows = pairs.label == 0
  np.add.at(seen, ranges(pairs.first_b[follows], (pairs.last_b - pairs.first_b)[follows]),
            1)
  assert np.all(seen == 1)


def make_plan(corpus, objective, seq_len, key=(0,), data=None, **kwargs):
  return formats.make_plan(corpus, make_config(objective, **(data or {})), seq_len, key, **kwargs)


def count_tokens(corpus, plan):
  """Returns how often every token of the corpus occurs in the parts of a plan."""
  starts = np.cumsum(corpus.document_lengths) - corpus.document_lengths
  parts = plan.parts
  seen = np.zeros(corpus.document_lengths.sum(), int)
  np.add.at(seen, ranges(starts[parts["document"]] + parts["start"], parts["length"]), 1)
  return seen


@every_corpus
@every_length
@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_of_masked_lm_holds_every_token_once(corpus, seq_len, packing):
  plan = make_plan(corpus, "mlm", seq_len, data={"packing": packing})
  assert np.all(count_tokens(corpus, plan) == 1)
  sizes = plan.parts["length"] + plan.parts["opens"] + plan.parts["closes"]
  assert plan.parts["length"].min() > 0
  assert np.add.reduceat(sizes, plan.offsets[:-1]).max() <= seq_len
  if not packing:
    assert np.all(np.diff(plan.offsets) == 1)


@every_corpus
@every_length
def test_masked_lm_cuts_a_sentence_only_to_fill_a_row(corpus, seq_len):
  ends = set(np.cumsum(corpus.sentence_lengths).tolist())
  starts = np.cumsum(corpus.document_lengths) - corpus.document_lengths
  for packing, max_unused, least in ((True, 1 / 16, seq_len - int(seq_len / 16)),
                                     (True, 1.0, seq_len), (False, 1 / 16, seq_len)):
    plan = make_plan(corpus, "mlm", seq_len, data={"packing": packing, "max_unused": max_unused})
    last = plan.parts[plan.offsets[1:] - 1]
    is_cut = np.array([e not in ends for e in
                       (starts[last["document"]] + last["start"] + last["length"]).tolist()])
    used = last["column"] + last["opens"] + last["length"] + 1
    assert np.all(used[is_cut] >= least)


def complete_rows(lengths, room):
  """Returns the tokens of every row, as fairseq gathers lines with sample_break_mode=complete.

  token_block_utils_fast.pyx, 2019: lines are added while they fit.
  """
  rows, size = [], 0
  for length in lengths:
    if size and size + length > room:
      rows.append(size)
      size = 0
    size += length
  return [*rows, size]


@pytest.mark.parametrize("seq_len", [33, 128])
def test_rows_of_whole_sentences_are_those_of_fairseq(seq_len):
  """The text is one document, so separators take no room, and all sentences fit into a row."""
  lengths = np.random.default_rng(1).integers(1, 31, 900).tolist()
  corpus = make_corpus([lengths])
  texts = make_texts(corpus)
  plan = formats.find(make_config("mlm")).plan(texts, make_config("mlm", max_unused=1.0), seq_len,
                                               np.random.default_rng(0))
  rows = plan.parts["length"].tolist()
  expected = complete_rows(lengths, seq_len - 2)
  differs = next((i for i, (a, b) in enumerate(zip(rows, expected, strict=False)) if a != b), None)
  assert rows == expected, differs


@every_corpus
@every_length
@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_of_causal_lm_predicts_every_token_and_every_end_once(corpus, seq_len, packing):
  plan = make_plan(corpus, "causal", seq_len, data={"packing": packing})
  parts = plan.parts
  # A part without an opening token begins with a token that the previous part has predicted.
  targets = parts.copy()
  targets["start"] += ~parts["opens"]
  targets["length"] -= ~parts["opens"]
  assert np.all(count_tokens(corpus, plan._replace(parts=targets)) == 1)
  assert parts["closes"].sum() == parts["opens"].sum() == (corpus.document_lengths > 0).sum()
  sizes = parts["opens"] + parts["length"] + parts["closes"] - 1
  rows = np.add.reduceat(sizes, plan.offsets[:-1])
  assert rows.max() <= seq_len
  if packing:
    assert np.sum(rows < seq_len) <= 1


@every_corpus
@every_length
def test_rows_of_running_text_do_not_depend_on_sentences(corpus, seq_len):
  config, blocks = make_config("causal"), formats.find(make_config("causal"))
  documents = np.arange(len(corpus))[::-1]
  expected, found = (blocks.plan(parts_lib.select(corpus, documents, reads), config, seq_len, None)
                     for reads in (True, False))
  assert not blocks.reads_sentences
  np.testing.assert_array_equal(found.parts, expected.parts)
  np.testing.assert_array_equal(found.offsets, expected.offsets)


def test_one_giant_document_does_not_make_a_long_loop(monkeypatch):
  """The loop goes over the chunks of a segment, not over those of a whole document."""
  rounds = []
  gather = pairs_lib.gather_sentences
  monkeypatch.setattr(pairs_lib, "gather_sentences",
                      lambda *args: rounds.append(1) or gather(*args))
  pairs = draw(make_corpus([[20] * 200_000, [5, 5]]), 125)
  assert len(pairs.document) > 200_000 / 7
  assert len(rounds) <= pairs_lib.SEGMENT_SENTENCES + 1


# -------------------------------------------------------- epochs, windows


@pytest.mark.parametrize("objective", ["mlm_nsp", "mlm", "causal"])
def test_a_plan_follows_from_its_key_and_no_two_epochs_are_alike(objective):
  corpus = CORPORA["ordinary"]
  first, again, other = (make_plan(corpus, objective, 64, key) for key in ((7, 0), (7, 0), (7, 1)))
  assert np.array_equal(first.parts, again.parts) and np.array_equal(first.offsets, again.offsets)
  assert not np.array_equal(first.parts[:50], other.parts[:50])


@pytest.mark.parametrize("num_windows", [1, 2, 7, 100])
def test_the_windows_of_an_epoch_divide_the_documents(num_windows):
  corpus = CORPORA["ordinary"]  # It has 40 documents, so some of 100 windows must repeat one.
  windows = divide(corpus.document_lengths, num_windows)
  plans = [make_plan(corpus, "mlm", 32, window=w, windows=windows) for w in range(num_windows)]
  seen = sum(count_tokens(corpus, plan) for plan in plans)
  assert seen.min() == 1
  if num_windows < 40:
    assert seen.max() == 1
    tokens = [plan.parts["length"].sum() for plan in plans]
    assert max(tokens) - min(tokens) <= 2 * corpus.document_lengths.max()


def test_windows_are_random_independently():
  corpus = make_corpus([[10] * 8] * 100)
  windows = divide(corpus.document_lengths, 2)
  first, second = (make_plan(corpus, "mlm_nsp", 64, window=w, windows=windows) for w in range(2))
  assert not np.array_equal(first.parts["start"][:50], second.parts["start"][:50])


@pytest.mark.parametrize("difference", [-5, 0, 3])
def test_a_plan_is_fitted_to_a_number_of_rows(difference):
  corpus = CORPORA["ordinary"]
  whole = make_plan(corpus, "causal", 32)
  num_rows = whole.num_rows + difference
  fitted = make_plan(corpus, "causal", 32, num_rows=num_rows)
  assert fitted.num_rows == num_rows
  rows = [tuple(fitted.take(np.array([r])).parts.tolist()) for r in range(num_rows)]
  assert len(set(rows)) == min(num_rows, whole.num_rows), "rows repeated, or lost, without need"


def test_negative_seeds_are_seeds():
  assert make_plan(CORPORA["ordinary"], "mlm", 32, (-1,)).num_rows


def test_a_corpus_without_text_is_an_error_that_says_so():
  with pytest.raises(DataError, match="train split holds no text"):
    make_plan(make_corpus([[], []]), "mlm_nsp", 32)


# ------------------------------------------------------------ pairs in order


@pytest.mark.parametrize("packing", [True, False])
def test_ordered_pairs_are_neighbors_and_half_of_them_are_swapped(packing):
  """Both parts are consecutive in one document, and the label says which of them is first."""
  corpus = random_corpus(400, 12, 6)
  plan = make_plan(corpus, "mlm_sop", 512, data={"packing": packing, "short_sequence_prob": 0.9})
  a, b = plan.parts[0::2], plan.parts[1::2]
  assert a["opens"].all() and not b["opens"].any()
  label = a["label"]
  has_pair = label != parts_lib.NO_LABEL
  np.testing.assert_array_equal(a["document"][has_pair], b["document"][has_pair])
  swapped = label == 1
  first, second = np.where(swapped, b["start"], a["start"]), np.where(swapped, a, b)["start"]
  length = np.where(swapped, b["length"], a["length"])
  # Rows of 512 tokens truncate nothing, so the second part begins at the end of the first one.
  np.testing.assert_array_equal((first + length)[has_pair], second[has_pair])
  share = swapped[has_pair].mean()
  assert abs(share - 0.5) < 4.5 * 0.5 / np.sqrt(has_pair.sum())
  assert not b["length"][~has_pair].any(), "a pair without a label has no second part"


def test_lengths_do_not_tell_the_order():
  """Truncation of two long texts to an odd number keeps one more token of A, swapped or not."""
  corpus = make_corpus([[20] * 6] * 200)
  plan = make_plan(corpus, "mlm_sop", 16, data={"packing": False})
  a, b = plan.parts[0::2], plan.parts[1::2]
  has_pair = a["label"] != parts_lib.NO_LABEL
  for label in (0, 1):
    of_label = has_pair & (a["label"] == label)
    assert of_label.sum() > 100
    assert (a["length"][of_label] == 7).all() and (b["length"][of_label] == 6).all()


def test_an_epoch_of_ordered_pairs_holds_every_token_once():
  corpus = random_corpus(200, 12, 6)
  plan = make_plan(corpus, "mlm_sop", 512)
  np.testing.assert_array_equal(count_tokens(corpus, plan), 1)
