"""A peer, a reader or a worker of prepare hangs, in separate processes: nobody waits long.

The limits are far above the time of a step or a chunk on a busy machine.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from disturbances import half_written, newest_step, signal_to, stop_until_others_end, worker_of
from program import ROOT, children_of, fingerprints, finish, wait_for

LIMITS = ("--config.system.hang_timeout_minutes=1", "--config.system.compile_timeout_minutes=5")
HEARTBEATS_S = 100  # Seconds after which JAX gives up on a silent process.


def spawned(pid):
  """Returns the ids of the workers that Python has spawned for a process."""
  found = []
  for child in children_of(pid):
    try:
      if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
        found.append(child)
    except OSError:
      pass
  return found


def line_of(result):
  """Returns the one line about an error. Python's own process for shared memory may print later."""
  (line,) = [line for line in result.stderr.splitlines() if line.startswith("bertgpt")]
  return line


def assert_timed_out(result):
  assert result.returncode == 1, result.stderr
  assert line_of(result).startswith("bertgpt: Timeout: nothing was done for")
  assert "most recent call first" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_readers_that_are_stopped_or_killed_end_the_run(program, finished_run, tmp_path, number):
  path, arguments = tmp_path / "run", (*LIMITS, "--config.data.reader_workers=2")
  process = program.start(path, *arguments)
  wait_for(lambda: newest_step(path) >= 10, process)
  readers = spawned(process.pid)
  assert readers, finish(process).stderr
  for reader in readers:
    signal_to(reader, number)
  result = finish(process)  # Returns when the readers, which have the same output, are gone too.
  if number == signal.SIGSTOP:
    assert_timed_out(result)
  else:
    assert result.returncode == 137, result.stderr
    assert "a reader process ended unexpectedly" in line_of(result)
  assert program.train(path, *arguments).returncode == 0
  assert fingerprints(path) == fingerprints(finished_run)
  assert not half_written(path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_workers_of_prepare_that_are_stopped_or_killed_end_it(recipe, tmp_path, number):
  out = tmp_path / "out" / "corpus"

  def prepare():
    return subprocess.Popen(
        [sys.executable, "-m", "bertgpt", "prepare", f"--config={recipe}", f"--out={out}",
         "--config.data.prepare_workers=2", *LIMITS], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})

  process = prepare()
  wait_for(lambda: spawned(process.pid), process)
  (worker, *_) = spawned(process.pid)  # The first one gets the first chunk.
  signal_to(worker, number)
  result = finish(process)  # Returns when the workers, which have the same output, are gone too.
  if number == signal.SIGSTOP:
    assert_timed_out(result)
  else:
    assert result.returncode == 137, result.stderr
    assert "a worker process of prepare died" in line_of(result)
  assert not out.exists()
  result = finish(prepare())
  assert result.returncode == 0, result.stderr
  assert sorted(path.name for path in out.parent.iterdir()) == [".corpus.lock", "corpus"]


@pytest.mark.slow
def test_a_process_that_is_alive_but_stuck_ends_all(program, finished_run, tmp_path):
  path = tmp_path / "run"
  results = program.train_together(path, 2, *LIMITS, hangs_at=25, signal_to=1)
  assert_timed_out(results[1])
  # The other process waits in a collective for the same time, or until it is told of the end.
  assert results[0].returncode == 1, results[0].stderr
  assert newest_step(path) == 20
  assert [result.returncode for result in program.train_together(path, 2)] == [0, 0]
  assert not half_written(path)


@pytest.mark.slow
def test_a_stopped_peer_is_a_lost_one(program, tmp_path):
  path = tmp_path / "run"
  both = program.start_together(path, 2)
  wait_for(lambda: newest_step(path) >= 10, both[0])
  assert worker_of(both[1]) != both[1].pid
  begin = time.monotonic()
  stop_until_others_end(both[1], both)
  seconds = time.monotonic() - begin
  results = [finish(process) for process in both]
  assert [result.returncode for result in results] == [69, 69], results
  # Process 0 waits for a step or, at a barrier, for a save.
  assert re.search("of the run (is gone|did not answer)", results[0].stderr), results[0].stderr
  assert seconds < 2 * HEARTBEATS_S  # The watchdog would take 30 minutes.
