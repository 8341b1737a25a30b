"""Collective bytes and FLOPs of a chip as a TPU slice grows from 1 to 256 chips.

  python -m benchmarks.scaling --config=configs/bert_base.py --out=scaling.json

The training step of a recipe's phase is compiled for every slice, with the same rows a chip;
nothing is run, so no TPU is needed (`make install-plan`). Ideal, with data parallelism alone: the
FLOPs of a chip stay, and the collectives carry the gradients once, at most 4 bytes a parameter.
Config fields are overridden as in `bertgpt`: --config.mesh.fsdp=4 (slices that are too small for
that are left out).
"""

import argparse
import sys

from benchmarks import side_by_side
from benchmarks.side_by_side import Row, spread
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError
from bertgpt.planning import aot, topologies

SLICES = {"v5e": ("1x1", "2x2", "4x4", "8x8", "16x16"),
          "v6e": ("1x1", "2x2", "4x4", "8x8", "16x16"),
          "v5p": ("1x1x1", "2x2x1", "2x2x4", "4x4x4", "4x8x8"),
          "v4": ("1x1x1", "2x2x1", "2x2x4", "4x4x4", "4x8x8")}


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--kind", default="v5e", choices=SLICES, help="of TPU; default: v5e")
  parser.add_argument("--phase", type=int, default=0, help="of the recipe; default: 0")
  parser.add_argument("--rows_per_chip", type=int, default=16, help="of a micro-batch; default: 16")


def measure(arguments: argparse.Namespace) -> side_by_side.Result:
  config = aot.assume_vocabulary(side_by_side.read_config(arguments))
  if not 0 <= arguments.phase < len(config.phases):
    raise ConfigError(f"--phase={arguments.phase}: the config has phases 0 to "
                      f"{len(config.phases) - 1}")
  if arguments.rows_per_chip < 1:
    raise ConfigError(f"--rows_per_chip={arguments.rows_per_chip}: at least 1 is needed")
  slices = {}
  for shape in SLICES[arguments.kind]:
    name = f"{arguments.kind}:{shape}"
    step = compile_for(config, name, arguments.phase, arguments.rows_per_chip)
    if step is not None:
      slices[name] = step
  if not slices:
    raise ConfigError(f"config.mesh: fits none of the slices {', '.join(SLICES[arguments.kind])}")
  parameters = parameter_bytes(config, next(iter(slices.values())))
  rows = [row for name, step in slices.items() for row in describe(name, step, parameters)]
  flops = [step.roofline.matmul_flops for step in slices.values()]
  most = max(payload(step) for step in slices.values()) / parameters
  rows += [Row("FLOPs a chip, most over least", spread([max(flops) / min(flops)]), "x", "<= 1.03"),
           Row("collective bytes over 4 bytes x parameters, most", spread([most]), "x", "<= 1.05")]
  return side_by_side.Result(f"compiled for {arguments.kind}", rows)


def compile_for(config: ConfigDict, name: str, phase_index: int, rows_per_chip: int):
  """The step on one slice. None where the mesh does not fit it."""
  topology = topologies.open_topology(name)
  chips = len(topology.devices)
  config = config.copy_and_resolve_references()
  phase = config.phases[phase_index]
  phase.batch_size = rows_per_chip * chips * phase.micro_batches
  config.eval.batch_size = chips
  if config_lib.find_problems(config, chips):
    return None
  step = aot.compile_step(aot.lower_step(config, phase_index, topology), topology.platform)
  if step.overflow:
    raise ConfigError(f"--rows_per_chip={rows_per_chip}: they do not fit a chip of {name}; "
                      "lower them")
  return step


def parameter_bytes(config: ConfigDict, step) -> float:
  """Bytes of all parameters in float32; a little more, where a mesh leaves small ones whole."""
  return step.state_bytes.parameters * config.mesh.fsdp * config.mesh.tensor


def payload(step) -> float:
  return sum(total.bytes for total in step.roofline.collectives)


def describe(name: str, step, parameters: float) -> list[Row]:
  roof = step.roofline
  sent = sum(total.fast_bytes + total.slow_bytes for total in roof.collectives)
  return [Row(f"{name}: {what}", spread([value]), unit) for what, value, unit in (
      ("matrix products of a chip", roof.matmul_flops / 1e9, "GFLOP"),
      ("payload of the collectives", payload(step) / 1e6, "MB"),
      ("the same over 4 bytes x parameters", payload(step) / parameters, "x"),
      ("sent by a chip", sent / 1e6, "MB"),
      ("predicted time", roof.seconds * 1e3, "ms"))]


FLAGS = (side_by_side.config_flag("configs/bert_base.py"), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.scaling", __doc__, FLAGS, measure))
