"""Masking: statistics and exact counts; losses against NumPy."""

import collections
import zlib

import jax
import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.training import objectives
from bertgpt.training.objectives import words

CLS, SEP, MASK, PAD = 2, 3, 4, 0
VOCAB = 1000
LENGTH = 128


def make_vocabulary():
  continues = np.arange(VOCAB) % 3 == 0  # A third of the tokens continue a word.
  continues[:5] = False
  return Vocabulary(VOCAB, MASK, (PAD, CLS, SEP, MASK), continues, np.zeros(VOCAB, bool))


def make_config(**objective):
  config = config_lib.base()
  config.phases = (config_lib.phase(seq_len=LENGTH, max_predictions=20),)
  config.objective.update(objective)
  return config


def make_batch(rows=2000, seed=0):
  """Returns rows [CLS] text [SEP] text [SEP] of every length, with padding."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(5, LENGTH + 1, rows)
  tokens = rng.integers(5, VOCAB, (rows, LENGTH))
  at = np.arange(LENGTH)
  tokens = np.where(at < lengths[:, None], tokens, PAD)
  tokens[:, 0] = CLS
  tokens[np.arange(rows), lengths // 2] = SEP
  tokens[np.arange(rows), lengths - 1] = SEP
  ids = (at < lengths[:, None]).astype(np.int32)
  return {"tokens": tokens.astype(np.int32), "sequence_ids": ids}, lengths


def corrupt(batch, seed=0, row_ids=None, **objective):
  config, rows = make_config(**objective), len(batch["tokens"])
  function = jax.jit(objectives.make_objective(config, make_vocabulary()).corrupt)
  row_ids = np.arange(rows) if row_ids is None else row_ids
  return jax.device_get(function(batch, jax.random.key(seed), row_ids))


@pytest.mark.parametrize("expected, objective", [
    (116073115, {"mask_rule": "bert"}), (3315740159, {"mask_rule": "fairseq"}),
    (2416891040, {"mask_rule": "bernoulli"}), (2865042019, {"name": "rtd"})])
def test_masks_are_those_of_existing_runs(expected, objective):
  """Recorded with the keys of earlier versions: split(key, 3), fold_in(key, 3) and (key, 4)."""
  masked = corrupt(make_batch(rows=64)[0], **objective)
  arrays = b"".join(np.ascontiguousarray(masked[name]).tobytes() for name in sorted(masked))
  assert zlib.crc32(arrays) == expected


def test_counts_are_those_of_the_published_preparation():
  batch, lengths = make_batch()
  masked = corrupt(batch)
  expected = [min(20, max(1, round(length * 0.15))) for length in lengths.tolist()]
  candidates = ((batch["tokens"] >= 5) & (batch["sequence_ids"] > 0)).sum(1)
  np.testing.assert_array_equal(masked["predict_weights"].sum(1), np.minimum(expected, candidates))


def test_targets_are_distinct_real_tokens():
  batch, lengths = make_batch()
  masked = corrupt(batch)
  chosen = masked["predict_weights"] > 0
  rows = np.broadcast_to(np.arange(len(lengths))[:, None], chosen.shape)[chosen]
  positions = masked["predict_positions"][chosen]
  assert len({*zip(rows.tolist(), positions.tolist(), strict=True)}) == len(rows)
  np.testing.assert_array_equal(masked["predict_targets"][chosen], batch["tokens"][rows, positions])
  assert (masked["predict_targets"][chosen] >= 5).all(), "no special token and no padding"
  assert (positions < lengths[rows]).all()


def test_only_chosen_positions_change():
  batch, _ = make_batch()
  masked = corrupt(batch)
  untouched = np.ones(batch["tokens"].shape, bool)
  rows, slots = np.nonzero(masked["predict_weights"])
  untouched[rows, masked["predict_positions"][rows, slots]] = False
  np.testing.assert_array_equal(masked["tokens"][untouched], batch["tokens"][untouched])


@pytest.mark.parametrize("with_mask, with_random", [(0.8, 0.1), (0.5, 0.5), (1.0, 0.0)])
def test_shares_of_mask_random_and_kept(with_mask, with_random):
  batch, _ = make_batch(4000)
  masked = corrupt(batch, replace_with_mask=with_mask, replace_with_random=with_random)
  rows, slots = np.nonzero(masked["predict_weights"])
  shown = masked["tokens"][rows, masked["predict_positions"][rows, slots]]
  targets = masked["predict_targets"][rows, slots]
  n = len(shown)
  # A random id is the target, or [MASK], in one of VOCAB draws each.
  expected = (with_mask, 1 - with_mask - with_random, with_random)
  shares = ((shown == MASK).mean(), (shown == targets).mean(),
            ((shown != MASK) & (shown != targets)).mean())
  for share, p in zip(shares, expected, strict=True):
    assert abs(share - p) < 4 * np.sqrt(0.25 / n) + 2 / VOCAB
  if with_random:
    random = shown[(shown != MASK) & (shown != targets)]
    assert random.min() < VOCAB * 0.01 and random.max() > VOCAB * 0.99, "of the whole vocabulary"
    assert abs(random.mean() / VOCAB - 0.5) < 0.02


def test_fairseqs_rule_takes_special_tokens_and_rounds_by_chance():
  """By mask_tokens_dataset.py: int(0.15 n + u) of n positions; random ids are never special."""
  batch, lengths = make_batch(4000)
  masked = corrupt(batch, mask_rule="fairseq", replace_with_mask=0.0, replace_with_random=1.0)
  counts = masked["predict_weights"].sum(1)
  assert np.all(np.abs(counts - 0.15 * lengths) < 1) and counts.min() == 0
  is_whole = lengths % 20 == 0
  np.testing.assert_array_equal(counts[is_whole], 0.15 * lengths[is_whole])
  rounded_up = (counts > 0.15 * lengths)[~is_whole]
  chance = (0.15 * lengths % 1)[~is_whole]
  assert abs(rounded_up.sum() - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())

  rows, slots = np.nonzero(masked["predict_weights"])
  positions = masked["predict_positions"][rows, slots]
  assert (batch["sequence_ids"][rows, positions] > 0).all()
  is_first = (positions == 0).sum()  # [CLS] is predicted like any other token.
  assert abs(is_first - 0.15 * len(lengths)) < 4 * np.sqrt(0.15 * 0.85 * len(lengths))
  shown = masked["tokens"][rows, positions]
  assert shown.min() == 1 and not np.isin(shown, (PAD, CLS, SEP, MASK)).any()
  assert abs(shown.mean() / VOCAB - 0.5) < 0.02


@pytest.mark.parametrize("seq_len, prob, slots", [(512, 0.15, 77), (128, 0.15, 20), (100, 0.15, 15),
                                                  (100, 0.07, 7), (64, 0.15, 10)])
def test_fairseqs_rule_has_slots_for_every_rounding(seq_len, prob, slots):
  config = make_config(mask_rule="fairseq", mask_prob=prob)
  config.phases = (config_lib.phase(seq_len=seq_len),)
  assert config_lib.max_predictions(config, config.phases[0]) == slots


@pytest.mark.parametrize("prob", [0.15, 0.3])
def test_the_bernoulli_rule_draws_for_every_token(prob):
  """Counts are binomial, even those of special tokens; random ids are from the whole vocabulary."""
  batch, lengths = make_batch(4000)
  config = make_config(mask_rule="bernoulli", mask_prob=prob)
  config.phases[0].max_predictions = 0
  slots = config_lib.max_predictions(config, config.phases[0])
  function = jax.jit(objectives.make_objective(config, make_vocabulary()).corrupt)
  masked = jax.device_get(function(batch, jax.random.key(0), np.arange(4000)))
  counts = masked["predict_weights"].sum(1)
  deviations = (counts - prob * lengths) / np.sqrt(prob * (1 - prob) * lengths)
  assert abs(deviations.mean()) < 4 / np.sqrt(4000)
  assert deviations.std() == pytest.approx(1, abs=0.05)
  assert counts.max() <= slots < LENGTH
  rows, at = np.nonzero(masked["predict_weights"])
  positions = masked["predict_positions"][rows, at]
  is_first = (positions == 0).sum()
  assert abs(is_first - prob * 4000) < 4 * np.sqrt(prob * (1 - prob) * 4000)
  assert all(len(set(p[w > 0])) == (w > 0).sum() for p, w in zip(
      masked["predict_positions"][:200], masked["predict_weights"][:200], strict=True))


def test_every_place_is_as_likely():
  tokens = np.full((4000, LENGTH), 7, np.int32)
  masked = corrupt({"tokens": tokens, "sequence_ids": np.ones_like(tokens)})
  counts = np.bincount(masked["predict_positions"][masked["predict_weights"] > 0], minlength=LENGTH)
  expected = counts.sum() / LENGTH
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert chi2 < LENGTH + 5 * np.sqrt(2 * LENGTH)


def test_masks_change_with_the_key_and_stay_with_it():
  batch, _ = make_batch(50)
  first, again, other = corrupt(batch, 0), corrupt(batch, 0), corrupt(batch, 1)
  np.testing.assert_array_equal(first["tokens"], again["tokens"])
  assert (first["tokens"] != other["tokens"]).any(1).mean() > 0.9


def test_masks_of_a_row_do_not_depend_on_the_batch_around_it():
  batch, _ = make_batch(64)
  whole = corrupt(batch)
  part = corrupt({k: v[16:24] for k, v in batch.items()}, row_ids=np.arange(16, 24))
  for name in ("tokens", "predict_positions", "predict_weights"):
    np.testing.assert_array_equal(part[name], whole[name][16:24])


def test_an_empty_row_predicts_nothing():
  blank = np.zeros((3, LENGTH), np.int32)
  for whole_words in (False, True):
    masked = corrupt({"tokens": blank, "sequence_ids": blank}, whole_words=whole_words)
    assert masked["predict_weights"].sum() == 0
    np.testing.assert_array_equal(masked["tokens"], blank)


def words_of(tokens, sequence_ids, continues):
  """Returns the words of a row as lists of positions, by create_pretraining_data.py's rule."""
  words = []
  for i, token in enumerate(tokens):
    if sequence_ids[i] == 0 or token < 5:
      continue
    if words and continues[token] and words[-1][-1] == i - 1:
      words[-1].append(i)
    else:
      words.append([i])
  return words


def test_whole_words_are_masked_whole():
  batch, lengths = make_batch(500)
  masked = corrupt(batch, whole_words=True)
  continues = make_vocabulary().continues_word
  short = 0
  for row in range(len(lengths)):
    chosen = {*masked["predict_positions"][row][masked["predict_weights"][row] > 0].tolist()}
    words = words_of(batch["tokens"][row], batch["sequence_ids"][row], continues)
    assert all(chosen.isdisjoint(word) or chosen.issuperset(word) for word in words)
    quota = min(20, max(1, round(int(lengths[row]) * 0.15)))
    assert len(chosen) <= quota
    left_out = [len(word) for word in words if chosen.isdisjoint(word)]
    assert not left_out or min(left_out) > quota - len(chosen), "a word that fits is taken"
    short += len(chosen) < quota
  assert short < 0.1 * len(lengths)


def test_a_word_starts_after_a_token_that_ends_one():
  vocabulary = make_vocabulary()._replace(continues_word=np.isin(np.arange(VOCAB), (7, 8)),
                                          ends_word=np.isin(np.arange(VOCAB), (6, 8)))
  tokens = np.array([[7, 7, 6, 7, 7], [8, 7, 5, 8, 8]], np.int32)
  assert words.continues_words(vocabulary, tokens).tolist() == [
      [True, True, False, False, True], [True, False, False, True, False]]


def published_ngrams(words, quota, longest, rng):
  """Returns the indices of the words that albert's create_pretraining_data.py masks."""
  taken, tokens = set(), 0
  for first in rng.permutation(len(words)):
    if tokens >= quota:
      break
    room = min(longest, len(words) - first)
    shares = 1 / np.arange(1, room + 1)
    n = rng.choice(room, p=shares / shares.sum()) + 1
    size = lambda n: sum(map(len, words[first:first + n]))  # noqa: B023
    while n > 1 and tokens + size(n) > quota:
      n -= 1
    run = set(range(first, first + n))
    if tokens + size(n) > quota or taken & run:
      continue
    taken |= run
    tokens += size(n)
  return taken


def runs_of(taken):
  """Returns how many masked runs of adjacent words there are of each length."""
  lengths, previous = collections.Counter(), None
  run = 0
  for word in sorted(taken):
    run = run + 1 if previous is not None and word == previous + 1 else 1
    if run > 1:
      lengths[run - 1] -= 1
    lengths[run] += 1
    previous = word
  return lengths


@pytest.mark.parametrize("rule", ["fairseq", "bernoulli"])
def test_a_special_token_is_a_word_of_its_own(rule):
  """The piece after it may be one that continues words elsewhere, as in a byte-level BPE."""
  batch, _ = make_batch(2000)
  batch["tokens"][:, 1] = 6
  assert make_vocabulary().continues_word[6]
  masked = corrupt(batch, mask_rule=rule, whole_words=True, mask_prob=0.3)
  is_chosen = np.zeros(batch["tokens"].shape, bool)
  rows, slots = np.nonzero(masked["predict_weights"])
  is_chosen[rows, masked["predict_positions"][rows, slots]] = True
  first, second = is_chosen[:, :2].T
  assert first.sum() > 200 and second.sum() > 200 and (first != second).sum() > 200


@pytest.mark.parametrize("whole_words", [False, True])
def test_ngrams_are_masked_as_published(whole_words):
  """Runs of each length are as frequent as in a plain copy of the algorithm."""
  batch, lengths = make_batch(1500)
  masked = corrupt(batch, whole_words=whole_words, ngram=3)
  continues = make_vocabulary().continues_word & whole_words
  rng = np.random.default_rng(0)
  found, expected, totals = collections.Counter(), collections.Counter(), []
  for row in range(len(lengths)):
    chosen = {*masked["predict_positions"][row][masked["predict_weights"][row] > 0].tolist()}
    words = words_of(batch["tokens"][row], batch["sequence_ids"][row], continues)
    assert all(chosen.isdisjoint(word) or chosen.issuperset(word) for word in words)
    quota = min(20, max(1, round(int(lengths[row]) * 0.15)))
    assert len(chosen) <= quota
    taken = {i for i, word in enumerate(words) if chosen.issuperset(word)}
    published = published_ngrams(words, quota, 3, rng)
    found.update(runs_of(taken))
    expected.update(runs_of(published))
    totals.append((len(taken), len(published)))
  totals = np.sum(totals, axis=0)
  assert totals[0] == pytest.approx(totals[1], rel=0.01)
  for length in (1, 2, 3):
    deviation = (found[length] + expected[length]) ** 0.5
    assert abs(found[length] - expected[length]) < 4.5 * deviation, (length, found, expected)


def test_total_loss_is_the_mean_over_masks_plus_the_mean_over_pairs():
  sums = {"mlm_loss": (30.0, 10.0), "nsp_loss": (8.0, 4.0), "mlm_accuracy": (5.0, 10.0)}
  assert float(objectives.total_loss(sums, {"mlm_loss": 10.0, "nsp_loss": 4.0})) == 5.0
