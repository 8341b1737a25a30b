"""A soak: a small run is killed, stopped and damaged at random, again and again, until time is up.

    make soak MINUTES=20 SEED=1 PROCESSES=2

A round is a run of two phases with dropout and micro-batches, disturbed until it has ended. It must
end as the undisturbed run did: the same bits in all parameters and in the optimizer's state, and
every step logged once with the same values. Otherwise the seed and the history are printed, and
the folders of both runs stay. It runs the program of this repository on the CPU.
"""

import argparse
import collections
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import program as program_lib

from bertgpt.runs import checkpoint

ENDINGS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGTERM+SIGKILL", "SIGKILL in a save", "SIGSTOP")
DAMAGES = ("none", "none", "none", "flip", "truncate", "empty", "missing file", "missing manifest",
           "junk", "half a copy")
# What the program may end with after each ending; 0: it was done before.
CODES = {0, 1, 69, 75, 130, 137, 143, -signal.SIGKILL, -signal.SIGTERM}
RECIPE_CHANGES = ("--config.eval.every_steps=15", "--config.log.tensorboard=True",
                  "--config.system.hang_timeout_minutes=2", "--config.phases[0].steps=120")


def damage(kind: str, path: pathlib.Path, rng: random.Random) -> None:
  """Damages the newest checkpoint of a run, or leaves junk beside it."""
  steps, root = checkpoint.committed_steps(path), path / "checkpoints"
  if len(steps) < 2 or kind == "none":  # The only checkpoint must stay good.
    return
  newest = root / str(steps[-1])
  files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
  victim = rng.choice(files)
  if kind == "flip":
    content = bytearray(victim.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    victim.write_bytes(content)
  elif kind == "truncate":
    victim.write_bytes(victim.read_bytes()[:rng.randrange(victim.stat().st_size)])
  elif kind == "empty":
    victim.write_bytes(b"")
  elif kind == "missing file":
    victim.unlink()
  elif kind == "missing manifest":
    (newest / "manifest.json").unlink()
  elif kind == "junk":
    (root / str(steps[-1] + 1000)).mkdir(exist_ok=True)
    (root / str(steps[-1] + 1000) / "junk").write_text("junk")
  elif kind == "half a copy":
    target = root / str(steps[-1] + 1)
    shutil.copytree(newest, target)
    shutil.rmtree(target / "rest")


class Soak:
  """The rounds of one seed."""

  def __init__(self, folder: pathlib.Path, seed: int, processes: int):
    self.program = program_lib.make_program(folder)
    self.folder, self.rng, self.processes = folder, random.Random(seed), processes
    self.counts: collections.Counter = collections.Counter()

  def start(self, path: pathlib.Path) -> list:
    port = program_lib.free_port()
    flags = ([f"--distributed=127.0.0.1:{port},{self.processes},{i}"]
             if self.processes > 1 else [] for i in range(self.processes))
    return [self.program.start(path, *RECIPE_CHANGES, *flag) for flag in flags]

  def disturb(self, started: list, path: pathlib.Path) -> str:
    """Ends one of the processes in a random way at a random time. Returns the way."""
    kind, victim = self.rng.choice(ENDINGS), self.rng.choice(started)
    if kind == "SIGSTOP" and self.processes == 1:
      kind = "SIGKILL"
    newest = max(checkpoint.committed_steps(path), default=0)
    if kind == "SIGKILL in a save":
      wait(victim, lambda: (path / "checkpoints" / "unfinished").exists() and any(
          (path / "checkpoints" / "unfinished").iterdir()))
    elif self.rng.random() < 0.3:
      wait(victim, lambda: False, self.rng.uniform(0, 10))  # While it starts.
    else:
      wait(victim, lambda: max(checkpoint.committed_steps(path), default=0) > newest)
    time.sleep(self.rng.uniform(0, 0.5))
    for name in kind.removesuffix(" in a save").split("+"):
      if victim.poll() is None:
        victim.send_signal(getattr(signal, name))
        time.sleep(self.rng.uniform(0, 0.5))
    return kind

  def round(self, number: int, reference: pathlib.Path, deadline: float) -> None:
    """Does one run with its disturbances, and compares it."""
    path, history = self.folder / f"round-{number}", []
    while True:
      kind = self.rng.choice(DAMAGES)
      damage(kind, path, self.rng)
      started = self.start(path)
      disturbs = time.monotonic() < deadline and len(history) < 12
      ending = self.disturb(started, path) if disturbs else "undisturbed"
      if ending == "SIGSTOP":
        time.sleep(1)
        for process in started:
          process.send_signal(signal.SIGCONT)
      results = [program_lib.finish(process) for process in started]
      codes = [result.returncode for result in results]
      history.append((kind, ending, codes))
      self.counts.update(["starts", ending, *(f"code {code}" for code in codes)])
      self.counts["damages"] += kind != "none"
      bad = set(codes) - CODES or any("Traceback" in result.stderr for result in results)
      if bad or (ending == "undisturbed" and any(codes)):
        fail(history, path, "\n".join(result.stderr[-3000:] for result in results))
      if not any(codes):
        break
    if (program_lib.fingerprints(path) != program_lib.fingerprints(reference)
        or program_lib.curves(path) != program_lib.curves(reference)):
      fail(history, path, f"it differs from {reference}")
    self.counts["rounds, bit-identical"] += 1
    shutil.rmtree(path)


def wait(process, condition, seconds: float = 240.0) -> None:
  """Waits for a condition, the end of a process, or some seconds."""
  deadline = time.monotonic() + seconds
  while process.poll() is None and time.monotonic() < deadline and not condition():
    time.sleep(0.01)


def fail(history: list, path: pathlib.Path, reason: str) -> None:
  lines = [f"  damage: {kind}; ending: {ending}; codes: {codes}" for kind, ending, codes in history]
  sys.exit("\n".join([f"FAILED: {path}", *lines, reason]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=20)
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--processes", type=int, default=1)
  arguments = parser.parse_args()
  print(f"seed {arguments.seed}, {arguments.processes} processes", flush=True)
  folder = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
  soak = Soak(folder, arguments.seed, arguments.processes)
  reference = folder / "reference"
  if any(program_lib.finish(process).returncode for process in soak.start(reference)):
    sys.exit(f"the undisturbed run in {reference} failed")
  deadline, number = time.monotonic() + 60 * arguments.minutes, 0
  while time.monotonic() < deadline:
    soak.round(number, reference, deadline)
    number += 1
    print(", ".join(f"{name}: {count}" for name, count in sorted(soak.counts.items())), flush=True)
  shutil.rmtree(folder)


if __name__ == "__main__":
  main()
