"""Real tokens per second of training: packed rows compared with rows of one sequence each.

  python -m benchmarks.packing --source='jsonl:wiki/train-*.jsonl.xz#text' --out=packing.json

Both train the same model on the same corpus with the same number of rows per step. The real tokens
are counted in the plan of a whole epoch, so they have no noise. The time per step is measured in
turns, on batches that are on the device. The ideal gain is 1 / (share of real tokens in padded
rows): full rows in steps that take no longer.
"""

import argparse
import sys

import jax
import numpy as np

from benchmarks import bare_step, side_by_side
from benchmarks.side_by_side import Row, Spread, spread
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data.batches import formats
from bertgpt.data.batches.parts import token_sizes
from bertgpt.data.batches.rows import TrainRows
from bertgpt.data.corpus.corpus import Corpus

ROWS_COUNTED = 2**17  # Rows of an epoch whose tokens are counted, at most.
ASKED = {512: ">= 0.93"}  # Length of the rows -> required share of the ideal gain.


def flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this benchmark."""
  parser.add_argument("--lengths", default="128,512", metavar="N,N",
                      help="tokens per row; default: 128,512")
  parser.add_argument("--tokens", type=int, default=4096,
                      help="slots per step, rows x length; default: 4096")


def measure(arguments: argparse.Namespace) -> side_by_side.Result:
  """Measures every length that the flags name."""
  recipe = side_by_side.read_config(arguments)
  rows = []
  for seq_len in map(int, arguments.lengths.split(",")):
    rows += measure_length(recipe, seq_len, arguments)
  return side_by_side.Result(jax.devices()[0].device_kind, rows)


def measure_length(recipe: ConfigDict, seq_len: int, arguments: argparse.Namespace) -> list[Row]:
  """Compares packed with padded rows of one length.

  Args:
    recipe: config of the recipe.
    seq_len: tokens per row.
    arguments: values of the flags.
  """
  batch_size = max(1, arguments.tokens // seq_len)
  configs = {name: at_length(recipe, seq_len, batch_size, packing)
             for name, packing in (("packed", True), ("padded", False))}
  corpus = bare_step.open_train_set(recipe)
  fills = {name: fill(corpus, config) for name, config in configs.items()}
  steps = {name: bare_step.from_corpus(corpus, config) for name, config in configs.items()}
  seconds = [max(step.seconds(n) for step in steps.values()) for n in (1, 2)][-1]  # 1: compiles
  number = side_by_side.repeats(seconds, arguments.seconds)
  times = side_by_side.time_in_turns(
      {name: lambda step=step: step.seconds(number) for name, step in steps.items()},
      arguments.rounds)
  # Seconds per step divided by real tokens per slot; smaller is better.
  costs = {name: [t / fills[name] for t in times[name]] for name in times}
  gain, at = side_by_side.ratio(costs["padded"], costs["packed"]), f"{seq_len} tokens: "
  share = Spread(*(value * fills["padded"] for value in gain))
  slots = batch_size * seq_len
  return [
      *(Row(f"{at}real tokens per slot, {name}", spread([fills[name]]), "") for name in fills),
      *(Row(f"{at}real tokens, {name}", side_by_side.per_second(slots, costs[name]), "/s")
        for name in costs),
      Row(f"{at}packed over padded, real tokens per second", gain),
      Row(f"{at}the same, ideal", spread([1 / fills["padded"]])),
      Row(f"{at}share of the ideal", share, "", ASKED.get(seq_len, "")),
  ]


def at_length(recipe: ConfigDict, seq_len: int, batch_size: int, packing: bool) -> ConfigDict:
  """Returns the config of one side.

  Args:
    recipe: config of the recipe.
    seq_len: tokens per row.
    batch_size: rows per step.
    packing: whether several sequences share a row.
  """
  config = recipe.copy_and_resolve_references()
  config.data.packing = packing
  config.model.max_positions = max(seq_len, config.model.max_positions)
  config.phases = (config_lib.phase(steps=1000, seq_len=seq_len, batch_size=batch_size,
                                    learning_rate=1e-4, schedule="constant"),)
  config_lib.validate(config)
  return config


def fill(corpus: Corpus, config: ConfigDict) -> float:
  """Returns the real tokens per slot in the rows of an epoch."""
  rows = TrainRows(corpus, config, 0, config.seed)
  number = min(rows.rows_per_epoch, ROWS_COUNTED)
  parts, _ = rows.plan(np.arange(number))
  sizes = token_sizes(parts) - formats.find(config).has_target
  return int(sizes.sum()) / (number * rows.seq_len)


FLAGS = (side_by_side.config_flag("configs/demo.py"), side_by_side.seconds_flag(2.0), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.packing", __doc__, FLAGS, measure))
