"""The real training step, compiled ahead of time for a machine that need not be present.

The step of a phase is lowered on abstract arrays and compiled by the real compiler (`topologies`);
its memory, work and time are read from the compiled program (`hlo`, `roofline`). Nothing runs and
no text is read. Layers stay scanned as in the config, so the program compiles in a fraction of the
time; the body of a loop is counted as many times as it runs.
"""

import concurrent.futures
import contextlib
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bertgpt.config import ConfigDict, families, rematerialization
from bertgpt.config.derived import count_left_out
from bertgpt.config.families.family import num_global_layers
from bertgpt.config.flops import flops_per_step
from bertgpt.data.batches import formats
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import sharding
from bertgpt.errors import ConfigError
from bertgpt.planning import collectives, roofline
from bertgpt.planning.topologies import COMPILER_OPTIONS, Topology
from bertgpt.training import steps

COMPILER_THREADS = 2  # Most of the time, a compilation uses one core, and up to 3 GB.


class StateBytes(NamedTuple):
  """Bytes of the training state on one chip."""

  parameters: float
  optimizer: float


class Memory(NamedTuple):
  """Bytes of one chip, by what they hold.

  Attributes:
    parameters: float32 parameters.
    optimizer: state of the optimizer.
    batch: inputs, counters, what some models carry from step to step, and the padding that the
      layout of arrays adds.
    activations: activations, gradients and everything else that lives within a step.
    code: the program itself.
  """

  parameters: float
  optimizer: float
  batch: float
  activations: float
  code: float

  @property
  def total(self) -> float:
    """Bytes that the program takes."""
    return sum(self)


class Overflow(NamedTuple):
  """The compiler's answer to a program that does not fit.

  Attributes:
    needed: bytes per chip that the program would take; 0 if the compiler does not say.
    available: bytes per chip that it may take; 0 if the compiler does not say.
    largest: (size as written, operation, shape) of the largest arrays.
  """

  needed: float
  available: float
  largest: list[tuple[str, str, str]]


class CompiledStep(NamedTuple):
  """The compiled step of a phase.

  Attributes:
    config: the run's config.
    phase_index: index of the phase whose step this is.
    state_bytes: parameters and optimizer, bytes per chip.
    analytic_flops: result of `flops_per_step`, all chips together.
    memory: bytes per chip; None if the program does not fit.
    roofline: work and predicted time per chip; None if the program does not fit.
    overflow: the compiler's answer if the program does not fit, otherwise None.
  """

  config: ConfigDict
  phase_index: int
  state_bytes: StateBytes
  analytic_flops: float
  memory: Memory | None
  roofline: roofline.Roofline | None
  overflow: Overflow | None

  def useful_flops(self, num_devices: int) -> float:
    """Returns the FLOPs of useful work of a step that fits, all chips together.

    With frozen layers, these are at most what the program computes, see `flops_per_step`.

    Args:
      num_devices: devices of the machine.
    """
    if not self.config.optimizer.freeze:
      return self.analytic_flops
    work = self.roofline
    return min(self.analytic_flops, (work.matmul_flops + work.hidden_flops) * num_devices)

  @property
  def phase(self) -> ConfigDict:
    """The phase whose step this is."""
    return self.config.phases[self.phase_index]


class PhasePlan(NamedTuple):
  """Prediction for a phase, all chips together; all values are nan if the step does not fit.

  Attributes:
    step: the compiled step.
    fits: whether the step fits the memory of a chip.
    step_seconds: time per step.
    tokens_per_second: tokens per second, padding included.
    mfu: model FLOPs utilization, FLOPs of useful work over peak.
    hours: time of the whole phase.
    chip_hours: hours times chips; a chip may be several devices.
  """

  step: CompiledStep
  fits: bool
  step_seconds: float
  tokens_per_second: float
  mfu: float
  hours: float
  chip_hours: float


# -------------------------------------------------------------- compiling


def make_vocabulary(size: int) -> Vocabulary:
  """Returns a vocabulary with the special tokens first, as in tokenizers that are trained here.

  The work of a step is the same for any vocabulary of this size.

  Args:
    size: number of tokens.
  """
  return Vocabulary(size, mask_id=4, special_ids=(0, 1, 2, 3, 4),
                    continues_word=np.zeros(size, bool), ends_word=np.zeros(size, bool))


def abstract_batch(config: ConfigDict, phase: ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """Returns ShapeDtypeStructs of the arrays of a batch of the phase."""
  layout = sharding.batch_sharding(mesh, config)
  return {name: jax.ShapeDtypeStruct((phase.batch_size, *shape), dtype, sharding=layout)
          for name, (shape, dtype) in formats.specs(config, phase).items()}


class LoweredStep(NamedTuple):
  """A step ready to be compiled.

  Attributes:
    config: the run's config.
    phase_index: index of the phase whose step this is.
    program: the lowered step.
    network: the machine as its collectives see it.
    state_bytes: parameters and optimizer, bytes per chip.
  """

  config: ConfigDict
  phase_index: int
  program: jax.stages.Lowered
  network: collectives.Network
  state_bytes: StateBytes


def lower_step(config: ConfigDict, phase_index: int, topology: Topology) -> LoweredStep:
  """Lowers the training step of a phase on abstract arrays.

  Args:
    config: the run's config, validated for the machine, with model.vocab_size set:
      see `vocabulary_size`.
    phase_index: index of the phase.
    topology: the machine to compile for.
  Returns:
    The lowered step.
  Raises:
    ConfigError: parameters would be split over the network between slices.
  """
  phase = config.phases[phase_index]
  mesh = sharding.make_mesh(config, topology.devices)
  with sharding.use_mesh(mesh, config):
    setup = steps.make_setup(config, mesh, make_vocabulary(config.model.vocab_size), phase_index)
    state = steps.make_abstract_state(setup)
    step = steps.jit_train_step(setup, state)
    program = step.lower(state, abstract_batch(config, phase, mesh))
  network = collectives.Network(topology.chip, [topology.place(d) for d in mesh.devices.flat],
                                topology.torus, dict(mesh.shape))
  return LoweredStep(config, phase_index, program, network,
                     StateBytes(shard_bytes(state.params), shard_bytes(state.opt_state)))


def shard_bytes(tree: Any) -> float:
  """Returns the bytes that one device holds of a tree.

  Args:
    tree: ShapeDtypeStructs with shardings.
  """
  return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
                   for x in jax.tree.leaves(tree)))


def compile_step(lowered: LoweredStep, platform: str) -> CompiledStep:
  """Compiles a step and reads its memory and work from the program.

  Args:
    lowered: the step.
    platform: 'tpu' or 'gpu'.
  Returns:
    The compiled step. If the program does not fit, `overflow` is set; this is not an error.
  Raises:
    ConfigError: a kernel does not fit the fast memory of the chip.
    jax.errors.JaxRuntimeError: the compiler fails for a reason other than memory.
  """
  config, phase = lowered.config, lowered.config.phases[lowered.phase_index]
  flops = flops_per_step(config, phase)
  try:
    compiled = lowered.program.compile(compiler_options=COMPILER_OPTIONS[platform])
  except jax.errors.JaxRuntimeError as e:
    if "memory space vmem" in str(e):  # The fast memory of a core, which a kernel fills.
      raise ConfigError(f"model.attention={config.model.attention!r}: a kernel does not fit the "
                        "VMEM of this chip. Set model.attention='xla', or use shorter rows") from e
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return CompiledStep(config, lowered.phase_index, lowered.state_bytes, flops, None, None,
                        parse_overflow(str(e), sum(lowered.state_bytes)))
  # In a loop over layers, a conditional chooses between attention to all keys and to near ones.
  model = config.model
  true_share = num_global_layers(model) / model.num_layers if model.window else None
  # The formula counts a backward pass of frozen layers, which the program lacks: only the forward
  # pass, a third of it, is sure to be there.
  known = flops / 3 if config.optimizer.freeze else flops
  work = roofline.analyze(compiled.as_text(), lowered.network,
                          known / len(lowered.network.places), true_share)
  return CompiledStep(config, lowered.phase_index, lowered.state_bytes, flops,
                      read_memory(compiled.memory_analysis(), lowered.state_bytes), work, None)


def read_memory(stats: Any, state_bytes: StateBytes) -> Memory:
  """Splits the compiler's sums by their content.

  Args:
    stats: `compiled.memory_analysis()`, bytes per chip. The new state takes the old one's place, so
      aliased outputs do not count.
    state_bytes: parameters and optimizer, bytes per chip; the other arguments are the batch.
  Returns:
    Bytes per chip.
  """
  arguments = stats.argument_size_in_bytes - state_bytes.parameters - state_bytes.optimizer
  temporaries = (stats.temp_size_in_bytes + stats.output_size_in_bytes
                 - stats.alias_size_in_bytes)
  return Memory(*state_bytes, arguments, temporaries, stats.generated_code_size_in_bytes)


_BYTES_PER_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_USED_OF = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_LARGEST = re.compile(r'Size: ([\d.]+[KMGT]?)B?\s+(?:Operator: op_name="([^"]*)"[^\n]*\s+)?'
                      r"Shape: (\w+\[[\d,]*\])")


def parse_overflow(message: str, state_bytes: float) -> Overflow:
  """Parses either of libtpu's two RESOURCE_EXHAUSTED messages.

  Args:
    message: the compiler's message.
    state_bytes: parameters and optimizer per chip, which one of the messages leaves out.
  Returns:
    Bytes per chip, 0 if the message is of another kind.
  """
  needed = available = 0.0
  if found := _USED_OF.search(message):
    needed, available = _bytes(*found.group(1, 2)), _bytes(*found.group(3, 4))
  elif found := _TEMPORARIES.search(message):
    needed, available = state_bytes + _bytes(*found.group(1, 2)), _bytes(*found.group(3, 4))
  return Overflow(needed, available, _LARGEST.findall(message))


def _bytes(number: str, unit: str) -> float:
  return float(number) * _BYTES_PER_UNIT[unit]


@contextlib.contextmanager
def compiler_threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
  """Yields threads that compile.

  After an error or a signal, this does not wait for compilations that are running: they take
  minutes and cannot be stopped. Those that have not begun are canceled.
  """
  pool = concurrent.futures.ThreadPoolExecutor(COMPILER_THREADS)
  try:
    yield pool
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    raise
  pool.shutdown()


# -------------------------------------------------------------- predicting


def make_plan(config: ConfigDict, topology: Topology, phases: Sequence[int]) -> list[PhasePlan]:
  """Compiles the step of every phase and predicts the memory and time of the phases.

  Phases with equal programs share one compilation.

  Args:
    config, topology: see `lower_step`.
    phases: indices of the phases.
  Returns:
    One plan per phase, in the order of `phases`.
  Raises:
    ConfigError: see `lower_step` and `compile_step`.
  """
  first_with = {steps.program_key(config, i): i for i in reversed(phases)}
  lowered = [lower_step(config, i, topology) for i in sorted(first_with.values())]
  with compiler_threads() as pool:
    compiled = list(pool.map(functools.partial(compile_step, platform=topology.platform), lowered))
  by_key = {steps.program_key(config, step.phase_index): step for step in compiled}
  return [predict(by_key[steps.program_key(config, i)]._replace(phase_index=i), topology)
          for i in phases]


def predict(step: CompiledStep, topology: Topology) -> PhasePlan:
  """Predicts the memory and time of the phase of a compiled step.

  Args:
    step: the compiled step.
    topology: the machine that it was compiled for.
  Returns:
    The plan of the phase. MFU is as in Chowdhery et al. 2022, "PaLM: Scaling language modeling with
    pathways", appendix B.
  """
  num_devices, phase = len(topology.devices), step.phase
  if step.overflow or step.memory.total > topology.chip.usable_hbm:
    return PhasePlan(step, False, *[math.nan] * 5)
  seconds = step.roofline.seconds
  hours = seconds * (phase.steps - count_left_out(step.config, step.phase_index)) / 3600
  return PhasePlan(
      step, fits=True, step_seconds=seconds,
      tokens_per_second=phase.batch_size * phase.seq_len / seconds,
      mfu=step.useful_flops(num_devices) / (seconds * num_devices * topology.chip.peak_flops),
      hours=hours, chip_hours=hours * num_devices / topology.chip.devices_per_chip)


def remedies(step: CompiledStep, topology: Topology) -> list[str]:
  """Returns overrides that lower the memory per chip; those that cost the least time come first.

  Args:
    step: a step that does not fit.
    topology: the machine that it was compiled for.
  Returns:
    Flags to paste, or one sentence if there are none.
  """
  config, i, phase = step.config, step.phase_index, step.phase
  num_devices = len(topology.devices)
  fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
  flags = []
  most = topology.devices_per_model // tensor
  wider = max((n for n in range(fsdp, 8 * fsdp + 1)
               if most % n == 0 and config.model.width % n == 0), default=fsdp)
  if sum(step.state_bytes) * fsdp > topology.chip.usable_hbm / 8 and wider > fsdp:
    flags.append(f"--config.mesh.fsdp={wider}" + " --config.mesh.data=-1" * (config.mesh.data > 0))
  rows = phase.batch_size // phase.micro_batches // (num_devices // tensor)
  if rows % 2 == 0:
    flags.append(f"--config.phases[{i}].micro_batches={phase.micro_batches * 2}")
  stronger = {"none": "products", "products": "full", "dots": "full"}
  remat, _ = rematerialization.choose(config.model.remat, topology.platform)
  if remat in stronger and "remat" not in families.find(config).ignores:
    flags.append(f"--config.model.remat={stronger[remat]}")
  return flags or ["more chips, or a kind with more memory"]
