"""bertgpt.devices.shutdown: processes of a run end together, with the code of the cause."""

import pytest
from one_run import run_together


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_all_processes_with_its_code(failing):
  """The other processes wait in a barrier, which they would leave only after 20 minutes."""
  results = run_together(f"""
if index == {failing}: raise errors.StorageError("the disk is full")
barrier.wait_for_all("something")""", count=3)
  assert [code for code, _ in results] == [74] * 3, results
  for i, (_, out) in enumerate(results):
    assert ("ERROR the disk is full" if i == failing else
            f"process {failing} ended with exit code 74 (the disk is full)") in out


def test_a_bug_in_one_process_ends_all_with_1():
  results = run_together("""
if index: raise ValueError("a bug")
barrier.wait_for_all("something")""")
  assert [code for code, _ in results] == [1, 1], results
  assert "process 1 ended with exit code 1 (a bug)" in results[0][1]


def test_who_loses_a_peer_ends_with_the_code_of_the_cause():
  """Process 0 notices the closed connection before it has looked for an announcement."""
  results = run_together("""
shutdown.NOTICE_S = 1000
if index: raise errors.DataError("a shard is damaged")
while not shutdown._find_end(coordinator.open_store()): time.sleep(0.01)
raise errors.PeerError("Gloo: connection closed")""")
  assert [code for code, _ in results] == [65, 65], results
  assert "ERROR process 1 ended with exit code 65 (a shard is damaged)" in results[0][1]


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_process_that_hangs_ends_all_with_its_code(hanging):
  results = run_together(f"""
from bertgpt.devices import watchdog
barrier.wait_for_all("start")
if index == {hanging}:
  watchdog.arm(0.02)
time.sleep(600)""")
  for index, (code, out) in enumerate(results):
    assert code == 1, out
    assert "Timeout: nothing was done for 0.02 minutes" in out
    assert (f"process {hanging} ended with exit code 1 (Timeout" in out) == (index != hanging)
