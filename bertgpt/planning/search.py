"""Other ways to run the same phase, ranked: micro-batches, remat, mesh, unrolling of the scan.

All variants train the same model on the same batches. A crude formula picks the few variants that
are worth compiling; they are compiled and predicted like the plan itself.
"""

import concurrent.futures
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tqdm

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, layer_loop, recipes
from bertgpt.devices import hardware
from bertgpt.planning import aot
from bertgpt.planning.aot import CompiledStep, PhasePlan
from bertgpt.planning.topologies import Topology

MAX_COMPILATIONS = 8

# By model.remat: operations of the forward pass that the backward pass repeats, as a share of a
# step. Read off compiled programs (assumption).
RECOMPUTED_SHARE = {"none": 0.0, "dots": 0.1, "full": 0.33}
# By model.remat: bytes per token and layer that are saved for the backward pass, as multiples of
# (width, mlp_dim, heads x length). Read off compiled programs (assumption).
SAVED_BYTES = {"none": (28, 12, 9), "dots": (12, 2, 0), "full": (2, 0, 0)}
OPERATIONS_PER_LAYER = 250  # Forward and backward, on TPU.


class Variant(NamedTuple):
  """Another way to run a phase.

  Attributes:
    overrides: flags to paste.
    config: the config with these overrides.
  """

  overrides: tuple[str, ...]
  config: ConfigDict


class RankedVariant(NamedTuple):
  """A variant and its prediction.

  Attributes:
    overrides: flags to paste; () for the config as given.
    plan: prediction for the phase.
  """

  overrides: tuple[str, ...]
  plan: PhasePlan


def search(step: CompiledStep, topology: Topology) -> list[RankedVariant]:
  """Compiles the most promising variants of a step and ranks them together with the step.

  Args:
    step: the compiled step; its phase is the one that is varied.
    topology: the machine that it was compiled for.
  Returns:
    The step itself and up to MAX_COMPILATIONS variants, best predicted time first; those that do
    not fit come last.
  """
  variants = choose_variants(step, topology)
  lowered = (aot.lower_step(variant.config, step.phase_index, topology) for variant in variants)
  compile_step = functools.partial(aot.compile_step, platform=topology.platform)
  ranked = [RankedVariant((), aot.predict(step, topology))]
  with concurrent.futures.ThreadPoolExecutor(aot.COMPILER_THREADS) as pool:
    compiled = tqdm.tqdm(pool.map(compile_step, lowered), "compile", len(variants),
                         file=sys.stderr)
    ranked += [RankedVariant(variant.overrides, aot.predict(compiled_step, topology))
               for variant, compiled_step in zip(variants, compiled, strict=True)]
  return sorted(ranked, key=lambda r: (not r.plan.fits, r.plan.step_seconds))


def choose_variants(step: CompiledStep, topology: Topology) -> list[Variant]:
  """Chooses the variants that should fit and be fastest, from estimates without a compiler.

  Args:
    step: the compiled step to vary.
    topology: the machine that it was compiled for.
  Returns:
    Up to MAX_COMPILATIONS variants, the one with the least estimated time first; the step's own
    config is not among them.
  """
  state_bytes = sum(step.state_bytes) * step.config.mesh.fsdp * step.config.mesh.tensor
  timed = []
  for overrides, config in make_variants(step.config, step.phase_index, len(topology.devices)):
    if estimate_bytes(config, step.phase_index, state_bytes, topology) < topology.chip.usable_hbm:
      seconds = estimate_seconds(config, step, state_bytes, topology)
      timed.append((seconds, overrides, config))
  timed.sort(key=lambda item: item[:2])
  return [Variant(overrides, config) for _, overrides, config in timed[:MAX_COMPILATIONS]]


def make_variants(config: ConfigDict, phase_index: int, chips: int) -> Iterator[Variant]:
  """Yields every valid variant that differs from a config.

  Args:
    config: the run's config.
    phase_index: number of the phase to vary.
    chips: number of chips of the machine; meshes that do not fit it are left out.
  """
  powers = [2**i for i in range(chips.bit_length()) if 2**i <= chips]
  choices: dict[str, list[Any]] = {
      f"phases[{phase_index}].micro_batches": [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 32],
      "model.remat": list(RECOMPUTED_SHARE), "model.scan_unroll": [layer_loop.AUTO, 2],
      "mesh.fsdp": powers[:6], "mesh.tensor": powers[:3]}
  given = dict(config_lib.leaves(config))
  for values in itertools.product(*choices.values()):
    changes = {field: value for field, value in zip(choices, values, strict=True)
               if given[field] != value}
    if given["mesh.data"] > 0 and changes.keys() & {"mesh.fsdp", "mesh.tensor"}:
      changes["mesh.data"] = -1
    changed = with_fields(config, changes)
    if changes and not config_lib.find_problems(changed, chips):
      overrides = tuple(f"--config.{field}={value}" for field, value in changes.items())
      yield Variant(overrides, changed)


def with_fields(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy of a config with other values.

  `recipes.override`, which parses texts, is 50 times slower.

  Args:
    config: the run's config.
    values: dotted field, such as 'phases[0].micro_batches' -> value.
  """
  config = config.copy_and_resolve_references()
  config.phases = tuple(phase.copy_and_resolve_references() for phase in config.phases)
  for field, value in values.items():
    recipes.set_field(config, field, value)
  return config


def estimate_bytes(config: ConfigDict, phase_index: int, state_bytes: float,
                   topology: Topology) -> float:
  """Estimates the memory of a step: state, gradients, saved activations and logits.

  Args:
    config: the run's config.
    phase_index: number of the phase.
    state_bytes: bytes of the parameters and the optimizer of the whole model.
    topology: the machine.
  Returns:
    Bytes per chip.
  """
  m, phase, mesh = config.model, config.phases[phase_index], config.mesh
  chips = len(topology.devices)
  tokens = phase.batch_size / phase.micro_batches * phase.seq_len / (chips / mesh.tensor)
  sizes = (m.width, m.mlp_dim, m.num_heads * phase.seq_len)
  saved = sum(factor * size for factor, size in zip(SAVED_BYTES[m.remat], sizes, strict=True))
  working = sum(factor * size for factor, size in zip(SAVED_BYTES["none"], sizes, strict=True))
  predicted = config_lib.predicted_share(config, phase)
  activations = tokens / mesh.tensor * (m.num_layers * saved + working)
  logits = tokens / mesh.tensor * predicted * 8 * m.vocab_size
  return state_bytes * 4 / 3 / (mesh.fsdp * mesh.tensor) + activations + logits


def estimate_seconds(config: ConfigDict, step: CompiledStep, state_bytes: float,
                     topology: Topology) -> float:
  """Estimates the time of a step: products, starts, optimizer and collectives, one after another.

  Args:
    config: the variant's config.
    step: the compiled step that it varies, for its analytic FLOPs.
    state_bytes: bytes of the parameters and the optimizer of the whole model.
    topology: the machine.
  Returns:
    Seconds per step.
  """
  m, phase, mesh = config.model, config.phases[step.phase_index], config.mesh
  chip, chips = topology.chip, len(topology.devices)
  parameters = step.state_bytes.parameters / sum(step.state_bytes) * state_bytes
  compute = (step.analytic_flops / chips * (1 + RECOMPUTED_SHARE[m.remat])
             / (chip.peak_flops * hardware.EFFICIENCY["matmul"] / 2))
  unroll, _ = layer_loop.choose(m.scan_unroll, aot.devices_of(topology)[1], m.num_layers)
  starts = (phase.micro_batches * m.num_layers * OPERATIONS_PER_LAYER * hardware.KERNEL_SECONDS
            / unroll ** 0.2)
  optimizer = 2 * state_bytes / (mesh.fsdp * mesh.tensor) / chip.hbm_bandwidth
  sent = 2 * parameters / mesh.tensor if chips > mesh.tensor else 0.0
  if mesh.fsdp > 1:
    sent += parameters / mesh.tensor * phase.micro_batches
  if mesh.tensor > 1:
    rows = phase.batch_size / (chips / mesh.tensor)
    sent += 16 * m.num_layers * rows * phase.seq_len * m.width
  return compute + starts + optimizer + sent / (2 * chip.link_bandwidth)
