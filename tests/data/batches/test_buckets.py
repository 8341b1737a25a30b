"""bertgpt.data.batches.buckets: batches hold every row once and have few shapes."""

import itertools

import numpy as np
import pytest

from bertgpt.data.batches import buckets

LADDER = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


@pytest.mark.parametrize("most", [1, 15, 16, 24, 100, 128, 384, 500, 512, 1024, 2048])
def test_a_bucket_is_the_next_length_of_the_ladder_and_no_more_than_the_model(most):
  for length in range(1, most + 1):
    (expected, *_) = [size for size in LADDER if size >= length]
    assert buckets.bucket(length, most) == min(expected, most)


def test_batches_have_every_row_once_in_rows_of_its_bucket():
  lengths = np.random.default_rng(0).integers(1, 101, 200)
  seen = []
  for which, size in buckets.batches(lengths, 16, 100):
    assert 0 < len(which) <= 16 and (np.diff(which) > 0).all()
    assert size in (16, 32, 64, 100) and (lengths[which] <= size).all()
    assert size == 16 or (lengths[which] > size // 2).all()
    seen += which.tolist()
  assert sorted(seen) == list(range(200))


def test_padding_keeps_the_rows():
  rows = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
  np.testing.assert_array_equal(
      buckets.pad(rows, 4, 8), [[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 0, 0], [0, 0, 0, 0]])
  assert buckets.pad(rows, 4, 3).shape == (3, 4) and buckets.pad(rows[:1], 4, 3).shape == (1, 4)


@pytest.mark.parametrize("cost", [0, 1, 40, 300, 5000, 1e9])
def test_chosen_lengths_cost_the_least(cost):
  """The result is compared with every set of lengths that contains the longest."""
  rng = np.random.default_rng(int(cost) % 97)
  for _ in range(20):
    needed = sorted(rng.choice(20, rng.integers(1, 7), replace=False) * 16 + 16)
    counts = {int(n): int(rng.integers(1, 30)) for n in needed}

    def price(lengths, counts=counts):
      return cost * len(lengths) + sum(
          count * min(n for n in lengths if n >= length) for length, count in counts.items())

    every = [(*some, max(counts)) for size in range(len(counts))
             for some in itertools.combinations(sorted(counts)[:-1], size)]
    found = buckets.choose(counts, cost)
    assert found == tuple(sorted(found)) and price(found) == pytest.approx(min(map(price, every)))
  assert buckets.choose({}, 1.0) == ()
