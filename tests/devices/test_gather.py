"""bertgpt.devices.gather: arrays of several processes."""

import os
import pathlib
import subprocess
import sys

import program as program_lib

from bertgpt.devices import gather

GATHER = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from bertgpt.devices import cluster, gather
cluster.start_distributed(f"127.0.0.1:{sys.argv[1]},2,{sys.argv[2]}", 200)
gather.PIECE_BYTES = 100
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
for shape, spec in (((24, 6), P(("a", "b"))), ((24, 6), P("a", "b")),
                    ((5, 8, 6), P(None, "a", "b")), ((40,), P("a")), ((7,), P()), ((), P())):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  np.testing.assert_array_equal(gather.to_host(jax.make_array_from_callback(
      shape, NamedSharding(mesh, spec), lambda index: x[index])), x)
with jax.set_mesh(mesh):
  answers = [gather.start_any(int(sys.argv[2]) in those) for those in ((), (0,), (1,), (0, 1))]
assert list(map(bool, answers)) == [False, True, True, True]
"""  # At the end, JAX waits for the other process.


def test_parameters_and_answers_are_gathered_from_two_processes():
  """Parameters come in pieces, and are split in all ways, the first one as a token table is."""
  port = program_lib.free_port()
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
  processes = [subprocess.Popen([sys.executable, "-c", GATHER, str(port), str(i)], env=env,
                                cwd=pathlib.Path(gather.__file__).parents[2]) for i in range(2)]
  try:
    assert [process.wait(program_lib.TIMEOUT_S) for process in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
