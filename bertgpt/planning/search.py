"""Other ways to run the same phase, ranked.

They differ in micro-batches, remat, mesh, attention kernel, unrolling of the loop over layers, and
chunks of the output layer.

All variants train the same model on the same batches. A rough formula selects the few variants that
are worth compiling; they are compiled and predicted like the plan itself.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tqdm

from bertgpt import config as config_lib
from bertgpt.config import (
    ConfigDict,
    attention_kernels,
    families,
    layer_loop,
    rematerialization,
)
from bertgpt.config.overrides import set_field
from bertgpt.errors import ConfigError
from bertgpt.models import cross_entropy
from bertgpt.planning import aot
from bertgpt.planning.aot import CompiledStep, PhasePlan
from bertgpt.planning.topologies import Topology

MAX_COMPILATIONS = 8

# Value of model.remat -> operations of the forward pass that the backward pass repeats, as a share
# of a step. Estimated from compiled programs (assumption).
RECOMPUTED_SHARE = {"none": 0.0, "products": 0.0, "dots": 0.1, "full": 0.33}
# Value of model.remat -> bytes per token and layer that are saved for the backward pass, as
# multiples of (width, mlp_dim, heads x length). Estimated from compiled programs (assumption).
SAVED_BYTES = {"none": (28, 12, 9), "products": (14, 2, 2), "dots": (12, 2, 0),
               "full": (2, 0, 0)}
OPERATIONS_PER_LAYER = 250  # Forward and backward, on TPU.
# Bytes per query and key that plain attention moves in both passes and fused attention does not.
# Estimated from compiled programs (assumption).
WEIGHT_BYTES = 24
LOSS_CHUNKS = (0, -1, 1024, 4096)  # Values of objective.loss_chunk.
PROGRAM_FIELDS = ("model.attention", "model.scan_unroll", "objective.loss_chunk")


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
  ranked = [RankedVariant((), aot.predict(step, topology))]
  with aot.compiler_threads() as pool:
    compiling = {pool.submit(aot.compile_step, aot.lower_step(config, step.phase_index, topology),
                             topology.platform): overrides
                 for overrides, config in choose_variants(step, topology)}
    for done in tqdm.tqdm(concurrent.futures.as_completed(compiling), "search", len(compiling),
                          file=sys.stderr):
      with contextlib.suppress(ConfigError):  # It has a kernel that does not fit the chip.
        ranked.append(RankedVariant(compiling[done], aot.predict(done.result(), topology)))
  return sorted(ranked, key=lambda r: (not r.plan.fits, r.plan.step_seconds if r.plan.fits else 0,
                                       r.overrides))


def choose_variants(step: CompiledStep, topology: Topology) -> list[Variant]:
  """Chooses the variants that should fit and be fastest, from estimates without a compiler.

  Args:
    step: the compiled step to vary.
    topology: the machine that it was compiled for.
  Returns:
    Up to MAX_COMPILATIONS variants, the one with the least estimated time first; the step's own
    config is not among them.
  """
  parts = step.config.mesh.fsdp * step.config.mesh.tensor
  state = aot.StateBytes(*(size * parts for size in step.state_bytes))
  # The compiled step shows how much too low the formula is for this model.
  needed = step.memory.total if step.memory else step.overflow.needed if step.overflow else 0.0
  excess = max(1.0, needed / estimate_bytes(step.config, step.phase_index, state, topology))
  timed, kinds = [], collections.Counter()
  for overrides, config in make_variants(step.config, step.phase_index, len(topology.devices),
                                         topology.platform):
    if topology.devices_per_model % (config.mesh.fsdp * config.mesh.tensor):
      continue
    estimate = estimate_bytes(config, step.phase_index, state, topology)
    if excess * estimate < topology.chip.usable_hbm:
      seconds = estimate_seconds(config, step, state, topology)
      timed.append((seconds, overrides, config))
  # Of equal estimates, the one with fewer overrides: the config's own values suit the platform.
  timed.sort(key=lambda item: (item[0], len(item[1]), item[1]))
  # The formula cannot compare kinds of programs, so the best of every kind comes before the rest.
  ranked = []
  for seconds, overrides, config in timed:
    kind = tuple(o for o in overrides if is_program_choice(o))
    ranked.append((kinds[kind], seconds, overrides, config))
    kinds[kind] += 1
  chosen = sorted(ranked, key=lambda item: item[:3])[:MAX_COMPILATIONS]
  return [Variant(overrides, config) for *_, overrides, config in
          sorted(chosen, key=lambda item: item[1:3])]


def is_program_choice(override: str) -> bool:
  """Returns whether an override is one of `PROGRAM_FIELDS`."""
  return override.partition("=")[0].removeprefix("--config.") in PROGRAM_FIELDS


def program_choices(config: ConfigDict, phase_index: int, platform: str) -> dict[str, list[Any]]:
  """Returns the values of `PROGRAM_FIELDS` that give different programs on a platform.

  Args:
    config: the run's config; its own values are among the choices.
    phase_index: index of the phase to vary.
    platform: 'gpu' or 'tpu'.
  """
  model, layer = config.model, attention_layer(config, phase_index, platform)
  kernels = {attention_kernels.choose(name, layer)[0]: name
             for name in ("xla", *attention_kernels.FUSED, model.attention)
             if name in ("xla", model.attention) or not attention_kernels.obstacles(name, layer)}
  loops = {layer_loop.choose(value, platform, model.num_layers)[0]: value
           for value in (0, 1, 2, layer_loop.AUTO, model.scan_unroll)}
  chunks = {0} | {chunk for chunk in LOSS_CHUNKS if chunk < predictions(config, phase_index, 1)}
  return dict(zip(PROGRAM_FIELDS, (
      [*kernels.values()], [*loops.values()],
      sorted(chunks | {config.objective.loss_chunk})), strict=True))


def attention_layer(config: ConfigDict, phase_index: int, platform: str) -> attention_kernels.Layer:
  """Returns the attention of a phase, for `attention_kernels`."""
  model, phase = config.model, config.phases[phase_index]
  return attention_kernels.layer_of(model, phase.seq_len, platform)


def predictions(config: ConfigDict, phase_index: int, replicas: float) -> float:
  """Returns the positions per micro-batch and replica whose logits are computed."""
  phase = config.phases[phase_index]
  return (phase.batch_size / phase.micro_batches * phase.seq_len / replicas
          * config_lib.predicted_share(config, phase))


def remat_choices(config: ConfigDict, platform: str) -> list[str]:
  """Returns the values of `model.remat` that give different programs on a platform.

  Args:
    config: the run's config; its own value is among the choices.
    platform: 'gpu' or 'tpu'.
  """
  values = (*RECOMPUTED_SHARE, config.model.remat)
  return [*{rematerialization.choose(value, platform)[0]: value for value in values}.values()]


def resolve_remat(config: ConfigDict, topology: Topology) -> str:
  """Returns the value of `model.remat` on a machine, with 'auto' resolved."""
  return rematerialization.choose(config.model.remat, topology.platform)[0]


def make_variants(config: ConfigDict, phase_index: int, num_devices: int,
                  platform: str) -> Iterator[Variant]:
  """Yields every valid variant that differs from a config.

  Args:
    config: the run's config.
    phase_index: index of the phase to vary.
    num_devices: number of devices of the machine; meshes that do not fit it are left out.
    platform: 'gpu' or 'tpu'.
  """
  powers = [2**i for i in range(num_devices.bit_length()) if 2**i <= num_devices]
  rows, now = config.phases[phase_index].batch_size, config.phases[phase_index].micro_batches
  pieces = (now, 2 * now, 4 * now, max(1, now // 2), 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 32)
  choices: dict[str, list[Any]] = {
      f"phases[{phase_index}].micro_batches": [n for n in dict.fromkeys(pieces) if rows % n == 0],
      "model.remat": remat_choices(config, platform),
      "mesh.fsdp": [*dict.fromkeys((config.mesh.fsdp, *powers[:6]))],
      "mesh.tensor": [*dict.fromkeys((config.mesh.tensor, *powers[:3]))],
      **program_choices(config, phase_index, platform)}
  ignored = {f"model.{field}" for field in families.find(config).ignores}
  choices = {field: values for field, values in choices.items() if field not in ignored}
  given = dict(config_lib.leaves(config))
  for values in itertools.product(*choices.values()):
    changes = {field: value for field, value in zip(choices, values, strict=True)
               if given[field] != value}
    if given["mesh.data"] > 0 and changes.keys() & {"mesh.fsdp", "mesh.tensor"}:
      changes["mesh.data"] = -1
    changed = with_fields(config, changes)
    if changes.get("objective.loss_chunk", 0) >= predictions(changed, phase_index,
                                                             num_devices / changed.mesh.tensor):
      continue  # A device has fewer positions than that: one chunk, as with the default.
    if changes and not config_lib.find_problems(changed, num_devices, platform):
      overrides = tuple(f"--config.{field}={value}" for field, value in changes.items())
      yield Variant(overrides, changed)


def with_fields(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy of a config with other values.

  `override`, which parses texts, is 50 times slower.

  Args:
    config: the run's config.
    values: dotted field, such as 'phases[0].micro_batches' -> value.
  """
  config = config.copy_and_resolve_references()
  config.phases = tuple(phase.copy_and_resolve_references() for phase in config.phases)
  for field, value in values.items():
    set_field(config, field, value)
  return config


def estimate_bytes(config: ConfigDict, phase_index: int, state: aot.StateBytes,
                   topology: Topology) -> float:
  """Estimates the memory of a step: state, gradients, saved activations and logits.

  Args:
    config: the run's config.
    phase_index: index of the phase.
    state: bytes of the parameters and the optimizer of the whole model.
    topology: the machine.
  Returns:
    Bytes per chip.
  """
  m, phase, mesh = config.model, config.phases[phase_index], config.mesh
  num_devices = len(topology.devices)
  tokens = phase.batch_size / phase.micro_batches * phase.seq_len / (num_devices / mesh.tensor)
  weights = 0 if is_fused(config, phase_index, topology) else m.num_heads * phase.seq_len
  sizes = (m.width, m.mlp_dim, weights)
  saved = sum(factor * size for factor, size in
              zip(SAVED_BYTES[resolve_remat(config, topology)], sizes, strict=True))
  working = sum(factor * size for factor, size in zip(SAVED_BYTES["none"], sizes, strict=True))
  activations = tokens / mesh.tensor * (m.num_layers * saved + working)
  logits = (predictions(config, phase_index, num_devices / mesh.tensor) * 8 * m.vocab_size
            / mesh.tensor)
  chunk = config.objective.loss_chunk
  if chunk == 0:
    logits = min(logits, 2 * cross_entropy.chunk_bytes(topology.platform))
  elif chunk > 0:
    logits = min(logits, chunk * 8 * m.vocab_size / mesh.tensor)
  kept = sum(state) + state.parameters  # The gradients are as large as the parameters.
  return kept / (mesh.fsdp * mesh.tensor) + activations + logits


def estimate_seconds(config: ConfigDict, step: CompiledStep, state: aot.StateBytes,
                     topology: Topology) -> float:
  """Estimates the time of a step: matmuls, starts, optimizer and collectives, one after another.

  Args:
    config: the variant's config.
    step: the compiled step that it varies, for its analytic FLOPs.
    state: bytes of the parameters and the optimizer of the whole model.
    topology: the machine.
  Returns:
    Seconds per step.
  """
  m, phase, mesh = config.model, config.phases[step.phase_index], config.mesh
  chip, num_devices = topology.chip, len(topology.devices)
  work = (step.analytic_flops / num_devices
          * (1 + RECOMPUTED_SHARE[resolve_remat(config, topology)]))
  compute = work / (chip.peak_flops * chip.efficiency.matmul / 2)
  unroll, _ = layer_loop.choose(m.scan_unroll, topology.platform, m.num_layers)
  plain = not is_fused(config, step.phase_index, topology)
  weights = (plain * WEIGHT_BYTES * phase.batch_size * m.num_heads * phase.seq_len**2
             * m.num_layers / num_devices / chip.hbm_bandwidth)
  starts = (phase.micro_batches * m.num_layers * OPERATIONS_PER_LAYER
            * chip.efficiency.kernel_seconds / unroll ** 0.2)
  optimizer = 2 * sum(state) / (mesh.fsdp * mesh.tensor) / chip.hbm_bandwidth
  sent = 2 * state.parameters / mesh.tensor if num_devices > mesh.tensor else 0.0
  if mesh.fsdp > 1:
    sent += state.parameters / mesh.tensor * phase.micro_batches
  if mesh.tensor > 1:
    rows = phase.batch_size / (num_devices / mesh.tensor)
    sent += 16 * m.num_layers * rows * phase.seq_len * m.width
  return compute + weights + starts + optimizer + sent / (2 * chip.link_bandwidth)


def is_fused(config: ConfigDict, phase_index: int, topology: Topology) -> bool:
  """Returns whether the attention of a phase stores no array of queries x keys."""
  layer = attention_layer(config, phase_index, topology.platform)
  return attention_kernels.choose(config.model.attention, layer)[0] != "xla"
