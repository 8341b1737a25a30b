"""A tiny training that several processes do together, with few imports.

    python together.py PORT NUM_PROCESSES PROCESS_ID FSDP TENSOR     prints the losses as JSON
"""

import json
import os
import sys

STEPS = 3


def train(mesh: tuple[int, int, int]) -> list[float]:
  """Returns the losses of some steps on a mesh over the devices of all processes."""
  import tiny

  from bertgpt.devices import barrier, sharding
  from bertgpt.training import steps
  config, losses = tiny.make_config(mesh=mesh, num_layers=1), []
  with tiny.Setup(config) as setup:
    state, step = steps.make_state(setup.training, setup.abstract), setup.step()
    rows = sharding.local_rows(sharding.batch_sharding(setup.mesh, config), tiny.ROWS)
    for seed in range(STEPS):
      batch = setup.put({name: x[rows] for name, x in tiny.make_batch(config, seed).items()},
                        tiny.ROWS)
      if not losses:
        barrier.compile_together("the step", config.system, step, state, batch)
      state, sums = step(state, batch)
      losses.append(float(sums["loss"][0]))
  return losses


if __name__ == "__main__":
  from bertgpt.devices import cluster
  port, count, index, fsdp, tensor = map(int, sys.argv[1:])
  cluster.start_distributed(f"127.0.0.1:{port},{count},{index}", 600)
  print(json.dumps(train((count // (fsdp * tensor), fsdp, tensor))), flush=True)
  os._exit(0)  # At a normal exit, the processes would wait for each other.
