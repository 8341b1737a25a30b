"""Checks correctness, speed and bottlenecks on a machine with an accelerator, in half an hour.

  python -m benchmarks.device --minutes=25 --out=device.json
  python -m benchmarks.device --rehearse --out=rehearsal.json    small sizes, on the CPU

Every part runs in a process of its own with a time limit. A part that fails or takes too long is
one line of the table, and the next part follows. Parts about correctness mostly compile, so several
of them share the device; those about speed have it to themselves. The JSON file is written after
every part and holds what a part had measured when it was stopped. The parts are in `device_parts`.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import side_by_side
from bertgpt import cli
from bertgpt.errors import ConfigError, UserError

# Part -> seconds that it may take at most. Checks share the device; the parts after them have it
# alone. A resumed run must choose the same kernels, which XLA does by timing them.
CHECKS = {"attention": 300, "losses": 420, "recipes": 420, "generation": 420}
PARTS = CHECKS | {"products": 120, "programs": 480, "speed": 600, "resume": 300}
CORES_PER_CHECK = 3  # Cores that the compiler keeps busy. On fewer than 6, one part runs at a time.
PATIENCE = 4  # Factor on these times for a rehearsal, which runs on few cores.
LEAST_SECONDS = 5  # A part is not started if less time than this is left.


class Outcome(NamedTuple):
  """The result of a part.

  Attributes:
    seconds: time that it took.
    rows: its measurements, each a `device_parts.Row` as a dict.
    error: one line; '' if the part was completed.
  """

  seconds: float
  rows: list[dict[str, Any]]
  error: str

  @property
  def is_good(self) -> bool:
    """Whether it was completed and every value is as required."""
    return not self.error and all(row["ok"] is not False for row in self.rows)


def main(argv: Sequence[str] | None = None, parts: Mapping[str, float] = PARTS,
         module: str = "benchmarks.device_parts") -> int:
  """Runs the parts, prints the table and writes the JSON.

  Args:
    argv: arguments of the command; None: those of this process.
    parts: part -> seconds that it may take at most.
    module: module that runs one part; tests give another.
  Returns:
    The exit code: 1 if a part failed or a value is not as required.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  try:
    arguments = parse(argv, parts)
  except UserError as e:
    print(f"benchmarks.device: {e}", file=sys.stderr)
    return e.exit_code
  end, outcomes, stopped = time.monotonic() + 60 * arguments.minutes, {}, threading.Event()

  def run(name: str) -> tuple[str, Outcome]:
    limit = min(parts[name] * (PATIENCE if arguments.rehearse else 1), end - time.monotonic())
    return name, run_part(module, name, limit, arguments.rehearse, stopped)

  with contextlib.closing(run_all(run, arguments.parts, stopped)) as results:
    for name, outcome in results:
      outcomes[name] = outcome
      print(show(name, outcome), flush=True)
      if arguments.out:
        write(arguments.out, to_json(argv, arguments.rehearse, outcomes))
  return 0 if all(outcome.is_good for outcome in outcomes.values()) else 1


def run_all(run: Callable[[str], tuple[str, Outcome]], names: Sequence[str],
            stopped: threading.Event) -> Generator[tuple[str, Outcome], None, None]:
  """Yields (part, result), as soon as each part ends: those of `CHECKS` first, several at a time.

  Args:
    run: runs a part.
    names: the parts.
    stopped: is set if an error or Ctrl-C ends the benchmark.
  """
  workers = max(1, side_by_side.cores() // CORES_PER_CHECK)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    try:
      checks = [pool.submit(run, name) for name in names if name in CHECKS]
      for future in concurrent.futures.as_completed(checks):
        yield future.result()
      yield from map(run, (name for name in names if name not in CHECKS))
    except BaseException:
      stopped.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def parse(argv: Sequence[str], parts: Mapping[str, float]) -> argparse.Namespace:
  """Returns the values of the flags.

  Args:
    argv: arguments of the command.
    parts: the existing parts.
  Raises:
    ConfigError: a part does not exist, or the time is not above 0.
  """
  parser = cli.Parser("python -m benchmarks.device", description=__doc__, allow_abbrev=False,
                      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parts", default=",".join(parts), metavar="PART,PART",
                      help=f"parts to run, in this order; default: {','.join(parts)}")
  parser.add_argument("--minutes", type=float, default=25,
                      help="time for all parts together; default: 25")
  parser.add_argument("--rehearse", action="store_true",
                      help="small sizes, on the CPU; predictions are those for an H100")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="JSON file to write")
  arguments = parser.parse_args(argv)
  arguments.parts = arguments.parts.split(",")
  if wrong := [name for name in arguments.parts if name not in parts]:
    raise ConfigError(f"--parts={','.join(arguments.parts)}: there is no part {wrong[0]!r}. "
                      f"Choose among {', '.join(parts)}")
  if not arguments.minutes > 0:
    raise ConfigError(f"--minutes={arguments.minutes:g}: must be above 0")
  return arguments


# ------------------------------------------------------------------ parts


def run_part(module: str, name: str, limit: float, rehearse: bool,
             stopped: threading.Event) -> Outcome:
  """Runs a part in a process of its own, which is killed with all its children at the limit.

  Args:
    module: module to run.
    name: name of the part.
    limit: seconds.
    rehearse: whether it runs on the CPU with small sizes.
    stopped: if it is set, the part is stopped too.
  """
  if limit < LEAST_SECONDS:
    return Outcome(0.0, [], "not started: no time left")
  # Otherwise the last line of an error would be about filtered tracebacks.
  environment = os.environ | {"JAX_TRACEBACK_FILTERING": "off"}
  environment |= {"JAX_PLATFORMS": "cpu"} if rehearse else {}
  if name in CHECKS:  # They share the memory.
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    rows, log = pathlib.Path(folder, "rows"), pathlib.Path(folder, "log")
    command = [sys.executable, "-m", module, name, str(rows)] + ["--rehearse"] * rehearse
    with log.open("w") as stream:
      process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment,
                                 start_new_session=True)
    try:
      code = wait(process, limit, stopped)
      error = (f"stopped after {time.monotonic() - start:.0f} s: {last_line(log)}" if code is None
               else f"exit code {code}: {last_line(log)}" if code else "")
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    return Outcome(time.monotonic() - start, read_rows(rows), error)


def wait(process: subprocess.Popen, limit: float, stopped: threading.Event) -> int | None:
  """Returns the exit code of a process; None if it takes too long or the benchmark is stopped.

  Args:
    process: the process.
    limit: seconds.
    stopped: set when the benchmark is stopped.
  """
  end = time.monotonic() + limit
  while not stopped.is_set() and (left := end - time.monotonic()) > 0:
    with contextlib.suppress(subprocess.TimeoutExpired):
      return process.wait(min(left, 1.0))
  return None


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows that a part has written; the last line may be incomplete."""
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return rows


def last_line(log: pathlib.Path) -> str:
  """Returns the last line of a log with content, cut to 200 characters."""
  lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
  return lines[-1][:200] if lines else "it said nothing"


# ---------------------------------------------------------------- results


def show(name: str, outcome: Outcome) -> str:
  """Returns the lines of a part.

  Args:
    name: name of the part.
    outcome: its result.
  """
  lines = [f"{name} ({outcome.seconds:.0f} s)"]
  width = max((len(row["what"]) for row in outcome.rows), default=0)
  for row in outcome.rows:
    verdict = {None: "", True: "  good", False: "  WRONG"}[row["ok"]]
    beside = f"  {row['beside']}" if row["beside"] else ""
    number = row["value"] if isinstance(row["value"], str) else f"{row['value']:.4g}"
    lines.append(f"  {row['what']:{width}}  {number:>10} {row['unit']}{beside}{verdict}".rstrip())
  return "\n".join([*lines, f"  FAILED: {outcome.error}"] if outcome.error else lines)


def to_json(argv: Sequence[str], rehearse: bool, outcomes: Mapping[str, Outcome]) -> str:
  """Returns the results as JSON, with the command, the machine and the versions of packages.

  Args:
    argv: arguments of the command.
    rehearse: whether it was a rehearsal.
    outcomes: results by part.
  """
  return json.dumps({
      "command": shlex.join(["python", "-m", "benchmarks.device", *argv]), "rehearsal": rehearse,
      "machine": side_by_side.machine(), "versions": dict(side_by_side.versions()),
      "parts": {name: {**outcome._asdict(), "good": outcome.is_good}
                for name, outcome in outcomes.items()}}, indent=2)


def write(path: pathlib.Path, text: str) -> None:
  """Writes a file so that it is complete at any moment."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(f"{path.name}.new")
  new.write_text(f"{text}\n")
  new.replace(path)


if __name__ == "__main__":
  sys.exit(main())
