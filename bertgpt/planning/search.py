"""Other ways to run the same phase, ranked: micro-batches, remat, mesh, unrolling of the scan.

All of them train the same model on the same batches. A crude formula picks the few that are worth
a compilation; those are compiled and predicted as the plan itself.
"""

import concurrent.futures
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tqdm

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, recipes
from bertgpt.devices import hardware
from bertgpt.planning import aot
from bertgpt.planning.aot import Phase, Step
from bertgpt.planning.topologies import Topology

COMPILATIONS = 8

# Work done again in the backward pass, and bytes of a token and layer that are kept for it, as
# multiples of (width, mlp_dim, heads x length). Read off compiled programs (assumption).
RECOMPUTED = {"none": 0.0, "dots": 0.1, "full": 0.33}
KEPT = {"none": (28, 12, 9), "dots": (12, 2, 0), "full": (2, 0, 0)}
KERNELS_PER_LAYER = 250  # Forward and backward, on TPU.


class Ranked(NamedTuple):
  """A variant, as overrides to paste, and its prediction."""

  overrides: tuple[str, ...]
  phase: Phase


def search(step: Step, topology: Topology) -> list[Ranked]:
  """The best variants of a compiled step's config for its phase, best predicted time first.

  What does not fit comes last.
  """
  tried = choose(step, topology)
  lowered = (aot.lower_step(config, step.phase_index, topology) for _, config in tried)
  compile_step = functools.partial(aot.compile_step, platform=topology.platform)
  ranked = [Ranked((), aot.predict(step, topology))]
  with concurrent.futures.ThreadPoolExecutor(aot.COMPILER_THREADS) as pool:
    steps = tqdm.tqdm(pool.map(compile_step, lowered), "compile", len(tried), file=sys.stderr)
    ranked += [Ranked(overrides, aot.predict(found, topology))
               for (overrides, _), found in zip(tried, steps, strict=True)]
  return sorted(ranked, key=lambda r: (not r.phase.fits, r.phase.step_seconds))


def choose(step: Step, topology: Topology) -> list[tuple[tuple[str, ...], ConfigDict]]:
  """(overrides, config) of what seems to fit and to be fastest, without the step's own."""
  state = sum(step.state) * step.config.mesh.fsdp * step.config.mesh.tensor
  found = []
  for overrides, config in variants(step.config, step.phase_index, len(topology.devices)):
    if estimate_bytes(config, step.phase_index, state, topology) < topology.chip.usable_hbm:
      seconds = estimate_seconds(config, step, state, topology)
      found.append((seconds, overrides, config))
  found.sort(key=lambda item: item[:2])
  return [(overrides, config) for _, overrides, config in found[:COMPILATIONS]]


def variants(config: ConfigDict, phase_index: int,
             chips: int) -> Iterator[tuple[tuple[str, ...], ConfigDict]]:
  """Every valid variant that differs from the config, as (overrides, config)."""
  powers = [2**i for i in range(chips.bit_length()) if 2**i <= chips]
  choices = {
      f"phases[{phase_index}].micro_batches": [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 32],
      "model.remat": list(RECOMPUTED), "model.scan_unroll": [1, 2],
      "mesh.fsdp": powers[:6], "mesh.tensor": powers[:3]}
  now = dict(config_lib.leaves(config))
  for values in itertools.product(*choices.values()):
    wanted = {field: value for field, value in zip(choices, values, strict=True)
              if now[field] != value}
    if now["mesh.data"] > 0 and wanted.keys() & {"mesh.fsdp", "mesh.tensor"}:
      wanted["mesh.data"] = -1
    changed = with_fields(config, wanted)
    if wanted and not config_lib.find_problems(changed, chips):
      yield tuple(f"--config.{field}={value}" for field, value in wanted.items()), changed


def with_fields(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """A copy with other values; `recipes.override`, which takes texts, is 50 times slower."""
  config = config.copy_and_resolve_references()
  config.phases = tuple(phase.copy_and_resolve_references() for phase in config.phases)
  for field, value in values.items():
    recipes.set_field(config, field, value)
  return config


def estimate_bytes(config: ConfigDict, phase_index: int, state: float,
                   topology: Topology) -> float:
  """Bytes of a chip: the state, gradients, what the backward pass needs, and logits.

  Args:
    state: parameters and optimizer, bytes of the whole model.
  """
  m, phase, mesh = config.model, config.phases[phase_index], config.mesh
  chips = len(topology.devices)
  tokens = phase.batch_size / phase.micro_batches * phase.seq_len / (chips / mesh.tensor)
  widths = (m.width, m.mlp_dim, m.num_heads * phase.seq_len)
  kept = sum(factor * width for factor, width in zip(KEPT[m.remat], widths, strict=True))
  working = sum(factor * width for factor, width in zip(KEPT["none"], widths, strict=True))
  predicted = 1.0 if config.objective.name == "causal" else config.objective.mask_prob
  activations = tokens / mesh.tensor * (m.num_layers * kept + working)
  logits = tokens / mesh.tensor * predicted * 8 * m.vocab_size
  return state * 4 / 3 / (mesh.fsdp * mesh.tensor) + activations + logits


def estimate_seconds(config: ConfigDict, step: Step, state: float, topology: Topology) -> float:
  """Matrix products, kernel starts, the optimizer's traffic and collectives, in turn."""
  m, phase, mesh = config.model, config.phases[step.phase_index], config.mesh
  chip, chips = topology.chip, len(topology.devices)
  parameters = step.state[0] / sum(step.state) * state
  compute = (step.analytic_flops / chips * (1 + RECOMPUTED[m.remat])
             / (chip.peak_flops * hardware.EFFICIENCY["matmul"] / 2))
  starts = (phase.micro_batches * m.num_layers * KERNELS_PER_LAYER * hardware.KERNEL_SECONDS
            / m.scan_unroll ** 0.2)
  optimizer = 2 * state / (mesh.fsdp * mesh.tensor) / chip.hbm_bandwidth
  sent = 2 * parameters / mesh.tensor if chips > mesh.tensor else 0.0
  if mesh.fsdp > 1:
    sent += parameters / mesh.tensor * phase.micro_batches
  if mesh.tensor > 1:
    rows = phase.batch_size / (chips / mesh.tensor)
    sent += 16 * m.num_layers * rows * phase.seq_len * m.width
  return compute + starts + optimizer + sent / (2 * chip.link_bandwidth)
