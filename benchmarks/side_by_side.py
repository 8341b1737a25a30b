"""What the benchmarks share: timing in turns, ratios with their spread, the table and the JSON.

Sides are timed in rounds A B C C B A. What slows the machine down for a while, or more and more,
slows all of them down alike; a ratio is taken within a round, and its spread is that of the rounds.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bertgpt import cli
from bertgpt.config import ConfigDict, recipes
from bertgpt.devices import huge_pages
from bertgpt.errors import UserError

TOLERANCE = 1e-4  # Of losses that are to be the same.
LEAVE_TIME_S = 10  # For a worker to end by itself.
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "tokenizers", "sentencepiece",
            "numpy")


class Spread(NamedTuple):
  """Median, smallest and largest of the rounds' values."""

  median: float
  low: float
  high: float


class Row(NamedTuple):
  """One measured number.

  Attributes:
    unit: 'x' for a ratio.
    asked: what the number must be, as '>= 1.0'; empty where nothing is asked.
  """

  what: str
  value: Spread
  unit: str = "x"
  asked: str = ""


class Result(NamedTuple):
  """Attributes: device, kind of the device that computed; rows."""

  device: str
  rows: list[Row]


# ---------------------------------------------------------------- in turns


def time_in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
  """Calls the sides in order and then backwards, `rounds` times.

  Args:
    sides: functions that do a piece of work and return its seconds, or any other number.
  Returns:
    Of every side the mean of its two numbers, a round each.
  """
  numbers = {name: [] for name in sides}
  for _ in range(rounds):
    there = {name: side() for name, side in sides.items()}
    back = {name: sides[name]() for name in reversed(sides)}
    for name in sides:
      numbers[name].append((there[name] + back[name]) / 2)
  return numbers


def spread(values: Sequence[float]) -> Spread:
  return Spread(statistics.median(values), min(values), max(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
  """Spread of above / below, both taken in the same round."""
  return spread([a / b for a, b in zip(above, below, strict=True)])


def per_second(work: float, seconds: Sequence[float]) -> Spread:
  """Spread of the speed: `work` in each of the times."""
  return spread([work / s for s in seconds])


def repeats(seconds: float, least: float) -> int:
  """How often to do what takes so long, to do it for at least `least` seconds."""
  return max(1, math.ceil(least / seconds))


def assert_equal_work(losses: Mapping[str, Sequence[float]]) -> None:
  """Args: losses, of every side those of the same batches from the same weights.

  Raises:
    SystemExit: they differ; what was to be timed is not the same work.
  """
  (first, expected), *others = losses.items()
  for name, found in others:
    wrong = [f"{a:.6f} {b:.6f}" for a, b in zip(expected, found, strict=True)
             if not abs(a - b) <= TOLERANCE]  # A NaN is wrong too.
    if wrong:
      raise SystemExit(f"not the same work, so nothing was timed: losses of {first!r} and {name!r} "
                       f"differ by more than {TOLERANCE:g}: {', '.join(wrong)}")


# ----------------------------------------------------------------- workers


class Worker:
  """One side in a process of its own, which rests while another is timed.

  Two frameworks in one process would share it with each other's threads.

  Args:
    make: module-level function that returns the functions a caller may name, as a dict; it runs
      in the process, so that it alone imports the framework.
    arguments: of `make`.
  """

  def __init__(self, make: Callable[..., dict[str, Callable]], *arguments: Any):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
    self._process.start()
    theirs.close()

  def __call__(self, name: str, *arguments: Any) -> Any:
    """Calls the function `name` in the process and returns, or raises, what it does."""
    try:
      self._pipe.send((name, arguments))
      answer = self._pipe.recv()
    except (EOFError, ConnectionError) as e:
      raise SystemExit(f"the process that was to do {name!r} died (out of memory?)") from e
    if isinstance(answer, BaseException):
      raise answer
    return answer

  def close(self) -> None:
    self._pipe.close()
    self._process.join(LEAVE_TIME_S)
    self._process.terminate()
    self._process.join()


def _serve(pipe, make, arguments) -> None:
  functions = None
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      name, values = pipe.recv()
      try:
        functions = make(*arguments) if functions is None else functions
        answer = functions[name](*values)
      except (Exception, SystemExit) as e:
        answer = _picklable(e)
      pipe.send(answer)


def _picklable(e: BaseException) -> BaseException:
  """Libraries raise what does not survive a pipe; its text does."""
  return e if isinstance(e, (UserError, SystemExit)) else RuntimeError(f"{type(e).__name__}: {e}")


# ------------------------------------------------------------ the command


def main(module: str, description: str, flags: Sequence[Callable],
         measure: Callable[[argparse.Namespace], Result],
         argv: Sequence[str] | None = None) -> int:
  """Parses the flags, measures, prints the table, writes the JSON; returns the exit code.

  Args:
    module: name of the benchmark, for the command that is recorded.
    flags: functions that add flags to a parser.
  """
  if argv is None:
    huge_pages.restart()  # As the program itself does.
  argv = sys.argv[1:] if argv is None else list(argv)
  try:
    arguments = parse(module, description, flags, argv)
    result = measure(arguments)
  except UserError as e:
    print(f"{module}: {e}", file=sys.stderr)
    return e.exit_code
  print(table(result.rows))
  if arguments.out:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(to_json(module, argv, arguments.rounds, result) + "\n")
  return 0


def parse(module: str, description: str, flags: Sequence[Callable],
          argv: Sequence[str]) -> argparse.Namespace:
  """The flags, with `overrides`: the --config.FIELD=VALUE among them."""
  parser = cli.Parser(f"python -m {module}", description=description, allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=3, help="A B B A each; default: 3")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="JSON to write")
  for flag in flags:
    flag(parser)
  arguments, arguments.overrides = parser.parse_known_args(argv)
  for flag in arguments.overrides:
    if not flag.startswith("--config."):
      parser.error(f"unknown argument {flag}")
  if arguments.rounds < 1:
    parser.error(f"--rounds={arguments.rounds}: at least 1 is needed")
  return arguments


def config_flag(recipe: str) -> Callable:
  """Flags --config and --source, for `read_config`."""

  def add(parser):
    parser.add_argument("--config", default=recipe, metavar="FILE",
                        help=f"a recipe; its fields are overridden by --config.FIELD=VALUE; "
                             f"default: {recipe}")
    parser.add_argument("--source", metavar="SOURCE", help="data.source; default: the recipe's")

  return add


def read_config(arguments: argparse.Namespace) -> ConfigDict:
  config = recipes.override(recipes.load(arguments.config), arguments.overrides)
  if arguments.source:
    config.data.source = arguments.source
  return config


def seconds_flag(default: float) -> Callable:
  return lambda parser: parser.add_argument(
      "--seconds", type=float, default=default,
      help=f"that one side runs for at a time, at least; default: {default:g}")


# ---------------------------------------------------------------- results


def table(rows: Sequence[Row]) -> str:
  width = max((len(row.what) for row in rows), default=0)
  lines = [f"{'':{width}}  {'median':>10}  {'min':>10}  {'max':>10}"]
  for what, value, unit, asked in rows:
    numbers = "  ".join(f"{number:>10.4g}" for number in value)
    lines.append(f"{what:{width}}  {numbers}  {unit}" + (f"  asked {asked}" if asked else ""))
  return "\n".join(lines)


def to_json(module: str, argv: Sequence[str], rounds: int, result: Result) -> str:
  return json.dumps({
      "command": shlex.join(["python", "-m", module, *argv]),
      "machine": machine() | {"device": result.device},
      "versions": dict(versions()),
      "rounds": rounds,
      "rows": [{"what": row.what, **row.value._asdict(), "unit": row.unit, "asked": row.asked}
               for row in result.rows]}, indent=2)


def machine() -> dict[str, Any]:
  return {"processor": processor(), "cores": cores(), "system": platform.platform()}


def processor() -> str:
  """The name of the CPU; Linux tells it in a file."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.is_file() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
  """Those this process may use."""
  return len(os.sched_getaffinity(0))


def versions() -> Iterator[tuple[str, str]]:
  yield "python", platform.python_version()
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      yield name, importlib.metadata.version(name)
