"""Cost of `bertgpt train` in addition to its jitted step: the loop, logging, evaluation, saving.

  python -m benchmarks.loop --config=configs/demo.py --out=loop.json

The bare step runs on batches that are on the device, and its metrics are not read. `bertgpt train`
is the real `loop.train` in a workdir of its own, timed from step to step after a warm-up, without
its start, its last evaluation and its last checkpoint. "As the recipe logs" is the loop of the
recipe between two evaluations. Every periodic event is switched on separately, at every tenth step;
its cost is the additional time per ten steps.
"""

import argparse
import functools
import sys

import jax

from benchmarks import bare_step, real_loop, side_by_side
from benchmarks.side_by_side import Result, Row, Spread
from bertgpt.config import ConfigDict
from bertgpt.devices import compilation_cache

EVERY = 10  # Steps from one evaluation, or checkpoint, to the next.

SILENT = {"log": {"every_steps": 10**9, "tensorboard": False}, "eval": {"every_steps": 0},
          "checkpoint": {"every_steps": 0, "every_minutes": 0.0}}

# Part -> fields that switch it on in a run that otherwise only runs steps, number of steps from one
# event to the next, and the group of fields with its interval in the recipe.
PARTS = {
    "logging": ({"log": {"every_steps": 1, "tensorboard": True}}, 1, "log"),
    "evaluation": ({"eval": {"every_steps": EVERY}}, EVERY, "eval"),
    "saving": ({"checkpoint": {"every_steps": EVERY}}, EVERY, "checkpoint"),
}


def flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this benchmark."""
  parser.add_argument("--steps", type=int, default=40,
                      help="steps timed together, a multiple of ten; default: 40")
  parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,PART",
                      help=f"parts whose cost is measured; '': none; default: {','.join(PARTS)}")


def measure(arguments: argparse.Namespace) -> Result:
  """Measures the bare step, the loop, and the parts that the flags name."""
  recipe = side_by_side.read_config(arguments)
  compilation_cache.enable(recipe.system.compilation_cache)
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
  """Returns a copy of a config with changed fields: group -> field -> value."""
  config = config.copy_and_resolve_references()
  config.update(changes)
  return config


def loop_seconds(config: ConfigDict, steps: int) -> float:
  """Returns the seconds per step of a real run."""
  return real_loop.run(config, steps).seconds()


def cost(name: str, times: list[float], without: list[float], every: int,
         recipe_every: int) -> list[Row]:
  """Returns rows with the cost of one event, and with its share of a run's time.

  Args:
    name: part, for the rows.
    times: seconds per step with the event, per round.
    without: seconds per step without it, per round.
    every: steps from one event to the next in `times`.
    recipe_every: the same in the recipe; 0: the recipe does not have the event.
  """
  one = side_by_side.spread([(a - b) * every for a, b in zip(times, without, strict=True)])
  rows = [Row(f"{name}, once", scaled(one, 1e3), "ms")]
  if recipe_every:
    step = side_by_side.spread(without).median
    rows.append(Row(f"{name}, every {recipe_every} steps", scaled(one, 100 / (recipe_every * step)),
                    "% of the time"))
  return rows


def scaled(value: Spread, factor: float) -> Spread:
  """Returns a spread in another unit."""
  return Spread(*(number * factor for number in value))


FLAGS = (side_by_side.config_flag("configs/demo.py"), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.loop", __doc__, FLAGS, measure))
