"""Real tokens a second of training: packed rows against rows of one sequence each.

  python -m benchmarks.packing --source='jsonl:wiki/train-*.jsonl.xz#text' --out=packing.json

Both train the same model on the same corpus with equally many rows a step. The real tokens are
counted in the plan of a whole epoch, so they carry no noise; a step's time is measured, packed and
padded in turns, on batches that lie on the device. What packing could bring at best is 1 / (share
of a padded row that is real): rows that are full, in steps that take no longer.
"""

import argparse
import sys

import jax
import numpy as np

from benchmarks import bare_step, side_by_side
from benchmarks.side_by_side import Row, Spread, spread
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data.batches import loader

ROWS_COUNTED = 2**17  # Of an epoch, at most.
ASKED = {512: ">= 0.93"}  # Share of the ideal, by length.


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--lengths", default="128,512", metavar="N,N", help="default: 128,512")
  parser.add_argument("--tokens", type=int, default=4096,
                      help="slots of a step: rows x length; default: 4096")


def measure(arguments: argparse.Namespace) -> side_by_side.Result:
  recipe = side_by_side.read_config(arguments)
  rows = []
  for seq_len in map(int, arguments.lengths.split(",")):
    rows += measure_length(recipe, seq_len, arguments)
  return side_by_side.Result(jax.devices()[0].device_kind, rows)


def measure_length(recipe: ConfigDict, seq_len: int, arguments: argparse.Namespace) -> list[Row]:
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
  # Real tokens a slot cost: the fewer seconds they take, the better.
  costs = {name: [t / fills[name] for t in times[name]] for name in times}
  gain, at = side_by_side.ratio(costs["padded"], costs["packed"]), f"{seq_len} tokens: "
  share = Spread(*(value * fills["padded"] for value in gain))
  slots = batch_size * seq_len
  return [
      *(Row(f"{at}real tokens a slot, {name}", spread([fills[name]]), "") for name in fills),
      *(Row(f"{at}real tokens, {name}", side_by_side.per_second(slots, costs[name]), "/s")
        for name in costs),
      Row(f"{at}packed over padded, real tokens a second", gain),
      Row(f"{at}the same, ideal", spread([1 / fills["padded"]])),
      Row(f"{at}share of the ideal", share, "", ASKED.get(seq_len, "")),
  ]


def at_length(recipe: ConfigDict, seq_len: int, batch_size: int, packing: bool) -> ConfigDict:
  config = recipe.copy_and_resolve_references()
  config.data.packing = packing
  config.model.max_positions = max(seq_len, config.model.max_positions)
  config.phases = (config_lib.phase(steps=1000, seq_len=seq_len, batch_size=batch_size,
                                    learning_rate=1e-4, schedule="constant"),)
  config_lib.validate(config)
  return config


def fill(corpus, config: ConfigDict) -> float:
  """Real tokens a slot, in an epoch."""
  rows = loader.Rows(corpus, config, 0, config.seed)
  number = min(rows.rows_per_epoch, ROWS_COUNTED)
  parts, _ = rows.plan(np.arange(number))
  return int(loader.sizes_of(parts, config.objective.name).sum()) / (number * rows.seq_len)


FLAGS = (side_by_side.config_flag("configs/demo.py"), side_by_side.seconds_flag(2.0), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.packing", __doc__, FLAGS, measure))
