"""If one of two processes fails, both end within seconds, with the same reason.

Otherwise, they would wait for each other for five minutes or more, and the reason would be lost.
"""

import pathlib
import resource
import signal
import time

import program as program_lib
import pytest
from program import children_of, finish, wait_for, wait_for_save

from bertgpt.runs import checkpoint, workdir

# Without detection, processes wait 300 s. One that is killed while the others wait for it at a
# barrier of a save is missed by its heartbeats, after 100 s; busy machines need some seconds more.
SOON_S = 200


def start_two(program, path, differing=((), ()), **how):
  port = program_lib.free_port()
  return [program.start(path, f"--distributed=127.0.0.1:{port},2,{i}", *differing[i], **how)
          for i in range(2)]


def test_processes_with_different_configs_are_refused_before_anything_is_made(program, tmp_path):
  path = tmp_path / "run"
  results = list(map(finish, start_two(program, path, (
      (), ("--config.phases[0].learning_rate=1e-1", "--allow_change=seed")))))
  for result in results:
    assert result.returncode == 2, result.stderr
    assert "phases[0].learning_rate: 0.001 in process 0, 0.1 in process 1" in result.stderr
    assert "--allow_change: [] in process 0, ['seed'] in process 1" in result.stderr
  assert not path.exists()


def test_a_locked_workdir_ends_both_with_2(program, tmp_path):
  path = tmp_path / "run"
  path.mkdir()
  with workdir.lock(path):
    both = start_two(program, path)
    results = [finish(both[0])]
    begin = time.monotonic()
    results.append(finish(both[1]))
  assert time.monotonic() - begin < SOON_S
  assert [result.returncode for result in results] == [2, 2], results
  assert "is in use by" in results[0].stderr and "is in use by" in results[1].stderr


@pytest.mark.slow
def test_a_workdir_that_the_hosts_do_not_share_ends_both_with_2(program, tmp_path):
  """As on two hosts, the same path leads to two folders."""
  port, both = program_lib.free_port(), []
  for i in range(2):
    (tmp_path / str(i)).mkdir()
    both.append(program.start(pathlib.Path("/proc/self/cwd/run"),
                              f"--distributed=127.0.0.1:{port},2,{i}", cwd=tmp_path / str(i)))
  results = list(map(finish, both))
  assert [result.returncode for result in results] == [2, 2], results
  assert "is not the folder of process 0" in results[1].stderr
  assert "is not the folder of process 0" in results[0].stderr
  for i in range(2):  # Nothing of a run; process 0 ended while it waited.
    assert {path.name for path in (tmp_path / str(i) / "run").iterdir()} <= {".lock", ".shared"}


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_cannot_write_ends_both_with_74(program, tmp_path, failing):
  path = tmp_path / "run"
  both = start_two(program, path)
  wait_for(lambda: checkpoint.committed_steps(path), both[0])
  for child in children_of(both[failing].pid):
    resource.prlimit(child, resource.RLIMIT_FSIZE, (20_000, 20_000))
  results = [finish(both[failing])]
  begin = time.monotonic()
  results.append(finish(both[1 - failing]))
  assert time.monotonic() - begin < SOON_S
  assert [result.returncode for result in results] == [74, 74], results
  assert "could not be saved (File too large)" in results[0].stderr
  assert f"process {failing} ended with exit code 74" in results[1].stderr


@pytest.mark.slow
def test_a_peer_killed_in_a_save_is_a_lost_peer(program, tmp_path):
  path = tmp_path / "run"
  both = start_two(program, path)
  wait_for_save(both[1], path, 20)
  both[1].send_signal(signal.SIGKILL)
  finish(both[1])
  begin = time.monotonic()
  result = finish(both[0])
  assert time.monotonic() - begin < SOON_S
  assert result.returncode == 69, result.stderr
  assert "could not be saved" not in result.stderr
