"""Collective bytes and FLOPs per chip on 1 to 1,024 chips of TPU slices.

  python -m benchmarks.scaling --config=configs/bert_base.py --out=scaling.json

The train step of a recipe's phase is compiled for every size, with the same number of rows per
chip. Nothing is run, so no TPU is needed (`make install-plan`). Ideally, with only data
parallelism, the FLOPs per chip are constant, and the collectives carry the gradients once, at most
4 bytes per parameter. In rings over n chips, each sends 2 (n - 1) / n of that, counted over the
networks in and between slices. Config fields are overridden as in `bertgpt`, for example
--config.mesh.fsdp=4. Sizes that are too small for the mesh are left out.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks import side_by_side
from benchmarks.side_by_side import Row, spread
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError
from bertgpt.planning import aot, topologies, vocabulary_size

FLAT = ("1x1", "2x4", "4x4", "8x8", "16x16", "16x16:2", "16x16:4")
CUBIC = ("1x1x1", "2x2x2", "2x2x4", "4x4x4", "4x8x8", "4x8x8:2", "4x8x8:4")
SLICES = {"v5e": FLAT, "v6e": FLAT, "v5p": CUBIC, "v4": CUBIC}
FEW = 8  # From this number of chips on, what each of them sends hardly grows.


def flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this benchmark."""
  parser.add_argument("--kind", default="v5e", choices=SLICES, help="kind of TPU; default: v5e")
  parser.add_argument("--shapes", default="",
                      help="slices to compile for, such as 2x4,16x16:4; default: seven sizes up to "
                           "1,024 chips")
  parser.add_argument("--phase", type=int, default=0, help="phase of the recipe; default: 0")
  parser.add_argument("--rows_per_chip", type=int, default=16,
                      help="rows of a micro-batch per chip; default: 16")


def measure(arguments: argparse.Namespace) -> side_by_side.Result:
  """Compiles the step for every slice and compares the programs."""
  config = side_by_side.read_config(arguments)
  config = vocabulary_size.find(config).set_in(config)
  if not 0 <= arguments.phase < len(config.phases):
    raise ConfigError(f"--phase={arguments.phase}: the config has phases 0 to "
                      f"{len(config.phases) - 1}")
  if arguments.rows_per_chip < 1:
    raise ConfigError(f"--rows_per_chip={arguments.rows_per_chip}: must be at least 1")
  slices, shapes = {}, arguments.shapes.split(",") if arguments.shapes else SLICES[arguments.kind]
  for shape in shapes:
    name = f"{arguments.kind}:{shape}"
    step = compile_for(config, name, arguments.phase, arguments.rows_per_chip)
    if step is not None:
      slices[name] = step
  if not slices:
    raise ConfigError("mesh: fits none of the slices "
                      f"{', '.join(shapes)}. Lower mesh.fsdp or mesh.tensor")
  parameters = parameter_bytes(config, next(iter(slices.values())))
  rows = [row for name, step in slices.items() for row in describe(name, step, parameters)]
  rows += compare(list(slices.values()), parameters)
  return side_by_side.Result(f"compiled for {arguments.kind}", rows)


def compare(steps: Sequence[aot.CompiledStep], parameters: float) -> list[Row]:
  """Returns the rows about all sizes.

  Args:
    steps: steps compiled for different numbers of chips.
    parameters: bytes of all parameters in float32.
  """
  flops = [step.roofline.matmul_flops for step in steps]
  most = max(payload(step) for step in steps) / parameters
  rows = [Row("FLOPs per chip, most over least", spread([max(flops) / min(flops)]),
              asked="<= 1.03"),
          Row("collective bytes over 4 bytes x parameters, most", spread([most]), "x", "<= 1.05")]
  many = [payload(step) for step in sorted(steps, key=count_chips) if count_chips(step) >= FEW]
  if len(many) > 1:
    rows.append(Row(f"payload per chip from {FEW} chips on, most over that of the fewest chips",
                    spread([max(many) / many[0]]), "x", "<= 1.05"))
  return rows


def count_chips(step: aot.CompiledStep) -> int:
  """Returns the number of chips that `compile_for` has compiled a step for."""
  return step.config.eval.batch_size


def sent(step: aot.CompiledStep) -> tuple[float, float]:
  """Returns the bytes that a chip sends per step over the fast and over the slow network."""
  totals = step.roofline.collectives
  return sum(total.fast_bytes for total in totals), sum(total.slow_bytes for total in totals)


def compile_for(config: ConfigDict, name: str, phase_index: int,
                rows_per_chip: int) -> aot.CompiledStep | None:
  """Compiles the step for one slice.

  Args:
    config: config of the recipe.
    name: slice, such as 'v5e:4x4'.
    phase_index: index of the phase.
    rows_per_chip: rows of a micro-batch per chip.
  Returns:
    The compiled step; None if the mesh does not fit the slice.
  """
  topology = topologies.open_topology(name)
  chips = len(topology.devices)
  config = config.copy_and_resolve_references()
  for phase in config.phases:  # All are checked.
    phase.batch_size = rows_per_chip * chips * phase.micro_batches
  config.eval.batch_size = chips
  if config_lib.find_problems(config, chips):
    return None
  config_lib.validate(config, len(topology.devices), topology.platform)
  step = aot.compile_step(aot.lower_step(config, phase_index, topology), topology.platform)
  if step.overflow:
    raise ConfigError(f"--rows_per_chip={rows_per_chip}: the memory of a chip of {name} is too "
                      "small. Lower it")
  return step


def parameter_bytes(config: ConfigDict, step: aot.CompiledStep) -> float:
  """Returns the bytes of all parameters in float32, or slightly more if some are not sharded."""
  return step.state_bytes.parameters * config.mesh.fsdp * config.mesh.tensor


def payload(step: aot.CompiledStep) -> float:
  """Returns the bytes whose sum over all chips would make a chip send as much as the step does.

  A ring over n chips sends 2 (n - 1) / n of what it sums. The compiler may sum within slices first
  and then between them, or scatter a sum and gather it, which sends the same.
  """
  chips = count_chips(step)
  return sum(sent(step)) / (2 * (chips - 1) / chips) if chips > 1 else 0.0


def describe(name: str, step: aot.CompiledStep, parameters: float) -> list[Row]:
  """Returns the rows of one slice.

  Args:
    name: slice, such as 'v5e:4x4'.
    step: step compiled for the slice.
    parameters: bytes of all parameters in float32.
  """
  roof = step.roofline
  fast, slow = sent(step)
  return [Row(f"{name}: {what}", spread([value]), unit) for what, value, unit in (
      ("matmuls per chip", roof.matmul_flops / 1e9, "GFLOP"),
      ("payload of the collectives", payload(step) / 1e6, "MB"),
      ("payload / (4 bytes x parameters)", payload(step) / parameters, "x"),
      ("sent per chip over the fast network", fast / 1e6, "MB"),
      ("sent per chip over the slow network", slow / 1e6, "MB"),
      ("predicted time", roof.seconds * 1e3, "ms"))]


FLAGS = (side_by_side.config_flag("configs/bert_base.py"), flags)

if __name__ == "__main__":
  sys.exit(side_by_side.main("benchmarks.scaling", __doc__, FLAGS, measure))
