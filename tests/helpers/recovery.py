"""Measures how long a run of two processes takes to end after a fault, and then to catch up.

    make recovery REPETITIONS=5

Every repetition starts a small run, waits for its second checkpoint, and makes one process fail.
"end": seconds from the fault until the last process has ended; a stopped process is woken when the
others have ended, and does not count. "back": seconds from the start of the same command until the
run is beyond the step that it had reached. It runs the program of this repository on the CPU.
"""

import argparse
import pathlib
import random
import statistics
import tempfile
import time

import disturbances
import program as program_lib

NEVER_ENDS = "--config.phases[0].steps=100000"
FAULTS = {
    "SIGKILL of process 1": (1, "SIGKILL", 69),
    "SIGKILL of process 0": (0, "SIGKILL", 69),
    "SIGKILL of process 1 in a save": (1, "SIGKILL in a save", 69),
    "process 1 stopped": (1, "SIGSTOP", 69),
    "disk of process 1 full": (1, "full disk", 74),
    "disk of process 0 full": (0, "full disk", 74),
    "SIGTERM to process 1": (1, "SIGTERM", 75),
}


def measure(program: program_lib.Program, path: pathlib.Path, victim: int, kind: str,
            code: int) -> tuple[float, float]:
  """Returns (seconds to the end of the processes, seconds until the run is back)."""
  both = program.start_together(path, 2, NEVER_ENDS)
  program_lib.wait_for(lambda: disturbances.newest_step(path) >= 20, both[0])
  if kind.endswith("in a save"):
    disturbances.wait_for_moment("in a save", both[victim], path, random.Random(0))
  begin = time.monotonic()
  if kind == "full disk":
    disturbances.fill_disk(both[victim])
  elif kind == "SIGSTOP":
    disturbances.stop_until_others_end(both[victim], both)
  else:
    disturbances.signal_to(both[victim].pid, disturbances.number_of(kind.split()[0]))
  end = time.monotonic() - begin if kind == "SIGSTOP" else None
  results = [program_lib.finish(process) for process in both]
  end = end or time.monotonic() - begin
  codes = [result.returncode for result in results]
  if codes[1 - victim] != code:
    raise SystemExit(f"{kind} of process {victim}: codes {codes} instead of {code}\n"
                     + "\n".join(result.stderr[-2000:] for result in results))
  newest = disturbances.newest_step(path)
  begin = time.monotonic()
  both = program.start_together(path, 2, NEVER_ENDS)
  program_lib.wait_for(lambda: disturbances.newest_step(path) > newest, both[0])
  back = time.monotonic() - begin
  for process in both:
    process.kill()
    program_lib.finish(process)
  return end, back


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repetitions", type=int, default=5)
  parser.add_argument("--only", default="", metavar="WORD", help="faults whose name has this word")
  arguments = parser.parse_args()
  print("| fault | repetitions | end, median | end, longest | back, median |\n"
        "|---|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
    program = program_lib.make_program(pathlib.Path(folder))
    measure(program, pathlib.Path(folder, "first"), 1, "SIGTERM", 75)  # Compiles.
    for name, how in FAULTS.items():
      if arguments.only in name:
        found = [measure(program, pathlib.Path(folder, f"{name}-{i}".replace(" ", "-")), *how)
                 for i in range(arguments.repetitions)]
        ends, backs = zip(*found, strict=True)
        print(f"| {name} | {len(found)} | {statistics.median(ends):.1f} s | {max(ends):.1f} s | "
              f"{statistics.median(backs):.1f} s |", flush=True)


if __name__ == "__main__":
  main()
