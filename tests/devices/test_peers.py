"""bertgpt.devices.peers: processes of a run agree before they begin, and end together."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import program
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bertgpt.devices import peers
from bertgpt.errors import exit_code

PRELUDE = """
import errno, os, sys, threading, time
from bertgpt import errors
from bertgpt.devices import cluster, peers
index = int(sys.argv[2])
cluster.start_distributed(f"127.0.0.1:{sys.argv[1]},{sys.argv[3]},{index}", 200)
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


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_process_that_hangs_ends_all_with_its_code(hanging):
  results = run_together(f"""
from bertgpt.devices import watchdog
peers.wait_for_all("start")
if index == {hanging}:
  watchdog.arm(0.02)
time.sleep(600)""")
  for index, (code, out) in enumerate(results):
    assert code == 1, out
    assert "Timeout: nothing was done for 0.02 minutes" in out
    assert (f"process {hanging} ended with exit code 1 (Timeout" in out) == (index != hanging)


def test_the_first_process_is_that_of_the_devices():
  """TPUs number the hosts by their place in the slice, the coordinator by their own ids."""
  results = run_together("""
import dataclasses, jax
true = peers._open_store
peers._open_store = lambda: dataclasses.replace(true(), index=1 - true().index)
print("HEARD", peers.broadcast_text(f"from {jax.process_index()}"))
board = peers.Board("a", 0.05)
board.post({"x": jax.process_index()})
while jax.process_index() == 0 and len(board.read()) < 2:
  time.sleep(0.05)
print("BOARD", jax.process_index() == 0 and {i: n["x"] for i, n in board.read().items()})
peers._open_store = true
peers.wait_for_all("end")""")
  for code, out in results:
    assert code == 0 and "HEARD from 0" in out, out
  assert "BOARD {0: 0, 1: 1}" in results[0][1] and "BOARD False" in results[1][1]


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


def test_who_does_not_reach_a_point_is_named_with_its_host():
  results = run_together("""
peers.wait_for_all("the begin")
if index == 1: time.sleep(1000)
peers.wait_for_all("the middle", 2, "Look at its output")""")
  assert [code for code, _ in results] == [69] * 2, results
  line = f"process 1 (on {socket.gethostname()}) of the run did not reach the middle within 2 s."
  assert all(line in out for _, out in results), results
  assert any("s. Look at its output" in out for _, out in results), results


def test_a_signal_reaches_a_process_that_waits_for_others():
  results = run_together("""
import signal
def stop(*arguments): raise errors.Preempted("stopped")
if index: time.sleep(1000)
signal.signal(signal.SIGTERM, stop)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
peers.wait_for_all("the end")""")
  assert [code for code, _ in results] == [75, 75], results


def test_processes_that_read_different_checkpoints_end_alike():
  results = run_together("""
import types
from bertgpt.runs import trained
trained.check_same_step("runs/a", types.SimpleNamespace(step=24))
trained.check_same_step("runs/a", types.SimpleNamespace(step=24 + 4 * index))
peers.wait_for_all("the end", 100)""")
  assert [code for code, _ in results] == [74, 74], results
  assert "ERROR runs/a: a checkpoint was saved while the newest one was read" in results[1][1]
  assert "process 0 has step 24, this one 28. Run the same command again" in results[1][1]


def test_process_0_reads_what_the_others_post():
  results = run_together("""
board = peers.Board("test", 0.05)
board.post({"own": 10.0 + index})
while index == 0 and len(board.read()) < 2: time.sleep(0.01)
print(board.read())
peers.wait_for_all("the end")""")
  assert [code for code, _ in results] == [0] * 2, results
  assert "{0: {'own': 10.0}, 1: {'own': 11.0}}" in results[0][1]
  assert "{}" in results[1][1]


COMPILE = """
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from bertgpt.config import base
def total(x):
  time.sleep(40 * index)  # While it is traced, as a compiler would.
  return x.sum()
layout = NamedSharding(jax.make_mesh((jax.device_count(),), ("x",)), PartitionSpec("x"))
x = jax.make_array_from_callback((jax.device_count(),), layout, lambda i: jnp.ones(1))
program = jax.jit(total)
peers.wait_for_all("the begin")
with cluster.name_lost_peer():
  IN_BETWEEN
  print("SUM", float(program(x)) / jax.device_count(), flush=True)
peers.wait_for_all("the end")"""


@pytest.mark.slow
def test_a_process_that_compiles_for_longer_is_waited_for():
  """Otherwise the first collective of CPUs gives up after 30 s, see the next test."""
  results = run_together(COMPILE.replace("IN_BETWEEN", 'peers.compile_together("the sum", '
                                         'base().system, program, x)'))
  assert [code for code, _ in results] == [0, 0], results
  assert all("SUM 1.0" in out for _, out in results)


@pytest.mark.slow
def test_a_collective_that_gives_up_names_the_process_that_is_late():
  """The late process is not gone, and no message says that it is."""
  results = run_together(COMPILE.replace("IN_BETWEEN", "pass"))
  assert [code for code, _ in results] == [69, 69], results
  assert "process 1 of the run did not join a collective within 30 s" in results[0][1]
  assert not any("gone" in out for _, out in results)


def test_a_program_that_was_compiled_before_its_call_is_not_compiled_again():
  """The program donates its state and has a fixed layout, like the train step."""
  layout = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
  program = jax.jit(lambda x, y: (x + y, y.sum()), donate_argnums=0, out_shardings=(layout, None))
  x, y = (jax.device_put(np.arange(8.0), layout) for _ in range(2))
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None)
  program.lower(x, y).compile()
  assert len(compiled) == 1
  for _ in range(2):
    x, _ = program(x, y)
  assert len(compiled) == 1


@pytest.mark.parametrize("error, code", [
    (OSError(28, "No space left on device"), 74), (OSError(2, "No such file"), 1),
    (BrokenPipeError(), 74), (KeyboardInterrupt(), 130), (ValueError(), 1)])
def test_exit_codes_of_other_errors(error, code):
  assert exit_code(error) == code


def test_a_single_process_agrees_with_itself():
  with peers.end_together():
    peers.check_agreement({"a": object()})
    peers.wait_for_all("end")
