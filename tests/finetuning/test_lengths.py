"""Row lengths: one for a short run of a small model, all of them if padding costs more."""

import numpy as np
import pytest

from bertgpt.config import base, phase, presets
from bertgpt.config import finetuning as finetune_config
from bertgpt.finetuning import lengths
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import EvalSet, Rows, Task


def make_rows(count):
  sizes = np.random.default_rng(0).integers(5, 120, count)
  zeros = [np.zeros(n, np.int32) for n in sizes]
  return Rows(zeros, zeros, np.zeros(count, np.int32))


def make_configs(preset):
  run = base()
  run.model.update(presets.BERT[preset])
  run.model.vocab_size = 30_522
  run.phases = (phase(seq_len=128, batch_size=32),)
  config = finetune_config.base()
  config.task.max_length = 128
  return config, run


def count_lengths(preset, count, platform="cpu"):
  config, run = make_configs(preset)
  return len(lengths.for_training(config, run, make_rows(count), platform))


def test_long_runs_and_large_models_have_more_lengths():
  """Lengths up to 128 are 16, 32, 64, 128."""
  assert count_lengths("tiny", 300) == 1
  assert count_lengths("base", 30_000) == 4
  for by_rows in ([count_lengths("mini", n) for n in (100, 1000, 10_000, 30_000)],
                  [count_lengths(name, 1500) for name in ("tiny", "mini", "small", "base")]):
    assert by_rows == sorted(by_rows) and by_rows[0] < by_rows[-1]
  assert count_lengths("base", 1000, "gpu") == 1


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_every_batch_has_a_length(preset):
  """This includes the batches of other seeds and epochs, and of the evaluation."""
  config, run = make_configs(preset)
  rows = make_rows(700)
  task = Task("sst2", "classes", ("a", "b"), rows, (EvalSet("dev", make_rows(90), None, None),), {})
  chosen = (lengths.for_training(config, run, rows, "cpu"),
            lengths.for_evaluation(config, run, task, "cpu"),
            lengths.for_rows(run, rows, 8, "cpu"))
  assert {n for some in chosen for n in some} <= {16, 32, 64, 128}
  for seed in range(3):
    for index in rows_lib.order_epoch(rows.lengths, 32, seed, 1, True):
      batch = rows_lib.collate(rows, index, 32, 128, seed, chosen[0])
      longest = rows.lengths[index].max()
      assert batch["tokens"].shape[1] == min(n for n in chosen[0] if n >= longest)
