"""bertgpt.data.batches.packing: every sequence once, full rows, no bias."""

import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.data.batches import formats, packing
from bertgpt.data.corpus.corpus import open_corpus
from bertgpt.data.corpus.prepare import prepare


def pack(lengths, row_length, max_per_row, seed=0):
  return packing.pack(np.asarray(lengths), row_length, max_per_row, np.random.default_rng(seed))


def fill(lengths, offsets, row_length):
  """Returns the share of the rows' places that sequences take."""
  return np.sum(lengths) / (len(offsets) - 1) / row_length


@pytest.mark.parametrize("row_length", [8, 128, 512])
@pytest.mark.parametrize("max_per_row", [1, 2, 16])
@pytest.mark.parametrize("shape", ["uniform", "short", "full", "two lengths"])
def test_rows_hold_their_sequences_and_every_sequence_has_a_row(row_length, max_per_row, shape):
  rng = np.random.default_rng(1)
  lengths = {"uniform": rng.integers(1, row_length + 1, 3000),
             "short": rng.integers(1, 4, 3000),
             "full": np.full(50, row_length),
             "two lengths": rng.choice([row_length // 2 + 1, row_length // 2], 2001)}[shape]
  members, offsets = pack(lengths, row_length, max_per_row)
  assert sorted(members) == list(range(len(lengths)))
  assert np.add.reduceat(lengths[members], offsets[:-1]).max() <= row_length
  assert 1 <= np.diff(offsets).min() and np.diff(offsets).max() <= max_per_row


def test_nothing_to_pack():
  members, offsets = pack(np.zeros(0, int), 128, 4)
  assert len(members) == 0 and offsets.tolist() == [0]


@pytest.mark.parametrize("lengths, max_per_row, num_rows", [
    ([100, 28] * 500, 4, 500),            # Pairs that fill a row exactly.
    ([64, 32, 32] * 500, 4, 500),
    ([1] * 1000, 10, 100),                # As many sequences as a row may hold.
    ([65] * 10, 4, 10),                   # No two of these fit into a row.
])
def test_finds_the_fewest_rows_if_they_are_known(lengths, max_per_row, num_rows):
  assert len(pack(lengths, 128, max_per_row)[1]) - 1 == num_rows


def test_uniform_lengths_leave_less_than_one_percent_empty():
  lengths = np.random.default_rng(2).integers(5, 513, 20_000)
  assert fill(lengths, pack(lengths, 512, 16)[1], 512) > 0.99


def test_chance_decides_which_equal_lengths_share_a_row():
  """Among 1,000 sequences, two per row, every pair shares a row equally often."""
  size, rounds = 1000, 200
  partners = np.array([pack(np.full(size, 50), 100, 2, seed)[0].reshape(-1, 2)
                       for seed in range(rounds)])
  distance = np.abs(partners[..., 0] - partners[..., 1]).ravel()
  # Random pairs of 0..n-1 have a mean distance of (n + 1) / 3 with a deviation of n / sqrt(18).
  error = distance.mean() - (size + 1) / 3
  assert abs(error) < 4 * size / np.sqrt(18 * len(distance))
  # Neighbors are 2 / n of all pairs.
  expected = 2 / size * len(distance)
  assert abs((distance == 1).sum() - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("seq_len, least", [(128, 0.95), (512, 0.97)])
def test_pairs_of_wikipedia_fill_the_rows(wikipedia, seq_len, least):
  config = config_lib.base()
  plan = formats.make_plan(wikipedia, config, seq_len, (0,))
  tokens = plan.parts["length"] + plan.parts["opens"] + plan.parts["closes"]
  assert tokens.sum() / plan.num_rows / seq_len >= least


@pytest.fixture(scope="module")
def wikipedia(tmp_path_factory, data_dir):
  """Returns the held-out articles, tokenized with BERT's vocabulary."""
  config = config_lib.base()
  config.data.source = f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz#text"
  config.data.validation_fraction = 0.05
  config.data.prepare_workers = 1
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.path = str(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
  return open_corpus(prepare(config, tmp_path_factory.mktemp("wikipedia") / "corpus"), "train")
