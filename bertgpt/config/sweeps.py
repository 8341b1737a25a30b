"""Lists of runs for a recipe's `get_sweep()`: products, pairs, whole configs, random samples.

    def get_sweep():
      return sweeps.product({"seed": (0, 1, 2)},
                            sweeps.zip({"model.width": (128, 256), "model.num_heads": (4, 8)}))

A run is a dict FIELD: VALUE of what differs from `get_config()`.
"""

import builtins
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bertgpt.config.pretraining import ConfigDict, leaves

Runs = list[dict[str, Any]]
Draw = Callable[[random.Random], Any]


def product(*parts: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> Runs:
  """Returns every combination of the values of all fields; the last field varies fastest.

  Args:
    *parts: FIELD -> its values, or lists of runs, as the functions of this module return them.
  Raises:
    ValueError: two parts set the same field.
  """
  lists: list[Sequence[Mapping[str, Any]]] = []
  for part in parts:
    if isinstance(part, Mapping):
      lists += [[{field: value} for value in values] for field, values in part.items()]
    else:
      lists.append(part)
  return [_merge(runs) for runs in itertools.product(*lists)]


def _merge(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  merged: dict[str, Any] = {}
  for run in runs:
    if twice := merged.keys() & run.keys():
      raise ValueError(f"{sorted(twice)[0]} is set by two parts of the product")
    merged |= run
  return merged


def zip(fields: Mapping[str, Sequence[Any]]) -> Runs:
  """Returns a run per position: the first values of all fields, the second ones, and so on.

  Args:
    fields: FIELD -> its values; all have the same number of values.
  Raises:
    ValueError: the fields have different numbers of values.
  """
  return [dict(builtins.zip(fields, values, strict=True))
          for values in builtins.zip(*fields.values(), strict=True)]


def of_configs(configs: Iterable[ConfigDict], names: Sequence[str] = ()) -> Runs:
  """Returns a run per config: the fields in which it differs from the first one.

  Args:
    configs: the first is that of `get_config()`.
    names: fields that every run sets, such as those that tell the runs apart in a table.
  Raises:
    ValueError: the configs have different numbers of phases.
  """
  first, *others = [dict(leaves(config)) for config in configs]
  for i, fields in enumerate(others, 1):
    if fields.keys() != first.keys():
      raise ValueError(f"config {i} has another number of phases than the first config, but the "
                       "runs of a sweep can only change fields")
  return [{name: fields[name] for name in names}
          | {field: value for field, value in fields.items() if value != first[field]}
          for fields in (first, *others)]


def sample(number: int, fields: Mapping[str, Draw | Sequence[Any]], *, seed: int = 0) -> Runs:
  """Returns runs with random values, which are always the same for a seed.

  A larger number only adds runs at the end, so a sweep can be extended later.

  Args:
    number: number of runs.
    fields: FIELD -> `uniform(...)`, `log_uniform(...)`, or values of which one is chosen.
    seed: seed of the draws.
  """
  rng = random.Random(seed)
  return [{field: draw(rng) if callable(draw) else rng.choice(draw)
           for field, draw in fields.items()} for _ in range(number)]


def uniform(low: float, high: float) -> Draw:
  """Returns a draw of numbers between two others, for `sample`.

  Args:
    low, high: smallest and largest number.
  """
  return lambda rng: rng.uniform(low, high)


def log_uniform(low: float, high: float) -> Draw:
  """Returns a draw of numbers with uniform logarithms, such as learning rates, for `sample`.

  Args:
    low, high: smallest and largest number, above 0.
  """
  return lambda rng: math.exp(rng.uniform(math.log(low), math.log(high)))
