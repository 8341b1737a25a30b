"""How many different row lengths fine-tuning uses: as many as pay for their compilation.

Every length needs a program of its own. Compiling one more program takes about the same time for
all models, because their layers are scanned, while the padding that it saves costs more the larger
the model and the longer the run. Short runs of small models therefore have one length, and long
runs have all lengths of `data.batches.buckets`.
"""

import collections

from bertgpt.config import ConfigDict, families
from bertgpt.data.batches import buckets
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows, Task

# FLOPs that a device could do while a train step is compiled. CPU: 4.6 s of one core at 97 GFLOP/s,
# measured; others: half a minute at 30 and 100 TFLOP/s.
COMPILE_FLOPS = {"cpu": 4.5e11, "gpu": 1e15, "tpu": 3e15}


def for_training(config: ConfigDict, run: ConfigDict, rows: Rows, platform: str
                 ) -> tuple[int, ...]:
  """Returns the lengths of the rows of training batches, ascending.

  They are the same for all seeds, so that a run depends only on its own seed.

  Args:
    config: fine-tuning config.
    run: config of a run, which describes the model.
    rows: rows of the training set.
    platform: 'cpu', 'gpu' or 'tpu'.
  """
  sizes = rows.lengths
  order = rows_lib.order_epoch(sizes, config.batch_size, 0, 0, config.group_by_length)
  needed = [sizes[index].max() for index in order]  # One of them has the longest row.
  return _choose(run, needed, config.epochs, config.batch_size, platform)


def for_evaluation(config: ConfigDict, run: ConfigDict, task: Task, platform: str
                   ) -> tuple[int, ...]:
  """Returns the lengths of the rows of evaluation batches, ascending.

  Args:
    config, run, platform: see `for_training`.
    task: task, whose evaluation sets share their programs.
  """
  needed = []
  for s in task.evals:
    times = config.epochs if s.score and config.eval.every_epoch else 1
    needed += times * of_batches(s.rows, config.eval.batch_size)
  return _choose(run, needed, 1, config.eval.batch_size, platform)


def for_rows(run: ConfigDict, rows: Rows, batch_size: int, platform: str) -> tuple[int, ...]:
  """Returns the lengths of the rows of batches that run forward only once, ascending.

  Args:
    run, platform: see `for_training`.
    rows: all rows.
    batch_size: rows per batch.
  """
  return _choose(run, of_batches(rows, batch_size), 1, batch_size, platform)


def of_batches(rows: Rows, batch_size: int) -> list[int]:
  """Returns the length of the longest row of every batch of an evaluation.

  Args:
    rows: rows of a set.
    batch_size: rows per batch.
  """
  lengths = rows.lengths
  return [int(lengths[index].max()) for index in rows_lib.order_evaluation(lengths, batch_size)]


def _choose(run, needed, times, batch_size, platform) -> tuple[int, ...]:
  """Returns the lengths for batches of the needed lengths, each of which occurs `times` times.

  The forward pass has about a third of both the FLOPs and the compilation time of a train step, so
  the same rule serves training and evaluation.
  """
  most = run.phases[0].seq_len
  counts = collections.Counter(buckets.bucket(int(length), most) for length in needed)
  flops = 3 * batch_size * families.find(run).flops_per_token(run.model, most, 0.0)
  cost = COMPILE_FLOPS[platform] / flops / times
  return buckets.choose(dict(sorted(counts.items())), cost)

