"""The parts of `device`, each in a process of its own.

  python -m benchmarks.device_parts PART FILE [--rehearse]

A part yields rows, which are appended to FILE as JSON lines at once.
"""

import argparse
import importlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Part -> (module, function). The modules import JAX, this one does not.
FUNCTIONS = {"attention": ("device_checks", "attention"),
             "losses": ("device_checks", "losses"),
             "recipes": ("device_checks", "steps_of_recipes"),
             "generation": ("device_checks", "generation"),
             "products": ("device_speed", "products"),
             "programs": ("device_speed", "programs"),
             "speed": ("device_speed", "speed"),
             "resume": ("device_checks", "resume")}


class Row(NamedTuple):
  """One measured number.

  Attributes:
    what: description of the number.
    value: the number, or a word.
    unit: unit of the value.
    beside: a value to compare with: a prediction, a constant, or the allowed value.
    ok: whether the value is as required; None if it is only a measurement.
  """

  what: str
  value: float | str
  unit: str = ""
  beside: str = ""
  ok: bool | None = None


def at_most(what: str, value: float, allowed: float, unit: str = "") -> Row:
  """Returns the row of a number that must not exceed another; nan counts as exceeding it."""
  return Row(what, value, unit, f"at most {allowed:g}", bool(value <= allowed))


def guard(what: str, rows: Iterator[Row]) -> Iterator[Row]:
  """Yields rows; an error becomes a row, so that the rest of the part still runs.

  Args:
    what: description of the numbers, for that row.
    rows: rows that may raise.
  """
  try:
    yield from rows
  except Exception as e:
    said = str(e).strip().splitlines() or [""]
    yield Row(what, "failed", "", f"{type(e).__name__}: {said[0]}"[:200], False)


def run(name: str, path: pathlib.Path, part: Callable[[bool], Iterator[Row]],
        rehearse: bool) -> None:
  """Writes the rows of a part.

  Args:
    name: name of the part, for the log.
    path: file to append to.
    part: function that yields rows.
    rehearse: its argument.
  """
  start = time.monotonic()
  with path.open("a") as file:
    for row in part(rehearse):
      file.write(json.dumps(_plain(row)) + "\n")
      file.flush()
      print(f"{time.monotonic() - start:.0f} s, {name}: {row.what}", file=sys.stderr)


def _plain(row: Row) -> dict[str, Any]:
  """Returns a row as JSON values: nan and infinity become words."""
  value = row.value
  if isinstance(value, float) and not math.isfinite(value):
    value = str(value)
  return row._replace(value=value)._asdict()


def main() -> None:
  """Runs the part that the arguments name."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("part", choices=FUNCTIONS)
  parser.add_argument("path", type=pathlib.Path)
  parser.add_argument("--rehearse", action="store_true")
  arguments = parser.parse_args()
  module, function = FUNCTIONS[arguments.part]
  part = getattr(importlib.import_module(f"benchmarks.{module}"), function)
  run(arguments.part, arguments.path, part, arguments.rehearse)


if __name__ == "__main__":
  main()
