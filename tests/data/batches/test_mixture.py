"""bertgpt.data.batches.mixture: rows of several corpora, in exact shares, without repeats."""

import collections
import fractions
import pickle
import random

import numpy as np
import pytest
from memory_corpus import FIRST, random_corpus

from bertgpt import config as config_lib
from bertgpt.data.batches import loader, mixture
from bertgpt.data.batches.rows import TrainRows
from bertgpt.errors import DataError

MAIN, BOOKS, WEB = (random_corpus(60, 12, 10, seed) for seed in range(3))
OTHERS = {"books": BOOKS, "web": WEB}


def make_config(*phases, objective="causal", seq_len=32, batch_size=8):
  """Args: phases: (steps, mixture), or (steps, mixture, seq_len)."""
  config = config_lib.base()
  config.objective.name = objective
  config.phases = tuple(config_lib.phase(steps=steps, mixture=text, batch_size=batch_size,
                                         seq_len=(length or [seq_len])[0])
                        for steps, text, *length in phases)
  return config


def shares_of(*weights):
  return {str(k): fractions.Fraction(w, sum(weights)) for k, w in enumerate(weights)}


def random_weights(seed):
  rng = random.Random(seed)
  most = rng.choice([2, 9, 100, 1000])
  return [rng.randint(1, most) for _ in range(rng.randint(1, 9))]


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


def read_phase(config, phase_index, corpus=MAIN, others=OTHERS):
  """Returns the PhaseRows, and for all rows of a phase the corpora and the rows in them."""
  rows, p = mixture.PhaseRows(corpus, config, phase_index, others), config.phases[phase_index]
  which, index = rows.find(np.arange(p.steps * p.batch_size))
  return rows, {member.name: index[which == k] for k, member in enumerate(rows.members)}


# ---------------------------------------------------------------- schedule


@pytest.mark.parametrize("weights", [
    [1], [1, 1], [7, 3], [1, 999], [1, 1, 1, 7], [5, 3, 3, 2, 2, 2, 1], [50, *[1] * 50],
    *map(random_weights, range(40))], ids=str)
def test_after_every_row_each_corpus_is_less_than_one_row_from_its_share(weights):
  total = sum(weights)
  which, _ = mixture.Schedule(shares_of(*weights)).find(np.arange(2 * total))
  counts = np.cumsum(which[:, None] == np.arange(len(weights)), axis=0)
  # The difference times `total`, in integers.
  assert np.abs(counts * total - np.arange(1, 2 * total + 1)[:, None] * weights).max() < total


@pytest.mark.parametrize("weights", [[1], [7, 3], [3, 5, 2], *map(random_weights, range(5))],
                         ids=str)
def test_the_rows_of_a_corpus_are_read_in_order_without_gaps(weights):
  schedule, seen = mixture.Schedule(shares_of(*weights)), collections.Counter()
  which, index = schedule.find(np.arange(3 * sum(weights) + 2))
  for i, (k, j) in enumerate(zip(which.tolist(), index.tolist(), strict=True)):
    assert schedule.count(i) == {str(k): seen[k] for k in range(len(weights))}
    assert j == seen[k]
    seen[k] += 1


@pytest.mark.parametrize("weights, order", [
    ([7, 3], [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]), ([5, 3, 2], [0, 1, 0, 2, 0, 1, 0, 1, 0, 2])])
def test_the_order_is_that_of_the_runs_that_have_begun(weights, order):
  """If it has to change, raise `rows.ORDER_VERSION`."""
  assert mixture.Schedule(shares_of(*weights)).find(np.arange(10))[0].tolist() == order


def test_a_row_far_away_is_found_without_the_rows_before_it():
  weights = [13, 8, 5, 1]
  schedule, far = mixture.Schedule(shares_of(*weights)), 10**15
  near, rank = schedule.find(np.arange(27))
  which, index = schedule.find(27 * far + np.arange(27)[::-1])
  assert which.tolist() == near.tolist()[::-1]
  assert index.tolist() == (rank + far * np.array(weights)[near]).tolist()[::-1]
  assert schedule.count(27 * far) == {str(k): w * far for k, w in enumerate(weights)}


# -------------------------------------------------------------------- rows


def test_a_phase_without_a_mixture_has_the_rows_of_its_corpus():
  config = make_config((5, ""), (5, ""), objective="mlm_nsp")
  for i in (0, 1):
    expected = TrainRows(MAIN, config, i, config.seed).read(np.arange(40))
    assert_equal(mixture.PhaseRows(MAIN, config, i).read(np.arange(40)), expected)


@pytest.mark.parametrize("objective", ["mlm_nsp", "mlm", "plm", "causal"])
def test_a_batch_holds_rows_of_the_corpora_as_if_each_were_alone(objective):
  config = make_config((20, "main=2,books=5,web=1"), objective=objective)
  rows, _ = read_phase(config, 0)
  numbers = np.arange(160)
  batch = rows.read(numbers)
  which, index = rows.find(numbers)
  for k, corpus in enumerate((MAIN, BOOKS, WEB)):
    alone = TrainRows(corpus, config, 0, config.seed).read(np.arange((which == k).sum()))
    assert index[which == k].tolist() == list(range((which == k).sum()))
    assert_equal({name: array[which == k] for name, array in batch.items()}, alone)
  assert np.bincount(which).tolist() == [40, 100, 20]


def test_the_rows_of_a_corpus_do_not_depend_on_the_others():
  first, second = (make_config((40, text)) for text in ("main=0.3,books=0.7", "web=0.9,main=0.1"))
  found = []
  for config in (first, second):
    rows, _ = read_phase(config, 0)
    numbers = np.arange(320)
    (k,) = (k for k, member in enumerate(rows.members) if member.name == "main")
    batch = rows.read(numbers[rows.find(numbers)[0] == k][:32])
    found.append(batch)
  assert_equal(*found)


def test_hosts_and_any_first_step_read_the_rows_of_the_whole_batch():
  config = make_config((12, "main=0.45,books=0.55"), objective="mlm_nsp")

  def read(first_step, local_rows):
    with loader.make_train_batches(MAIN, config, 0, first_step, local_rows, OTHERS) as batches:
      return list(batches)

  whole = read(0, slice(0, 8))
  assert len(whole) == 12
  for step, batch in enumerate(read(7, slice(0, 8)), 7):
    assert_equal(batch, whole[step])
  hosts = [read(0, slice(i, i + 2)) for i in range(0, 8, 2)] + [read(0, np.array([5]))]
  for step, batch in enumerate(whole):
    for i, parts in enumerate(hosts[:4]):
      assert_equal(parts[step], {name: x[2 * i:2 * i + 2] for name, x in batch.items()})
    assert_equal(hosts[4][step], {name: x[5:6] for name, x in batch.items()})


def test_pickled_rows_are_the_same():
  rows, _ = read_phase(make_config((9, "main=1,books=2")), 0)
  assert_equal(pickle.loads(pickle.dumps(rows)).read(np.arange(30)), rows.read(np.arange(30)))


def test_no_row_is_read_by_a_host_without_rows():
  rows, _ = read_phase(make_config((9, "main=1,books=2")), 0)
  assert all(len(array) == 0 for array in rows.read(np.arange(0)).values())


# ------------------------------------------------------------------ phases


@pytest.mark.parametrize("mixtures_of_phases", [
    ("", "main=1"), ("", "main=0.5,books=0.5", "books=0.2,main=0.3,web=0.5"),
    ("books=1", "main=0.9,books=0.1", "books=1"), ("main=1,web=1", "books=1", "web=1,books=1")])
def test_a_later_phase_continues_in_each_corpus_where_earlier_ones_ended(mixtures_of_phases):
  config = make_config(*((4, text) for text in mixtures_of_phases))
  read = collections.defaultdict(list)
  for i in range(len(config.phases)):
    _, index = read_phase(config, i)
    for name, numbers in index.items():
      read[name] += numbers.tolist()
  for name, numbers in read.items():
    assert numbers == list(range(len(numbers))), name


def test_tokens_of_all_phases_together_are_those_of_one_epoch_in_one_phase():
  """Every target of the epoch is predicted once, although three phases share it."""
  per_epoch = TrainRows(MAIN, make_config((1, "")), 0, 0).rows_per_epoch
  steps = per_epoch // 8 // 3
  config = make_config((steps, ""), (2 * steps, "main=1,books=1"), (steps, "main=1"))
  found = []
  for i in range(3):
    rows, index = read_phase(config, i)
    (member,) = (member for member in rows.members if member.name == "main")
    found.append(member.rows.read(index["main"])["targets"])
  one = TrainRows(MAIN, config, 0, config.seed).read(np.arange(3 * steps * 8))["targets"]
  np.testing.assert_array_equal(np.concatenate(found), one)
  ids, counts = np.unique(one[one >= FIRST], return_counts=True)
  assert counts.max() == 1 and len(ids) > MAIN.document_lengths.sum() * 0.9


def test_a_phase_without_a_mixture_or_with_other_rows_begins_a_new_order():
  config = make_config((4, "main=1,books=1"), (4, ""), (4, "main=1"), (4, "main=1", 16),
                       (4, "books=1"), (4, "main=1"))
  origins = [mixture.find_origin(config, i, name) for i, name in enumerate(
      ["main", "main", "main", "main", "books", "main"])]
  assert origins == [(0, 0), (1, 0), (1, 32), (3, 0), (0, 16), (1, 64)]


def test_a_longer_last_phase_does_not_change_the_rows_before_it():
  short, longer = (make_config((4, ""), (steps, "main=1,books=3")) for steps in (3, 30))
  a, b = (mixture.PhaseRows(MAIN, config, 1, OTHERS).read(np.arange(24))
          for config in (short, longer))
  assert_equal(a, b)


@pytest.mark.parametrize("objective", ["bilm", "plm_memory"])
def test_streams_of_another_corpus_follow_in_another_phase(objective):
  config = make_config((4, ""), (4, "books=1"), (4, "books=1"), objective=objective, seq_len=64,
                       batch_size=4)
  config.objective.update(permutation_block=16, memory=16)
  alone = TrainRows(BOOKS, config, 1, config.seed)
  for i, step in ((1, 0), (2, 4)):
    found = loader.read_step(mixture.PhaseRows(MAIN, config, i, OTHERS), 4, slice(0, 4), 0)
    assert_equal(found, loader.read_step(alone, 4, slice(0, 4), step))


# ---------------------------------------------------------------- accounts


def test_counted_rows_are_those_of_the_steps_that_were_trained():
  config = make_config((7, "main=3,books=1"), (9, "web=2,main=5"))
  config.train.skip_steps = ((2, 3), (6, 10))
  for step in range(17):
    for i, first in enumerate((0, 7)):
      rows, _ = read_phase(config, i)
      trained = [s for s in range(first, min(step, first + config.phases[i].steps))
                 if s + 1 not in (2, 3, 6, 7, 8, 9, 10)]
      numbers = np.array([(s - first) * 8 + b for s in trained for b in range(8)], np.int64)
      found = np.bincount(rows.find(numbers)[0], minlength=len(rows.members))
      assert mixture.count_rows(config, i, step) == {
          member.name: count for member, count in zip(rows.members, found.tolist(), strict=True)}
  assert mixture.describe_shares(config, 8) == [
      "phase 0: main 75.00%, books 25.00% of 24 rows"]
  assert mixture.describe_shares(make_config((7, "")), 7) == []


def test_a_corpus_too_small_for_its_part_of_a_batch_is_refused_by_its_name():
  small = random_corpus(1, 2, 30)
  config = make_config((4, "main=0.5,small=0.5"), batch_size=512)
  with pytest.raises(DataError, match=r"fewer than the 256 of phases\[0\].batch_size=512. Lower "
                                      "its weight, batch_size or seq_len"):
    loader.make_train_batches(MAIN, config, 0, 0, slice(None), {"small": small})
