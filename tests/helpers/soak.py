"""A soak test: small runs are killed, stopped and damaged at random until the time is up.

    make soak MINUTES=20 SEED=1 PROCESSES=2

A round is a run of two phases with dropout and micro-batches, disturbed until it has finished. It
must end like the undisturbed run: parameters and optimizer state are the same bit for bit, every
step is logged once with the same values, and no half-written files are left. Otherwise, the script
prints the seed and the history of the round, and leaves the folders of both runs. It runs the
program of this repository on the CPU.

Each attempt ends in a random way (`ENDINGS`) at a random moment (`MOMENTS`). Before it starts, the
newest checkpoint may be damaged (`DAMAGES`). A limit on file sizes stands for a full disk.
"""

import argparse
import collections
import pathlib
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time

import disturbances
import program as program_lib
from disturbances import DAMAGES, MOMENTS

from bertgpt.runs import checkpoint

# Exit codes that processes may have after each ending, besides 0 if they had finished before.
LOST = {69, 137, -signal.SIGKILL}
ENDINGS = {
    "SIGKILL": LOST,
    "SIGTERM": {75},
    "SIGINT": {75},
    "SIGTERM+SIGKILL": LOST | {75, 143, -signal.SIGTERM},
    "full disk": {74},
    "stopped peer": {69},
    "pause": set(),
}
# At the start, a signal may arrive before the program handles it, or before the processes join.
AT_START = {69, 75, 130, 143, -signal.SIGTERM, -signal.SIGINT}
MAX_STARTS = 12  # Per round; the last one is not disturbed.
TWO_PHASES = """
  config.phases[0].steps = 90
  config.phases += (phase(steps=30, seq_len=16, batch_size=32, micro_batches=2,
                          learning_rate=1e-3, schedule="linear", warmup_steps=5),)
  config.eval.every_steps = 15
  config.log.tensorboard = True
  config.system.hang_timeout_minutes = 5.0
  return config
"""


class Soak:
  """All rounds of one seed."""

  def __init__(self, folder: pathlib.Path, seed: int, processes: int):
    self.program = program_lib.make_program(folder)
    recipe = folder / "recipe.py"
    recipe.write_text(recipe.read_text().replace("  return config\n", TWO_PHASES.lstrip("\n")))
    self.folder, self.seed, self.rng = folder, seed, random.Random(seed)
    self.processes = processes
    self.counts: collections.Counter = collections.Counter()
    self.seconds: dict[str, list[float]] = collections.defaultdict(list)

  def start(self, path: pathlib.Path) -> list:
    if self.processes == 1:
      return [self.program.start(path)]
    return self.program.start_together(path, self.processes, "--distributed_timeout=60")

  def disturb(self, started: list, path: pathlib.Path) -> tuple[str, str, float]:
    """Ends the processes in a random way at a random moment. Returns way, moment and seconds."""
    ending, moment = self.rng.choice(list(ENDINGS)), self.rng.choice(MOMENTS)
    if ending == "stopped peer" and self.processes == 1:
      ending = "SIGTERM"
    if ending == "full disk" and moment == "at the start":
      moment = "in training"  # At the start there may be nothing to write.
    victim = self.rng.choice(started)
    disturbances.wait_for_moment(moment, victim, path, self.rng)
    begin = time.monotonic()
    if ending == "full disk":
      disturbances.fill_disk(victim)
    elif ending == "stopped peer":
      disturbances.stop_until_others_end(victim, started)
    elif ending == "pause":
      disturbances.pause(victim, self.rng.uniform(0, 10))
    else:
      disturbances.send(ending.split("+"), victim, self.rng)
    return ending, moment, begin

  def round(self, number: int, reference: pathlib.Path, deadline: float) -> None:
    """Makes one run with disturbances, and compares it with the reference."""
    path, history = self.folder / f"round-{number}", []
    while True:
      kind = self.rng.choice(DAMAGES)
      if not disturbances.damage(kind, path, self.rng):
        kind = "none"
      started = self.start(path)
      disturbs = time.monotonic() < deadline and len(history) < MAX_STARTS
      ending, moment, begin = (self.disturb(started, path) if disturbs
                               else ("undisturbed", "", time.monotonic()))
      results = [program_lib.finish(process) for process in started]
      codes = [result.returncode for result in results]
      if any(codes):
        self.seconds[ending].append(time.monotonic() - begin)
      history.append(f"damage: {kind}; ending: {ending} {moment}; codes: {codes}; "
                     f"{time.monotonic() - begin:.1f} s")
      print(f"round {number}: {history[-1]}", flush=True)
      self.counts.update(["starts", f"{ending} {moment}", *(f"code {code}" for code in codes)])
      self.counts[f"damage: {kind}"] += kind != "none"
      if not self.may_end(ending, moment, results):
        self.fail(history, path, "\n".join(result.stderr[-3000:] for result in results))
      if not any(codes):
        break
    if program_lib.fingerprints(path) != program_lib.fingerprints(reference):
      self.fail(history, path, f"its parameters or its optimizer differ from {reference}")
    # If the disk was full at the very end, some points of the curves are missing.
    if ending != "full disk" and program_lib.curves(path) != program_lib.curves(reference):
      self.fail(history, path, f"its curves differ from {reference}")
    if left := disturbances.half_written(path):
      self.fail(history, path, f"it leaves {left}")
    self.counts["rounds, bit-identical"] += 1
    shutil.rmtree(path)

  def may_end(self, ending: str, moment: str, results: list) -> bool:
    """Returns whether the processes may end with these results."""
    allowed = {0} | ENDINGS.get(ending, set())
    if moment == "at the start" and ending not in ("pause", "undisturbed"):
      allowed |= AT_START
    # Python itself prints a traceback if Ctrl-C arrives while it starts.
    return all(r.returncode in allowed and ("Traceback" not in r.stderr
                                            or r.returncode in (130, -signal.SIGINT))
               for r in results)

  def fail(self, history: list[str], path: pathlib.Path, reason: str) -> None:
    sys.exit("\n".join([f"FAILED: {path}, seed {self.seed}, {self.processes} processes",
                        *(f"  {line}" for line in history), reason]))

  def report(self) -> str:
    lines = [f"{name}: {count}" for name, count in sorted(self.counts.items()) if count]
    lines += [f"{name}: median {statistics.median(values):.1f} s, longest {max(values):.1f} s to "
              f"the end of all processes" for name, values in sorted(self.seconds.items())]
    return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=20)
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--processes", type=int, default=1)
  arguments = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
  print(f"seed {arguments.seed}, {arguments.processes} processes, {folder}", flush=True)
  soak = Soak(folder, arguments.seed, arguments.processes)
  reference = folder / "reference"
  for result in map(program_lib.finish, soak.start(reference)):
    if result.returncode:
      sys.exit(f"the undisturbed run in {reference} failed:\n{result.stderr[-3000:]}")
  assert len(checkpoint.committed_steps(reference)) > 1
  deadline, number = time.monotonic() + 60 * arguments.minutes, 0
  while time.monotonic() < deadline:
    soak.round(number, reference, deadline)
    number += 1
  print(soak.report(), flush=True)
  shutil.rmtree(folder)


if __name__ == "__main__":
  main()
