"""Collective bytes and FLOPs of a chip as a TPU slice grows from 1 to 256 chips.

  python benchmarks/scaling.py --config configs/bert_base.py --out scaling.json

The training step of a recipe's phase is compiled for every slice, with the same rows a chip;
nothing is run, so no TPU is needed (`pip install -e .[plan]`). Ideal, with data parallelism alone:
the FLOPs of a chip stay, and the collectives carry the gradients once, at most 4 bytes a parameter.
Config fields are overridden as in `bertgpt`: --config.mesh.fsdp=4 (slices that are too small for
that are left out).
"""

import argparse
import json
import pathlib
import sys

import jax

from bertgpt import aot, recipes, topologies
from bertgpt import config as config_lib

SLICES = {"v5e": ("1x1", "2x2", "4x4", "8x8", "16x16"),
          "v6e": ("1x1", "2x2", "4x4", "8x8", "16x16"),
          "v5p": ("1x1x1", "2x2x1", "2x2x4", "4x4x4", "4x8x8"),
          "v4": ("1x1x1", "2x2x1", "2x2x4", "4x4x4", "4x8x8")}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", required=True)
  parser.add_argument("--kind", default="v5e", choices=SLICES)
  parser.add_argument("--phase", type=int, default=0)
  parser.add_argument("--rows_per_chip", type=int, default=16)
  parser.add_argument("--out", type=pathlib.Path, help="JSON file to write")
  arguments, overrides = parser.parse_known_args()
  config = recipes.override(recipes.load(arguments.config), overrides)
  rows = []
  print(f"{'chips':>5} {'GFLOP/chip':>11} {'MB/chip':>9} {'over 4 bytes x parameters':>26} "
        f"{'sent MB/chip':>13} {'predicted ms':>13}  collectives")
  for shape in SLICES[arguments.kind]:
    row = measure(config, f"{arguments.kind}:{shape}", arguments.phase, arguments.rows_per_chip)
    if row is None:
      continue
    rows.append(row)
    print(f"{row['chips']:5} {row['flops_per_chip'] / 1e9:11,.1f} "
          f"{row['collective_bytes'] / 1e6:9,.1f} {row['over_parameters']:26.4f} "
          f"{row['sent_bytes'] / 1e6:13,.1f} {row['predicted_seconds'] * 1e3:13,.1f}  "
          f"{row['kinds']}", flush=True)
  print(f"FLOPs a chip, most over least: "
        f"{max(r['flops_per_chip'] for r in rows) / min(r['flops_per_chip'] for r in rows):.4f}")
  print(f"collective bytes over 4 bytes x parameters, most: "
        f"{max(r['over_parameters'] for r in rows):.4f}")
  if arguments.out:
    arguments.out.write_text(json.dumps({
        "command": " ".join(sys.argv), "jax": jax.__version__, "rows": rows}, indent=2) + "\n")


def measure(config, name: str, phase_index: int, rows_per_chip: int) -> dict | None:
  """One slice. None where the mesh does not fit it."""
  topology = topologies.open_topology(name)
  chips = len(topology.devices)
  config = aot.assume_vocabulary(config)
  phase = config.phases[phase_index]
  phase.batch_size = rows_per_chip * chips * phase.micro_batches
  config.eval.batch_size = chips
  if config_lib.find_problems(config, chips):
    return None
  lowered = aot.lower_step(config, phase_index, topology)
  step = aot.compile_step(lowered, topology.platform)
  if step.overflow:
    sys.exit(f"{name}: {rows_per_chip} rows a chip do not fit; lower --rows_per_chip")
  roof = step.roofline
  payload = sum(row.bytes for row in roof.collectives)
  shards = config.mesh.fsdp * config.mesh.tensor
  return {"topology": name, "chips": chips, "flops_per_chip": roof.matmul_flops,
          "collective_bytes": payload, "over_parameters": payload / (step.state[0] * shards),
          "sent_bytes": sum(row.fast_bytes + row.slow_bytes for row in roof.collectives),
          "kinds": ", ".join(f"{row.kind} over {row.axes} {row.bytes / 1e6:,.1f} MB"
                             for row in roof.collectives[:3]),
          "predicted_seconds": roof.seconds}


if __name__ == "__main__":
  main()
