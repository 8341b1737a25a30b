"""The real training step, compiled ahead of time for a machine that is not there.

The step of a phase is lowered on abstract arrays and compiled by the real compiler (`topologies`);
what it takes is read from the compiled program (`hlo`, `roofline`). Nothing is run and no data is
read. Layers stay scanned as the config has them: the program compiles in a part of the time, and
the body of a loop is counted as often as it is run.
"""

import concurrent.futures
import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import ConfigDict
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import sharding
from bertgpt.planning import collectives, roofline
from bertgpt.planning.topologies import COMPILER_OPTIONS, Topology
from bertgpt.training import metrics, objectives, steps

COMPILER_THREADS = 2  # A compilation uses one core most of the time, and up to 3 GB.


class Memory(NamedTuple):
  """Bytes of one chip, by what they hold; the sum is what the program takes.

  Attributes:
    batch: inputs, counters, and what the layout of arrays adds to them.
    activations: with gradients and all else that lives within a step.
  """

  parameters: float
  optimizer: float
  batch: float
  activations: float
  code: float

  @property
  def total(self) -> float:
    return sum(self)


class Overflow(NamedTuple):
  """The compiler's answer to a program that does not fit.

  Attributes:
    needed, available: bytes of a chip; 0 where the compiler does not say.
    largest: (bytes as written, operation, shape) of the largest arrays.
  """

  needed: float
  available: float
  largest: list[tuple[str, str, str]]


class Step(NamedTuple):
  """The compiled step of a phase. One of `overflow` and (`memory`, `roofline`) is None.

  Attributes:
    state: (parameters, optimizer) bytes of a chip.
    analytic_flops: useful work of a step, of all chips.
  """

  config: ConfigDict
  phase_index: int
  state: tuple[float, float]
  analytic_flops: float
  memory: Memory | None
  roofline: roofline.Roofline | None
  overflow: Overflow | None

  @property
  def phase(self) -> ConfigDict:
    return self.config.phases[self.phase_index]


class Phase(NamedTuple):
  """What a phase will take, all chips together. Times are predictions, nan if it does not fit."""

  step: Step
  fits: bool
  step_seconds: float
  tokens_per_second: float
  mfu: float
  hours: float
  chip_hours: float


# -------------------------------------------------------------- compiling


def assume_vocabulary(config: ConfigDict) -> ConfigDict:
  """The config with the vocabulary that its tokenizer is to have: no tokenizer is read."""
  config = config.copy_and_resolve_references()
  config.model.vocab_size = config.model.vocab_size or config.tokenizer.vocab_size
  return config


def make_vocabulary(size: int) -> Vocabulary:
  """Special tokens first, as tokenizers trained here have them; the work is the same for any."""
  return Vocabulary(size, mask_id=4, special_ids=(0, 1, 2, 3, 4),
                               continues_word=np.zeros(size, bool))


def abstract_batch(config: ConfigDict, phase: ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """ShapeDtypeStructs of what `data.loader` makes for the phase."""
  rows, length = phase.batch_size, phase.seq_len
  pairs = config_lib.max_sequences(config, length)
  layout = sharding.batch_sharding(mesh, config)
  array = lambda width, dtype=jnp.int32: jax.ShapeDtypeStruct((rows, width), dtype, sharding=layout)
  batch = {name: array(length) for name in ("tokens", "sequence_ids", "positions")}
  if config.objective.name == "causal":
    return batch | {"targets": array(length), "loss_weights": array(length, jnp.float32)}
  batch |= {"segment_ids": array(length)}
  if config.objective.name == "mlm_nsp":
    batch |= {"nsp_positions": array(pairs), "nsp_labels": array(pairs),
              "nsp_weights": array(pairs, jnp.float32)}
  return batch


class Lowered(NamedTuple):
  """A step ready to be compiled."""

  config: ConfigDict
  phase_index: int
  program: jax.stages.Lowered
  network: collectives.Network
  state: tuple[float, float]


def lower_step(config: ConfigDict, phase_index: int, topology: Topology) -> Lowered:
  """The training step of a phase on abstract arrays.

  Raises:
    ConfigError: the mesh does not fit the machine.
  """
  phase = config.phases[phase_index]
  mesh = sharding.make_mesh(config, topology.devices)
  with sharding.use_mesh(mesh, config):
    model = models.make_model(config)
    objective = objectives.make_objective(config, make_vocabulary(config.model.vocab_size))
    state = steps.make_abstract_state(config, mesh, model, objective)
    step = steps.jit_train_step(config, model, objective, phase.micro_batches, state)
    program = step.lower(state, abstract_batch(config, phase, mesh))
  network = collectives.Network(topology.chip, [topology.place(d) for d in mesh.devices.flat],
                             topology.torus, dict(mesh.shape))
  return Lowered(config, phase_index, program, network,
                 (shard_bytes(state.params), shard_bytes(state.opt_state)))


def shard_bytes(tree: Any) -> float:
  """Bytes of a tree of ShapeDtypeStructs on one device."""
  return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
                   for x in jax.tree.leaves(tree)))


def compile_step(lowered: Lowered, platform: str) -> Step:
  """Compiles, and reads from the program what a step takes. Too little memory is an answer."""
  config, phase = lowered.config, lowered.config.phases[lowered.phase_index]
  flops = metrics.flops_per_step(config, phase)
  answer = functools.partial(Step, config, lowered.phase_index, lowered.state, flops)
  try:
    compiled = lowered.program.compile(compiler_options=COMPILER_OPTIONS[platform])
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return answer(None, None, parse_overflow(str(e), sum(lowered.state)))
  return answer(read_memory(compiled.memory_analysis(), lowered.state),
                roofline.analyse(compiled.as_text(), lowered.network,
                                 flops / len(lowered.network.places)), None)


def read_memory(stats, state: tuple[float, float]) -> Memory:
  """Splits the compiler's sums. The new state takes the old one's place."""
  parameters, optimizer = state
  return Memory(parameters, optimizer, stats.argument_size_in_bytes - parameters - optimizer,
                stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
                stats.generated_code_size_in_bytes)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_overflow(message: str, state: float) -> Overflow:
  """Reads libtpu's RESOURCE_EXHAUSTED, of which there are two.

  Args:
    state: bytes of parameters and optimizer, which one of them leaves out.
  """
  used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
  needed = available = 0.0
  if used:
    needed = float(used[1]) * _UNITS[used[2]]
    available = float(used[3]) * _UNITS[used[4]]
  elif used := re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM "
                         r"\(([\d.]+)([KMGT]?)\)", message):
    needed = state + float(used[1]) * _UNITS[used[2]]
    available = float(used[3]) * _UNITS[used[4]]
  largest = re.findall(r'Size: ([\d.]+[KMGT]?)B?\s+(?:Operator: op_name="([^"]*)"[^\n]*\s+)?'
                       r"Shape: (\w+\[[\d,]*\])", message)
  return Overflow(needed, available, largest)


# -------------------------------------------------------------- predicting


def make_plan(config: ConfigDict, topology: Topology, phases: Sequence[int]) -> list[Phase]:
  """Compiles the step of every phase, equal ones once, and predicts what the phases take."""
  config = assume_vocabulary(config)
  programs = {_shape_of(config.phases[i]): i for i in reversed(phases)}
  lowered = [lower_step(config, i, topology) for i in sorted(programs.values())]
  with concurrent.futures.ThreadPoolExecutor(COMPILER_THREADS) as pool:
    steps = list(pool.map(functools.partial(compile_step, platform=topology.platform), lowered))
  by_shape = {_shape_of(step.phase): step for step in steps}
  return [predict(by_shape[_shape_of(config.phases[i])]._replace(phase_index=i), topology)
          for i in phases]


def _shape_of(phase: ConfigDict) -> tuple:
  """What a phase's program depends on, but for its learning rates."""
  return phase.seq_len, phase.batch_size, phase.micro_batches, phase.max_predictions


def predict(step: Step, topology: Topology) -> Phase:
  chips, phase = len(topology.devices), step.phase
  if step.overflow:
    return Phase(step, False, *[math.nan] * 5)
  seconds = step.roofline.seconds
  hours = seconds * phase.steps / 3600
  return Phase(step, step.memory.total <= topology.chip.usable_hbm, seconds,
               phase.batch_size * phase.seq_len / seconds,
               step.analytic_flops / (seconds * chips * topology.chip.peak_flops), hours,
               hours * chips)


def remedies(step: Step, topology: Topology) -> list[str]:
  """Overrides that lower the memory of a chip, what costs least time first."""
  config, i, phase = step.config, step.phase_index, step.phase
  chips = len(topology.devices)
  fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
  found = []
  if sum(step.state) * fsdp > topology.chip.usable_hbm / 8 and fsdp * tensor < chips:
    found.append(f"--config.mesh.fsdp={min(chips // tensor, 8 * fsdp)}")
  rows = phase.batch_size // phase.micro_batches // (chips // tensor)
  if rows % 2 == 0:
    found.append(f"--config.phases[{i}].micro_batches={phase.micro_batches * 2}")
  stronger = {"none": "dots", "dots": "full"}
  if config.model.remat in stronger:
    found.append(f"--config.model.remat={stronger[config.model.remat]}")
  return found or ["more chips, or a kind with more memory"]
