"""What `bertgpt train` costs on top of its jitted step: the loop, logging, evaluation, saving.

  python -m benchmarks.loop --config=configs/demo.py --out=loop.json

The bare step runs on batches that lie on the device and nobody looks at its metrics. `bertgpt
train` is the real `train.train` in a workdir of its own, timed from step to step after a warm-up;
its start, its last evaluation and its last checkpoint are left out. "As the recipe logs" is the
loop of the recipe between two evaluations. What comes every so often is switched on by itself, at
every tenth step, and its cost is what those ten take longer than without it.
"""

import argparse
import functools
import sys

import jax

from benchmarks import bare_step, real_loop, side_by_side
from benchmarks.side_by_side import Result, Row, Spread
from bertgpt.config import ConfigDict
from bertgpt.devices import process

EVERY = 10  # Steps from one evaluation, or checkpoint, to the next.

SILENT = {"log": {"every_steps": 10**9, "tensorboard": False}, "eval": {"every_steps": 0},
          "checkpoint": {"every_steps": 0, "every_minutes": 0.0}}

# part -> what is switched on in a run that does nothing but steps, events in so many steps, and
# the field that says how often the recipe does it.
PARTS = {
    "logging": ({"log": {"every_steps": 1, "tensorboard": True}}, 1, "log"),
    "evaluation": ({"eval": {"every_steps": EVERY}}, EVERY, "eval"),
    "saving": ({"checkpoint": {"every_steps": EVERY}}, EVERY, "checkpoint"),
}


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--steps", type=int, default=40,
                      help="timed at once, a multiple of ten; default: 40")
  parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,PART",
                      help=f"whose cost is measured; default: {','.join(PARTS)}; '': none")


def measure(arguments: argparse.Namespace) -> Result:
  recipe = side_by_side.read_config(arguments)
  process.use_compilation_cache(recipe.system.compilation_cache)
  parts = {name: PARTS[name] for name in arguments.parts.split(",") if name}
  silent = switched(recipe, SILENT)
  loops = {
      "loop": silent,
      "as the recipe logs": switched(recipe, SILENT | {"log": recipe.log.to_dict()}),
      **{name: switched(silent, changes) for name, (changes, _, _) in parts.items()}}
  bare = bare_step.from_corpus(bare_step.open_train_set(recipe), recipe)
  bare.seconds(real_loop.WARM_UP)
  sides = {"bare": functools.partial(bare.seconds, arguments.steps)}
  sides |= {name: functools.partial(loop_seconds, config, arguments.steps)
            for name, config in loops.items()}
  times = side_by_side.time_in_turns(sides, arguments.rounds)
  rows = [
      Row("bare step", scaled(side_by_side.spread(times["bare"]), 1e3), "ms"),
      Row("bertgpt train, as the recipe logs, over the bare step: time",
          side_by_side.ratio(times["as the recipe logs"], times["bare"]), asked="<= 1.03"),
      Row("bertgpt train, silent, over the bare step: time",
          side_by_side.ratio(times["loop"], times["bare"]))]
  for name, (_, every, group) in parts.items():
    rows += cost(name, times[name], times["loop"], every, recipe[group].every_steps)
  return Result(jax.devices()[0].device_kind, rows)


def switched(config: ConfigDict, changes: dict[str, dict]) -> ConfigDict:
  config = config.copy_and_resolve_references()
  config.update(changes)
  return config


def loop_seconds(config: ConfigDict, steps: int) -> float:
  return real_loop.run(config, steps).seconds()


def cost(name: str, times: list[float], without: list[float], every: int,
         recipe_every: int) -> list[Row]:
  """Rows of what one event costs, and of its share of the time as often as the recipe has it."""
  one = side_by_side.spread([(a - b) * every for a, b in zip(times, without, strict=True)])
  rows = [Row(f"{name}, once", scaled(one, 1e3), "ms")]
  if recipe_every:
    step = side_by_side.spread(without).median
    rows.append(Row(f"{name}, every {recipe_every} steps", scaled(one, 100 / (recipe_every * step)),
                    "% of the time"))
  return rows


def scaled(value: Spread, factor: float) -> Spread:
  return Spread(*(number * factor for number in value))


FLAGS = (side_by_side.config_flag("configs/demo.py"), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.loop", __doc__, FLAGS, measure))
