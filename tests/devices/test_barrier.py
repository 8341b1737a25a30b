"""bertgpt.devices.barrier: no process of a run continues before the others are there."""

import socket

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from one_run import run_together


def test_who_does_not_reach_a_point_is_named_with_its_host():
  results = run_together("""
barrier.wait_for_all("the begin")
if index == 1: time.sleep(1000)
barrier.wait_for_all("the middle", 2, "Look at its output")""")
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
barrier.wait_for_all("the end")""")
  assert [code for code, _ in results] == [75, 75], results


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
barrier.wait_for_all("the begin")
with cluster.name_lost_peer():
  IN_BETWEEN
  print("SUM", float(program(x)) / jax.device_count(), flush=True)
barrier.wait_for_all("the end")"""


@pytest.mark.slow
def test_a_process_that_compiles_for_longer_is_waited_for():
  """Otherwise the first collective of CPUs gives up after 30 s, see the next test."""
  results = run_together(COMPILE.replace("IN_BETWEEN", 'barrier.compile_together("the sum", '
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
