"""bertgpt.devices.peers: processes of a run agree before they begin, and end together."""

import os
import pathlib
import subprocess
import sys

import program
import pytest

from bertgpt.devices import peers
from bertgpt.errors import exit_code

PRELUDE = """
import errno, os, sys, threading, time
from bertgpt import errors
from bertgpt.devices import peers, process
index = int(sys.argv[2])
process.start_distributed(f"127.0.0.1:{sys.argv[1]},{sys.argv[3]},{index}", 200)
end = lambda code: (sys.stdout.flush(), os._exit(code))
try:
  with peers.end_together():
    BODY
except Exception as e:
  print("ERROR", e, flush=True)
  end(errors.exit_code(e))
print("DONE", flush=True)  # JAX's exit waits for the others: an end at once would end them too.
"""


def run_together(body, count=2):
  """Runs code in processes of one run, and returns (exit code, output) of each."""
  port = program.free_port()
  code = PRELUDE.replace("BODY", body.strip().replace("\n", "\n    "))
  processes = [subprocess.Popen(
      [sys.executable, "-c", code, str(port), str(i), str(count)], text=True,
      cwd=pathlib.Path(peers.__file__).parents[2], env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(count)]
  try:
    outs = [process.communicate(timeout=program.TIMEOUT_S)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, out) for process, out in zip(processes, outs, strict=True)]


def test_processes_that_agree_go_on():
  for code, out in run_together("""
peers.check_agreement({"rate": 0.1, "steps": (1, 2)})
peers.check_agreement({})
peers.wait_for_all("end")"""):
    assert code == 0 and "DONE" in out, out


def test_every_difference_is_named_in_every_process():
  for code, out in run_together("""
values = {"rate": (0.1, 0.2, 0.1)[index], "same": 1, "steps": [1]}
if index == 2: values["more"] = values.pop("steps")
peers.check_agreement(values)""", count=3):
    assert code == 2, out
    lines = [line.strip() for line in out.splitlines() if " in process 0, " in line]
    assert lines == ["rate: 0.1 in process 0, 0.2 in process 1", "more: absent in process 0, [1] "
                     "in process 2", "steps: [1] in process 0, absent in process 2"]


def test_other_versions_are_a_difference():
  for code, out in run_together("""
versions = peers._versions()
peers._versions = lambda: versions | ({"version of jax": "0.1"} if index else {})
peers.check_agreement({})"""):
    assert code == 2 and "version of jax: '0." in out and "'0.1' in process 1" in out


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_all_processes_with_its_code(failing):
  """The other processes wait in a barrier, which they would leave only after 20 minutes."""
  results = run_together(f"""
if index == {failing}: raise errors.StorageError("the disk is full")
peers.wait_for_all("something")""", count=3)
  assert [code for code, _ in results] == [74] * 3, results
  for i, (_, out) in enumerate(results):
    assert ("ERROR the disk is full" if i == failing else
            f"process {failing} ended with exit code 74 (the disk is full)") in out


def test_a_bug_in_one_process_ends_all_with_1():
  results = run_together("""
if index: raise ValueError("a bug")
peers.wait_for_all("something")""")
  assert [code for code, _ in results] == [1, 1], results
  assert "process 1 ended with exit code 1 (a bug)" in results[0][1]


def test_who_loses_a_peer_ends_with_the_code_of_the_cause():
  """Process 0 notices the closed connection before it has looked for an announcement."""
  results = run_together("""
peers.NOTICE_S = 1000
if index: raise errors.DataError("a shard is damaged")
while not peers._find_end(peers._open_store()): time.sleep(0.01)
raise errors.PeerError("Gloo: connection closed")""")
  assert [code for code, _ in results] == [65, 65], results
  assert "ERROR process 1 ended with exit code 65 (a shard is damaged)" in results[0][1]


@pytest.mark.parametrize("error, code", [
    (OSError(28, "No space left on device"), 74), (OSError(2, "No such file"), 1),
    (BrokenPipeError(), 74), (KeyboardInterrupt(), 130), (ValueError(), 1)])
def test_exit_codes_of_other_errors(error, code):
  assert exit_code(error) == code


def test_a_single_process_agrees_with_itself():
  with peers.end_together():
    peers.check_agreement({"a": object()})
    peers.wait_for_all("end")
