"""bertgpt.report.batches: what the text about batches says is in them."""

import numpy as np
import pytest
from memory_corpus import random_corpus

from bertgpt import config as config_lib
from bertgpt.data.batches import loader
from bertgpt.data.batches.mixture import PhaseRows
from bertgpt.data.batches.rows import TrainRows
from bertgpt.errors import ConfigError
from bertgpt.report import batches

ORDINARY = random_corpus(60, 12, 10)


def make_config(seq_len=32, batch_size=8, steps=40):
  config = config_lib.base()
  config.phases = (config_lib.phase(seq_len=seq_len, batch_size=batch_size, steps=steps),)
  return config


def test_the_text_counts_what_is_in_the_rows():
  config = make_config(seq_len=64, batch_size=4)
  rows = TrainRows(ORDINARY, config, 0, config.seed)
  batch = rows.read(np.arange(rows.rows_per_epoch))
  text = batches.describe_batches(ORDINARY, config, [0, 3])
  filled = batch["nsp_weights"] > 0
  random_next = batch["nsp_labels"][filled].mean()
  step_3 = rows.read(np.arange(12, 16))
  for line in (f"rows per epoch     {len(batch['tokens']):,}",
               f"padding            {(batch['sequence_ids'] == 0).mean():.2%}",
               f"sequences per row  {filled.sum() / len(filled):.2f}",
               f"random next        {random_next:.2%} of {filled.sum():,} pairs",
               f"step 3: sha256 {loader.batch_sha256(step_3)}"):
    assert f"{line}\n" in f"{text}\n"
  assert sum(line.startswith("row ") for line in text.splitlines()) >= 5


def test_the_text_has_the_shares_and_epochs_of_every_corpus_of_a_mixture():
  config, books = make_config(steps=30), random_corpus(40, 9, 10, seed=1)
  phase = config.phases[0].copy_and_resolve_references()
  phase.mixture = "main=0.7,books=0.3"
  config.phases = (*config.phases, phase)
  per_epoch = TrainRows(books, config, 1, config.seed).rows_per_epoch
  of_main = TrainRows(ORDINARY, config, 0, config.seed).rows_per_epoch
  text = batches.describe_batches(ORDINARY, config, [31], others={"books": books})
  before, of_mixture = text.split("phase 1: 30 steps of 8 rows of 32 tokens\n")
  assert "share of the rows" not in before and f"epochs             {240 / of_main:.2f}\n" in before
  main, of_books = of_mixture.split("  books\n")
  for part, lines in ((main, ("  main", "share of the rows  70.00%, 168 rows",
                              f"read before        {240 / of_main:.2f} epochs",
                              f"rows per epoch     {of_main:,}",
                              f"epochs             {168 / of_main:.2f}")),
                      (of_books, ("share of the rows  30.00%, 72 rows",
                                  f"rows per epoch     {per_epoch:,}",
                                  f"epochs             {72 / per_epoch:.2f}"))):
    for line in lines:
      assert f"{line}\n" in part
  assert "read before" not in of_books
  rows = PhaseRows(ORDINARY, config, 1, {"books": books}).read(np.arange(8, 16))
  assert f"step 31: sha256 {loader.batch_sha256(rows)}" in text


def test_steps_that_are_left_out_are_no_epochs():
  config = make_config(steps=40)
  rows = TrainRows(ORDINARY, config, 0, config.seed).rows_per_epoch
  text = batches.describe_batches(ORDINARY, config, [])
  assert f"epochs             {40 * 8 / rows:.2f}\n" in text
  config.train.skip_steps = ((1, 20),)
  text = batches.describe_batches(ORDINARY, config, [])
  assert f"epochs             {20 * 8 / rows:.2f}\n" in text
  assert text.startswith("phase 0: 40 steps of 8 rows of 32 tokens, 20 of them left out\n")


def test_the_text_shows_rows_as_the_mask_leaves_them():
  def mask(batch):
    return batch | {"tokens": np.full_like(batch["tokens"], 777),
                    "predict_positions": np.full((len(batch["tokens"]), 2), 3),
                    "predict_targets": np.full((len(batch["tokens"]), 2), 888),
                    "predict_weights": np.tile([1.0, 0.0], (len(batch["tokens"]), 1))}
  text = batches.describe_batches(ORDINARY, make_config(), [], mask)
  assert "  A 777 777" in text and "to predict: 888\n" in text


@pytest.mark.parametrize("objective", ["mlm_nsp", "plm", "mlm", "causal"])
def test_the_text_shows_all_tokens_of_a_row(objective):
  """XLNet's [CLS] belongs to neither text of a pair."""
  config = make_config()
  config.objective.name = objective
  batch = TrainRows(ORDINARY, config, 0, config.seed).read(np.arange(1))
  lines = batches.describe_batches(ORDINARY, config, []).partition("row 0, ")[2].split("row 1, ")[0]
  shown = " ".join(line[4:] for line in lines.splitlines() if line.startswith("  "))
  filled = batch["tokens"][batch["sequence_ids"] > 0]
  assert sorted(shown.split()) == sorted(ORDINARY.tokenizer.decode(filled).split())


def test_the_text_shows_what_an_elmo_reads_backward():
  config = make_config()
  config.model.family, config.objective.name = "elmo", "bilm"
  batch = TrainRows(ORDINARY, config, 0, config.seed).read(np.arange(1))
  lines = batches.describe_batches(ORDINARY, config, []).partition("row 0, ")[2].split("row 1, ")[0]
  filled = batch["backward_tokens"][batch["sequence_ids"] > 0]
  assert f"  backward: {ORDINARY.tokenizer.decode(filled)}\n" in lines


def test_a_batch_that_the_text_does_not_fill_is_a_warning():
  text = batches.describe_batches(ORDINARY, make_config(batch_size=4096), [0])
  assert "WARNING: no run can be trained with this config: " in text
  assert "fewer than phases[0].batch_size=4096" in text


def test_a_step_beyond_the_run_is_refused():
  with pytest.raises(ConfigError, match="--steps=40: the run has steps 0 to 39"):
    batches.describe_batches(ORDINARY, make_config(steps=40), [0, 40])
