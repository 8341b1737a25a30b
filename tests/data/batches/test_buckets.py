"""bertgpt.data.batches.buckets: batches hold every row once and have few shapes."""

import numpy as np
import pytest

from bertgpt.data.batches import buckets


@pytest.mark.parametrize("length, most, expected", [
    (1, 512, 32), (32, 512, 32), (33, 512, 64), (64, 512, 64), (300, 512, 512), (300, 384, 384),
    (20, 24, 24)])
def test_a_bucket_holds_the_row_and_no_more_than_the_model(length, most, expected):
  assert buckets.bucket(length, most) == expected


def test_batches_have_every_row_once_in_rows_of_its_bucket():
  lengths = np.random.default_rng(0).integers(1, 101, 200)
  seen = []
  for which, size in buckets.batches(lengths, 16, 100):
    assert 0 < len(which) <= 16 and (np.diff(which) > 0).all()
    assert size in (32, 64, 100) and (lengths[which] <= size).all()
    assert size == 32 or (lengths[which] > size // 2).all()
    seen += which.tolist()
  assert sorted(seen) == list(range(200))


def test_padding_keeps_the_rows():
  rows = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
  np.testing.assert_array_equal(
      buckets.pad(rows, 4, 8), [[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 0, 0], [0, 0, 0, 0]])
  assert buckets.pad(rows, 4, 3).shape == (3, 4) and buckets.pad(rows[:1], 4, 3).shape == (1, 4)
