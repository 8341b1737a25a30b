"""Runs the program in separate processes, on a small text."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import small_runs

from bertgpt.runs import checkpoint, metrics_file
from bertgpt.runs import manifest as manifest_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200  # Only a hang takes so long, even on a busy machine.
STEPS = 40

RECIPE = '''
from bertgpt.config import base, phase


def get_config():
  config = base()
  config.data.source = "text:{folder}/text.txt"
  config.data.cache_dir = "{folder}/cache"
  config.data.validation_fraction = 0.2
  config.data.prepare_workers = 1
  config.tokenizer.kind = "wordpiece"
  config.tokenizer.vocab_size = 90
  config.model.update(num_layers=2, width=32, num_heads=4, mlp_dim=64, max_positions=32,
                      dropout=0.1, attention_dropout=0.1, dtype="float32")
  config.objective.mask_prob = 0.25
  config.phases = (phase(steps={steps}, seq_len=32, batch_size=16, learning_rate=1e-3,
                         schedule="constant", warmup_steps=5),)
  config.eval.update(every_steps=20, batch_size=16)
  config.checkpoint.update(every_steps=10, every_minutes=0.0)
  config.log.update(every_steps=1, tensorboard=False)
  config.system.compilation_cache = "{folder}/xla"
  return config
'''


@dataclasses.dataclass(frozen=True)
class Program:
  """`bertgpt` with a recipe, a text and a compilation cache in `folder`."""

  folder: pathlib.Path

  def start(self, workdir, *arguments, devices=1, signal_at=None, signal_in_evaluation=None,
            hangs_at=None, slow_s=0.0, cwd=None) -> subprocess.Popen:
    """Starts `bertgpt train`.

    Args:
      workdir: workdir of the run.
      arguments: further flags of `bertgpt train`.
      devices: CPU devices of the process.
      signal_at: (step, signal that the process gets when the step has been started).
      signal_in_evaluation: (batch, signal that the process gets when an evaluation reads it,
        seconds per batch from then on).
      hangs_at: step, counted from 0, whose batch the process never gets.
      slow_s: seconds that the process needs between two steps.
      cwd: current folder of the process.
    """
    env = os.environ | self.variables(workdir, devices)
    if slow_s:
      env["WATCH_SLOW"] = str(slow_s)
    for name, at in (("WATCH_SIGNAL", signal_at),
                     ("WATCH_EVALUATION_SIGNAL", signal_in_evaluation)):
      if at:
        env[name] = " ".join(str(value + 0) for value in at)
    if hangs_at is not None:
      env["WATCH_HANG"] = str(hangs_at)
    return subprocess.Popen(self.command(workdir, *arguments), env=env, text=True, cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  def command(self, workdir, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "helpers" / "watched.py"), "train",
            f"--config={self.folder}/recipe.py", f"--workdir={workdir}", *arguments]

  def variables(self, workdir, devices=1) -> dict[str, str]:
    """Returns the environment variables that `command` needs, with JAX on the CPU."""
    return {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "WATCH_ROWS": str(rows_path(workdir)),
            "WATCH_EVALUATION": str(evaluation_path(workdir))}

  def train(self, workdir, *arguments, **how) -> subprocess.CompletedProcess:
    return finish(self.start(workdir, *arguments, **how))

  def start_together(self, workdir, count, *arguments, signal_to=0, **how):
    """Starts the same command in `count` processes; only one of them gets a signal."""
    port = free_port()
    return [self.start(workdir, f"--distributed=127.0.0.1:{port},{count},{i}", *arguments,
                       **how if i == signal_to else {}) for i in range(count)]

  def train_together(self, workdir, count, *arguments, **how):
    """Runs the same command in `count` processes, and returns their results."""
    return [finish(process) for process in self.start_together(workdir, count, *arguments, **how)]


def make_program(folder: pathlib.Path) -> Program:
  (folder / "recipe.py").write_text(RECIPE.format(folder=folder, steps=STEPS))
  (folder / "text.txt").write_text(small_runs.make_text(120))
  return Program(folder)


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
  """Waits for the process, and fails if it hangs."""
  try:
    out, err = process.communicate(timeout=TIMEOUT_S)
  except subprocess.TimeoutExpired as e:
    process.kill()
    raise AssertionError(f"it hangs:\n{''.join(process.communicate())}") from e
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition, process: subprocess.Popen) -> None:
  """Returns when the condition holds or the process has ended."""
  deadline = time.monotonic() + TIMEOUT_S
  while not condition() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.002)


def wait_for_save(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
  """Returns in the save of a step, or just after it if this process was late."""
  root = workdir / "checkpoints"
  wait_for(lambda: (root / "unfinished" / str(step)).exists() or (root / str(step)).exists(),
           process)


def kill_in_save(process: subprocess.Popen, workdir: pathlib.Path, step: int, delay_s: float):
  """Sends SIGKILL this long after the start of the step's checkpoint."""
  wait_for_save(process, workdir, step)
  time.sleep(delay_s)
  process.send_signal(signal.SIGKILL)
  return finish(process)


def run_python(code: str) -> subprocess.CompletedProcess:
  """Runs code in a Python of its own."""
  return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        timeout=TIMEOUT_S)


def free_port() -> int:
  """Returns a port on which nobody listens.

  It is below those that the system gives to connections and to servers that ask for any port, as
  Gloo does in every test of several processes. One of these would be taken before it is used.
  """
  while True:
    with socket.socket() as probe, contextlib.suppress(OSError):
      probe.bind(("", 15_000 + secrets.randbelow(15_000)))
      return probe.getsockname()[1]


def children_of(pid: int) -> list[int]:
  """Returns the ids of the direct children of a process."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):  # It has ended meanwhile.
      if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
        found.append(int(path.parent.name))
  return found


# ------------------------------------------------------------ what a run leaves


def fingerprints(workdir: pathlib.Path) -> dict[str, tuple]:
  """Returns name, type and hash of each array of parameters and optimizer state, last step."""
  step = checkpoint.committed_steps(workdir)[-1]
  manifest = json.loads((workdir / "checkpoints" / str(step) / manifest_lib.MANIFEST).read_text())
  return manifest["content"]["leaves"]


def curves(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
  """Returns all that is logged except times: tag -> [(step, value), ...]."""
  return {tag: points for tag, points in metrics_file.read_curves(workdir).items()
          if not tag.startswith("perf/")}


def assert_close_losses(found: pathlib.Path, expected: pathlib.Path) -> None:
  found, expected = curves(found), curves(expected)
  for tag in (tag for tag in expected if tag.endswith("loss")):
    np.testing.assert_allclose(found[tag], expected[tag], rtol=0, atol=1e-5, err_msg=tag)


def rows_path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir.with_name(workdir.name + ".rows")


def evaluation_path(workdir: pathlib.Path) -> pathlib.Path:
  """Returns a file to which evaluations add the number of every batch that they read."""
  return workdir.with_name(workdir.name + ".evaluated")


def rows_read(workdir: pathlib.Path) -> dict[int, list[str]]:
  """Returns the hashes of all rows of a run, by step, in the order of the global batch.

  Rows that a resumed run has read again must be the same.
  """
  rows = collections.defaultdict(dict)
  for path in rows_path(workdir).iterdir():
    for line in path.read_text().splitlines():
      read = json.loads(line)
      for i, digest in enumerate(read["rows"], read["first"]):
        assert rows[read["step"]].setdefault(i, digest) == digest
  return {step: [digest for _, digest in sorted(rows[step].items())] for step in sorted(rows)}


def flip_bit(step: pathlib.Path) -> None:
  """Changes one bit in the largest file of a checkpoint."""
  path = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def stopped_step(stderr: str) -> int:
  return int(re.search(r"stopped at step (\d+)", stderr)[1])
