"""bertgpt.devices.gather: arrays of several processes."""

import os
import pathlib
import subprocess
import sys

import program as program_lib

from bertgpt.devices import gather

GATHER = """
import sys, types
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from bertgpt import config
from bertgpt.devices import cluster, gather
from bertgpt.training import finished
cluster.start_distributed(f"127.0.0.1:{sys.argv[1]},2,{sys.argv[2]}", 200)
gather.PIECE_BYTES = 100
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
for shape, spec in (((24, 6), P(("a", "b"))), ((24, 6), P("a", "b")),
                    ((5, 8, 6), P(None, "a", "b")), ((40,), P("a")), ((7,), P()), ((), P())):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  array = jax.make_array_from_callback(shape, NamedSharding(mesh, spec), lambda index: x[index])
  np.testing.assert_array_equal(gather.to_host(array), x)
  first = gather.to_first_host(array)
  assert (first is None) == (int(sys.argv[2]) == 1)
  np.testing.assert_array_equal(x if first is None else first, x)
run = types.SimpleNamespace(path=None, config=config.base(), evaluator=types.SimpleNamespace(
    corpus=None), corpus=types.SimpleNamespace(tokenizer=None, identity=""))
run.config.model.vocab_size = 100
kept = finished.make_finished(run, 1, {"a": {"b": array}}, {}).trained.params
assert len(jax.tree.leaves(kept)) == 1 - int(sys.argv[2])
with jax.set_mesh(mesh):
  answers = [gather.start_any(int(sys.argv[2]) in those) for those in ((), (0,), (1,), (0, 1))]
assert list(map(bool, answers)) == [False, True, True, True]
"""  # At the end, JAX waits for the other process.

SEND = """
import sys, time
from bertgpt.devices import cluster, gather, watchdog
index, is_hanging = int(sys.argv[2]), sys.argv[3] == "hanging"
cluster.start_distributed(f"127.0.0.1:{sys.argv[1]},2,{index}", 200)

def work():
  for i in range(4):
    time.sleep(index * 4)
    yield f"{index} {i}", str(i)
    while is_hanging and index:
      time.sleep(1)

watchdog.arm((1 - index) / 6)
found = gather.to_first(work(), "test")
watchdog.disarm()
assert found == ({f"{p} {i}": str(i) for p in range(2) for i in range(4)} if index == 0 else {})
"""


def test_the_first_process_waits_for_pairs_while_they_arrive_but_not_for_a_process_that_hangs():
  """The others need 16 s; the limit of the watchdog is 10 s."""
  assert run_two(SEND, "working") == [0, 0]
  assert run_two(SEND, "hanging", number=1) == [1]


def test_parameters_and_answers_are_gathered_from_two_processes():
  """Parameters come in pieces, and are split in all ways, the first one as a token table is.

  At the end of a run, only process 0 keeps them.
  """
  assert run_two(GATHER) == [0, 0]


def run_two(code, *args, number=2):
  """Runs code in two processes, and returns the exit codes of the first ones."""
  port = program_lib.free_port()
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
  processes = [subprocess.Popen([sys.executable, "-c", code, str(port), str(i), *args], env=env,
                                cwd=pathlib.Path(gather.__file__).parents[2]) for i in range(2)]
  try:
    return [process.wait(program_lib.TIMEOUT_S) for process in processes[:number]]
  finally:
    for process in processes:
      process.kill()
