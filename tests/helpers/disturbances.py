"""Ways to end, stop and damage a run of `program`, for the soak and for tests of faults."""

import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from program import children_of, evaluation_path, wait_for

from bertgpt.runs import checkpoint

MOMENTS = ("at the start", "in training", "in training", "in a save", "in an evaluation")
DAMAGES = ("none", "none", "none", "flip", "truncate", "empty", "missing file", "missing manifest",
           "junk", "half a copy")
MAX_START_S = 12.0  # Imports, the lock, the corpus, reading the checkpoint and some compilation.
FULL_BYTES = 20_000  # Less than the largest file of a checkpoint.


# ------------------------------------------------------------------- moments


def wait_for_moment(moment: str, process: subprocess.Popen, path: pathlib.Path,
                    rng: random.Random) -> None:
  """Waits for a moment (`MOMENTS`) in the life of a run, or for the end of the process."""
  if moment == "at the start":
    deadline = time.monotonic() + rng.uniform(0, MAX_START_S)
    wait_for(lambda: time.monotonic() > deadline, process)
  elif moment == "in training":
    newest = newest_step(path)
    wait_for(lambda: newest_step(path) > newest, process)
    time.sleep(rng.uniform(0, 0.5))
  elif moment == "in a save":
    unfinished = path / "checkpoints" / "unfinished"
    wait_for(lambda: any(name.name.isdecimal() for name in list_folder(unfinished)), process)
    time.sleep(rng.uniform(0, 0.05))
  elif moment == "in an evaluation":
    before = size_of(evaluation_path(path))
    wait_for(lambda: size_of(evaluation_path(path)) > before, process)


def newest_step(path: pathlib.Path) -> int:
  return max(checkpoint.find_steps(path / "checkpoints"), default=0)


def list_folder(path: pathlib.Path) -> list[pathlib.Path]:
  return list(path.iterdir()) if path.is_dir() else []


def size_of(path: pathlib.Path) -> int:
  return path.stat().st_size if path.exists() else 0


# ------------------------------------------------------------------- endings


def worker_of(process: subprocess.Popen) -> int:
  """Returns the id of the process that trains: with several, a child of the one started."""
  if any("--distributed=" in str(argument) for argument in process.args):
    return next(iter(children_of(process.pid)), process.pid)
  return process.pid


def send(names: Sequence[str], process: subprocess.Popen, rng: random.Random) -> None:
  """Sends signals, with a random time between them, to a process or to its worker."""
  target = rng.choice([process.pid, worker_of(process)])
  for name in names:
    if process.poll() is None:
      signal_to(target, number_of(name))
      time.sleep(rng.uniform(0, 0.5))


def fill_disk(process: subprocess.Popen) -> None:
  """Makes the process unable to write larger files from now on."""
  try:
    resource.prlimit(worker_of(process), resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))
  except ProcessLookupError:  # It has ended.
    pass


def stop_until_others_end(process: subprocess.Popen, all_of_run: Sequence[subprocess.Popen]
                          ) -> None:
  """Stops the worker of a process of several, which stays alive, until all others have ended."""
  target = worker_of(process)
  signal_to(target, signal.SIGSTOP)
  for other in all_of_run:
    if other is not process:
      wait_for(lambda: False, other)
  signal_to(target, signal.SIGCONT)


def pause(process: subprocess.Popen, seconds: float) -> None:
  """Stops the worker of a process for some seconds."""
  target = worker_of(process)
  signal_to(target, signal.SIGSTOP)
  time.sleep(seconds)
  signal_to(target, signal.SIGCONT)


def number_of(name: str) -> int:
  """Returns the number of a signal, such as 'SIGKILL'."""
  return getattr(signal, name)


def signal_to(pid: int, number: int) -> None:
  try:
    os.kill(pid, number)
  except ProcessLookupError:  # It has ended.
    pass


# ------------------------------------------------------------------- damages


def damage(kind: str, path: pathlib.Path, rng: random.Random) -> bool:
  """Damages a run's newest checkpoint (`DAMAGES`), or leaves junk next to it.

  Returns whether it did.
  """
  steps, root = checkpoint.committed_steps(path), path / "checkpoints"
  if len(steps) < 2 or kind == "none":  # The only checkpoint must stay good.
    return False
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
  return True


def half_written(path: pathlib.Path) -> list[str]:
  """Returns the temporary files that a finished run has left."""
  return sorted(str(p.relative_to(path)) for p in [
      *path.rglob("*.unfinished-*"), *list_folder(path / "checkpoints" / "unfinished")])
