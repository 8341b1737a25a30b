"""bertgpt.data.batches.buckets: batches hold every row once and have few shapes."""

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
