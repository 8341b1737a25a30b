"""Common code of the benchmarks: timing in turns, ratios with their spread, table and JSON.

Sides are timed in rounds A B C C B A, so that a temporary or steady slowdown of the machine affects
all of them equally. A ratio is taken within a round, and its spread is over the rounds.
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
from bertgpt.config.overrides import override
from bertgpt.devices import huge_pages
from bertgpt.errors import UserError

TOLERANCE = 1e-4  # Difference of losses that count as equal.
EXIT_SECONDS = 10  # Time in which a worker may end by itself.
PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "tokenizers", "sentencepiece",
            "numpy")


class Spread(NamedTuple):
  """Median, smallest and largest value over the rounds."""

  median: float
  low: float
  high: float


class Row(NamedTuple):
  """One measured number.

  Attributes:
    what: description of the number.
    value: its spread over the rounds.
    unit: unit of the value; 'x' for a ratio.
    asked: required value, such as '>= 1.0'; '': none.
  """

  what: str
  value: Spread
  unit: str = "x"
  asked: str = ""


class Result(NamedTuple):
  """Result of a benchmark: kind of the device, and measured numbers."""

  device: str
  rows: list[Row]


# ---------------------------------------------------------------- in turns


def time_in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
  """Calls the sides in order and then in reverse order, in every round.

  Args:
    sides: functions that do a piece of work and return its seconds, or another number.
    rounds: number of rounds.
  Returns:
    For every side and round, the mean of its two numbers.
  """
  numbers = {name: [] for name in sides}
  for _ in range(rounds):
    forward = {name: side() for name, side in sides.items()}
    backward = {name: sides[name]() for name in reversed(sides)}
    for name in sides:
      numbers[name].append((forward[name] + backward[name]) / 2)
  return numbers


def spread(values: Sequence[float]) -> Spread:
  """Returns median, minimum and maximum of some values."""
  return Spread(statistics.median(values), min(values), max(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
  """Returns the spread of above / below, where both are from the same round."""
  return spread([a / b for a, b in zip(above, below, strict=True)])


def per_second(work: float, seconds: Sequence[float]) -> Spread:
  """Returns the spread of a speed: the same work divided by the seconds of every round."""
  return spread([work / s for s in seconds])


def repeats(seconds: float, least: float) -> int:
  """Returns how many times to repeat work of some seconds so that it lasts `least` seconds."""
  return max(1, math.ceil(least / seconds))


def assert_equal_work(losses: Mapping[str, Sequence[float]]) -> None:
  """Checks that all sides compute the same losses.

  Args:
    losses: side -> losses on the same batches, from the same weights.
  Raises:
    SystemExit: the losses differ, so the sides do not do the same work.
  """
  (first, expected), *others = losses.items()
  for name, found in others:
    wrong = [f"{a:.6f} {b:.6f}" for a, b in zip(expected, found, strict=True)
             if not abs(a - b) <= TOLERANCE]  # False for NaN too.
    if wrong:
      raise SystemExit(f"not the same work, so nothing was timed: losses of {first!r} and {name!r} "
                       f"differ by more than {TOLERANCE:g}: {', '.join(wrong)}")


# ----------------------------------------------------------------- workers


class Worker:
  """One side in a process of its own, which is idle while another side is timed.

  Two frameworks in one process would disturb each other with their threads.

  Args:
    make: module-level function that returns {name: function that can be called}. It runs in the
      process, so that only this process imports the framework.
    *arguments: arguments of `make`.
  """

  def __init__(self, make: Callable[..., dict[str, Callable]], *arguments: Any):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
    self._process.start()
    theirs.close()

  def __call__(self, name: str, *arguments: Any) -> Any:
    """Calls a function in the process, and returns its result or raises its error.

    Args:
      name: name of the function.
      *arguments: its arguments.
    """
    try:
      self._pipe.send((name, arguments))
      answer = self._pipe.recv()
    except (EOFError, ConnectionError) as e:
      raise SystemExit(f"the process for {name!r} died (out of memory?)") from e
    if isinstance(answer, BaseException):
      raise answer
    return answer

  def close(self) -> None:
    """Ends the process."""
    self._pipe.close()
    self._process.join(EXIT_SECONDS)
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
  """Returns an error that can be pickled; errors of libraries become a RuntimeError."""
  return e if isinstance(e, (UserError, SystemExit)) else RuntimeError(f"{type(e).__name__}: {e}")


# ------------------------------------------------------------ the command


def main(module: str, description: str, flags: Sequence[Callable],
         measure: Callable[[argparse.Namespace], Result],
         argv: Sequence[str] | None = None) -> int:
  """Parses the flags, measures, prints the table and writes the JSON.

  Args:
    module: name of the benchmark, for messages and the recorded command.
    description: text of --help.
    flags: functions that add flags to a parser.
    measure: function that measures with the values of the flags.
    argv: arguments of the command; None: those of this process.
  Returns:
    The exit code.
  """
  if argv is None:
    huge_pages.restart()  # `bertgpt train` does this too.
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
  """Returns the values of the flags, and as `overrides` the --config.FIELD=VALUE arguments.

  Args:
    module, description, flags: see `main`.
    argv: arguments of the command.
  """
  rounds = lambda parser: parser.add_argument(
      "--rounds", type=int, default=3,
      help="rounds, in which every side is timed twice; default: 3")
  parser, arguments = parse_flags(module, description, [rounds, *flags], argv)
  if arguments.rounds < 1:
    parser.error(f"--rounds={arguments.rounds}: must be at least 1")
  return arguments


def parse_flags(module: str, description: str, flags: Sequence[Callable], argv: Sequence[str]
                ) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
  """Returns the parser and the values of its flags, which are --out, `flags` and `overrides`.

  Args:
    module, description, flags, argv: see `parse`.
  """
  parser = cli.Parser(f"python -m {module}", description=description, allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="JSON file to write")
  for flag in flags:
    flag(parser)
  arguments, arguments.overrides = parser.parse_known_args(argv)
  for flag in arguments.overrides:
    if not flag.startswith("--config."):
      parser.error(f"unknown argument {flag}")
  return parser, arguments


def config_flag(recipe: str) -> Callable:
  """Returns a function that adds the flags --config and --source, for `read_config`.

  Args:
    recipe: default of --config.
  """

  def add(parser):
    parser.add_argument("--config", default=recipe, metavar="FILE",
                        help=f"recipe, whose fields are overridden by --config.FIELD=VALUE; "
                             f"default: {recipe}")
    parser.add_argument("--source", metavar="SOURCE",
                        help="data.source; default: that of the recipe")

  return add


def read_config(arguments: argparse.Namespace) -> ConfigDict:
  """Returns the config that the flags --config, --config.FIELD and --source name."""
  config = override(recipes.load(arguments.config), arguments.overrides)
  if arguments.source:
    config.data.source = arguments.source
  return config


def seconds_flag(default: float) -> Callable:
  """Returns a function that adds the flag --seconds."""
  return lambda parser: parser.add_argument(
      "--seconds", type=float, default=default,
      help=f"minimum number of seconds for which a side runs at a time; default: {default:g}")


# ---------------------------------------------------------------- results


def table(rows: Sequence[Row]) -> str:
  """Returns the numbers as a table of text."""
  width = max((len(row.what) for row in rows), default=0)
  lines = [f"{'':{width}}  {'median':>10}  {'min':>10}  {'max':>10}"]
  for what, value, unit, asked in rows:
    numbers = "  ".join(f"{number:>10.4g}" for number in value)
    lines.append(f"{what:{width}}  {numbers}  {unit}" + (f"  asked {asked}" if asked else ""))
  return "\n".join(lines)


def to_json(module: str, argv: Sequence[str], rounds: int, result: Result) -> str:
  """Returns the numbers as JSON, with the command, the machine and the versions of packages.

  Args:
    module: name of the benchmark.
    argv: arguments of the command.
    rounds: number of rounds.
    result: device and numbers.
  """
  return json.dumps({
      "command": shlex.join(["python", "-m", module, *argv]),
      "machine": machine() | {"device": result.device},
      "versions": dict(versions()),
      "rounds": rounds,
      "rows": [{"what": row.what, **row.value._asdict(), "unit": row.unit, "asked": row.asked}
               for row in result.rows]}, indent=2)


def machine() -> dict[str, Any]:
  """Returns processor, cores and system of this machine."""
  return {"processor": processor(), "cores": cores(), "system": platform.platform()}


def processor() -> str:
  """Returns the name of the CPU; on Linux, it is in a file."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.is_file() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0))


def versions() -> Iterator[tuple[str, str]]:
  """Yields (name, version) of Python and of the installed `PACKAGES`."""
  yield "python", platform.python_version()
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      yield name, importlib.metadata.version(name)
