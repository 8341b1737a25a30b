"""The memory, work, time and price of a run on absent hardware, as text or JSON.

`aot` compiles the steps; this module formats its results. Every time is a prediction, made with the
constants of `hardware`.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, unread
from bertgpt.config.derived import count_left_out
from bertgpt.config.overrides import override
from bertgpt.devices import hardware
from bertgpt.errors import ConfigError
from bertgpt.planning import aot, compare, kernels, search, vocabulary_size
from bertgpt.planning.aot import CompiledStep, Memory, PhasePlan
from bertgpt.planning.roofline import CollectiveTotals
from bertgpt.planning.topologies import Topology


class Request(NamedTuple):
  """Choices of the user about a plan.

  Attributes:
    phase: index of the only phase to plan; None: all phases, or for a search the last one.
    price: per chip-hour, in any currency; None: no price.
    kernels: number of kernels to show per phase; those that take longest are shown.
    compare: fields of a second config, 'FIELD=VALUE' each; (): no second config.
    do_search: also rank variants of the phase.
    as_json: JSON instead of text.
  """

  phase: int | None = None
  price: float | None = None
  kernels: int = 0
  compare: tuple[str, ...] = ()
  do_search: bool = False
  as_json: bool = False


def run(config: ConfigDict, topology: Topology, request: Request) -> str:
  """Returns the output of `bertgpt plan`.

  Args:
    config: the run's config.
    topology: the machine to plan for.
    request: what to show.
  Returns:
    Text of several lines.
  Raises:
    ConfigError: there is no such phase, a config does not fit the machine, or it sets a field that
      nothing would read.
    DataError: see `vocabulary_size.find`.
  """
  check(config, topology)
  phase, price = request.phase, request.price
  phases = range(len(config.phases)) if phase is None else [phase]
  if phase is not None and not 0 <= phase < len(config.phases):
    raise ConfigError(f"--phase={phase}: the config has phases 0 to {len(config.phases) - 1}")
  other = make_other(config, request.compare) if request.compare else None
  if other:
    check(other, topology)
  size = vocabulary_size.find(config)
  plans = aot.make_plan(size.set_in(config), topology, phases)
  others = (aot.make_plan(vocabulary_size.find(other).set_in(other), topology, phases)
            if other else [])
  ranked = search.search(plans[-1].step, topology) if request.do_search else []
  if request.as_json:
    answer = to_json(plans, topology, price, request.kernels)
    answer["vocabulary"] = size._asdict()
    answer["search"] = [_ranked_to_json(variant) for variant in ranked]
    if others:
      answer["compare"] = {"overrides": list(request.compare),
                           **to_json(others, topology, price, request.kernels)}
    return json.dumps(answer, indent=2)
  texts = [show(plans, topology, price, request.kernels, size.describe())]
  if others:
    texts.append(compare.show(plans, others, request.compare))
  if ranked:
    texts.append(show_search(ranked, plans[-1].step))
  return "\n\n".join(texts)


def check(config: ConfigDict, topology: Topology) -> None:
  """Refuses a config that does not fit the machine, or sets a field that nothing would read.

  Args:
    config: the run's config.
    topology: the machine to plan for.
  Raises:
    ConfigError: the problems of the config, see `config.find_problems`.
  """
  config_lib.validate(config, len(topology.devices), topology.platform)
  hardware.check_matmul(config.model.matmul, f"--topology={topology.name}", topology.chip)
  unread.check(config)


def make_other(config: ConfigDict, fields: Sequence[str]) -> ConfigDict:
  """Returns a config with other values of some fields, to compare with.

  Args:
    config: the run's config.
    fields: 'FIELD=VALUE' each.
  Raises:
    ConfigError: a field does not exist or has another type.
  """
  try:
    return override(config, [f"--config.{field}" for field in fields])
  except ConfigError as e:
    raise ConfigError(f"--compare: {str(e).replace('--config.', '')}") from e


# ----------------------------------------------------------------- as text


def show(plans: Sequence[PhasePlan], topology: Topology, price: float | None,
         num_kernels: int = 0, assumption: str = "") -> str:
  """Returns the plan as text.

  Args:
    plans: one per phase.
    topology: the machine that they were made for.
    price: per chip-hour; None: no price.
    num_kernels: kernels to show per phase.
    assumption: a line about what the plan depends on; '': none.
  """
  lines = [f"PREDICTION for {describe(topology)}; compiled for it, nothing was run"]
  lines += [assumption] * bool(assumption)
  for plan in plans:
    lines += ["", *_show_phase(plan, topology)]
    if num_kernels and plan.step.roofline:
      lines += kernels.show(plan.step.roofline.kernels, num_kernels)
  if all(plan.fits for plan in plans):
    first = plans[0].step
    what = ("the run" if len(plans) == len(first.config.phases) else
            f"phase {first.phase_index}")  # `--phase` names one.
    hours = sum(plan.hours for plan in plans)
    chip_hours = sum(plan.chip_hours for plan in plans)
    cost = ("" if price is None else
            f", {_amount(price * chip_hours, 0)} at {price:g} per chip-hour")
    lines += ["", f"{what:<12} {_duration(hours)} predicted, {_amount(chip_hours, 1)} chip-hours"
                  f"{cost} (evaluation and checkpoints not counted)"]
  return "\n".join(lines)


def describe(topology: Topology) -> str:
  """Returns one line about a machine: chips, name, peak and memory.

  Args:
    topology: the machine.
  """
  groups = "nodes" if topology.platform == "gpu" else "slices"
  where = f" in {topology.num_slices} {groups}" if topology.num_slices > 1 else ""
  part = "half a " if topology.chip.devices_per_chip == 2 else ""
  kind = part + topology.name.split(":")[0]
  return (f"{len(topology.devices)} x {kind} ({topology.name}){where}, "
          f"{topology.chip.peak_flops / 1e12:g} TFLOP/s and "
          f"{topology.chip.usable_hbm / 2**30:.2f} GiB usable each")


def _show_phase(plan: PhasePlan, topology: Topology) -> list[str]:
  step, phase = plan.step, plan.step.phase
  parts = "one micro-batch" if phase.micro_batches == 1 else f"{phase.micro_batches} micro-batches"
  title = (f"phase {step.phase_index}: {phase.steps:,} steps of {phase.batch_size:,} x "
           f"{phase.seq_len:,} tokens in {parts}")
  if left_out := count_left_out(step.config, step.phase_index):
    title += f", {left_out:,} of them left out"
  if not plan.fits:
    return [title, *_show_overflow(step, topology)]
  return [title, *_show_memory(step.memory, topology),
          *_show_work(step, len(topology.devices)),
          *_show_collectives(step.roofline.collectives),
          *_show_networks(step.roofline.collectives, topology),
          f"  predicted  {plan.step_seconds * 1e3:,.1f} ms per step, "
          f"{plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}, bound by "
          f"{step.roofline.bound}",
          f"             {_duration(plan.hours)} and {_amount(plan.chip_hours, 1)} chip-hours for "
          "the phase"]


def _show_memory(memory: Memory, topology: Topology) -> list[str]:
  parts = ", ".join(f"{name} {_gib(size)}" for name, size in memory._asdict().items())
  free = topology.chip.usable_hbm - memory.total
  return [f"  fits       {_gib(memory.total)} GiB per chip, {_gib(free)} GiB free",
          f"  memory     {parts} (GiB)"]


def _show_work(step: CompiledStep, num_devices: int) -> list[str]:
  """Returns lines about one chip's work."""
  roofline, analytic_flops = step.roofline, step.analytic_flops / num_devices
  frozen = ", without the backward pass of frozen layers" * bool(step.config.optimizer.freeze)
  shares = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in roofline.seconds_by.items())
  lines = [f"  work       {analytic_flops / 1e9:,.1f} GFLOP per chip by formula, "
           f"{roofline.matmul_flops / 1e9:,.1f} compiled "
           f"({roofline.matmul_flops / analytic_flops:.3f} of it{frozen}); "
           f"{roofline.hbm_bytes / 1e9:,.2f} GB of HBM traffic, "
           f"{roofline.operations:,.0f} operations",
           f"  time       {shares} (ms, by what bounds each operation)"]
  if roofline.compiler_seconds:
    lines.append(f"             {roofline.compiler_seconds * 1e3:.1f} ms on the chip by the "
                 "compiler's own estimates, without collectives")
  return lines


def _show_collectives(collectives: Sequence[CollectiveTotals]) -> list[str]:
  lines = []
  for total in collectives:
    network = "fast and slow network" if total.slow_bytes else "fast network"
    sent = f"{(total.fast_bytes + total.slow_bytes) / 1e6:,.2f} MB sent"
    if total.slow_bytes:
      sent += f" ({total.slow_bytes / 1e6:,.2f} MB over the slow one)"
    lines.append(f"  {total.kind:<18} over {total.axes}, {network}: {total.count:,.0f} x, "
                 f"{total.bytes / 1e6:,.2f} MB per chip, {sent}; {total.seconds * 1e3:.2f} ms, "
                 f"{total.exposed_seconds * 1e3:.2f} ms not hidden")
  return lines or ["  no collectives"]


def _show_networks(collectives: Sequence[CollectiveTotals], topology: Topology) -> list[str]:
  """Returns lines about what slices or nodes send each other; [] if there is only one."""
  if topology.num_slices == 1:
    return []
  sent = sum_networks(collectives)
  speed = topology.chip.dcn_bandwidth * 8 / 1e9
  return [f"  networks   {sent['fast_bytes'] / 1e6:,.2f} MB sent per chip over the fast one, "
          f"{sent['slow_bytes'] / 1e6:,.2f} MB over the slow one, which at {speed:g} Gbit/s per "
          f"chip takes {sent['slow_seconds'] * 1e3:.2f} ms",
          f"             and makes the step {sent['slow_exposed_seconds'] * 1e3:.2f} ms longer"]


def sum_networks(collectives: Sequence[CollectiveTotals]) -> dict[str, float]:
  """Returns what all collectives of a step send over each network, and what the slow one costs.

  Args:
    collectives: totals by kind and axes.
  Returns:
    'fast_bytes', 'slow_bytes', 'slow_seconds', 'slow_exposed_seconds' of `CollectiveTotals`, per
    chip and step.
  """
  return {name: sum(getattr(total, name) for total in collectives) for name in
          ("fast_bytes", "slow_bytes", "slow_seconds", "slow_exposed_seconds")}


def _show_overflow(step: CompiledStep, topology: Topology) -> list[str]:
  if step.overflow is None:
    needed, available, largest = step.memory.total, topology.chip.usable_hbm, []
  else:
    needed, available, largest = step.overflow
  lines = ["  DOES NOT FIT"]
  if needed:
    lines[0] += (f": {_gib(needed)} GiB needed per chip, {_gib(available)} GiB available, "
                 f"{_gib(needed - available)} GiB over")
  lines.append(f"  memory     parameters {_gib(step.state_bytes.parameters)}, "
               f"optimizer {_gib(step.state_bytes.optimizer)} (GiB); "
               "the rest is activations and temporaries")
  lines += [f"  largest    {size}  {shape}  {name}" for size, name, shape in largest[:3]]
  return lines + [f"  try        {remedy}" for remedy in aot.remedies(step, topology)]


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


def _duration(hours: float) -> str:
  if hours >= 1:
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.2f} hours"
  minutes = hours * 60
  return f"{minutes:.2g} minutes" if minutes >= 1 else f"{minutes * 60:.2g} seconds"


def _amount(value: float, digits: int) -> str:
  """Returns a number with `digits` digits after the point; below 10, with two significant ones."""
  return f"{value:,.{digits}f}" if value >= 10 else f"{value:.2g}"


def show_search(ranked: Sequence[search.RankedVariant], step: CompiledStep) -> str:
  """Returns the table of `--search`.

  Args:
    ranked: variants, the best first.
    step: the step that they vary.
  Returns:
    One line per variant, with the overrides to paste.
  """
  lines = [f"search over phase {step.phase_index}, best predicted time first"]
  for overrides, plan in ranked:
    if plan.fits:
      numbers = (f"{plan.step_seconds * 1e3:9,.1f} ms  MFU {plan.mfu:6.1%}  "
                 f"{_gib(plan.step.memory.total):>7} GiB")
    else:
      numbers = f"{'does not fit':>36}"
    lines.append(f"  {numbers}  {' '.join(overrides) or '(as given)'}")
  if len(ranked) == 1:
    lines.append("  nothing was compiled: no variant that this machine can run is estimated to fit")
  return "\n".join(lines)


# ----------------------------------------------------------------- as JSON


def to_json(plans: Sequence[PhasePlan], topology: Topology, price: float | None,
            num_kernels: int = 0) -> dict[str, Any]:
  """Returns the plan as plain numbers.

  Args:
    plans: one per phase.
    topology: the machine that they were made for.
    price: per chip-hour; None: no price.
    num_kernels: kernels per phase.
  Returns:
    JSON values: bytes, seconds and FLOPs, per chip if the name says so; None instead of nan.
  """
  chip = topology.chip
  chip_hours = sum(plan.chip_hours for plan in plans)
  return {
      "prediction": True, "topology": topology.name, "devices": len(topology.devices),
      "chips": len(topology.devices) // chip.devices_per_chip,
      "slices": topology.num_slices, "peak_flops_per_chip": chip.peak_flops,
      "usable_hbm_per_chip": chip.usable_hbm, "fits": all(plan.fits for plan in plans),
      "hours": _number(sum(plan.hours for plan in plans)), "chip_hours": _number(chip_hours),
      "price": None if price is None else _number(price * chip_hours),
      "phases": [_phase_to_json(plan, topology, num_kernels) for plan in plans]}


def _phase_to_json(plan: PhasePlan, topology: Topology, num_kernels: int) -> dict[str, Any]:
  step = plan.step
  numbers = {name: _number(getattr(plan, name)) for name in
             ("step_seconds", "tokens_per_second", "mfu", "hours", "chip_hours")}
  answer = {"phase": step.phase_index, "fits": plan.fits, **numbers,
            "analytic_flops": step.analytic_flops,
            "state_bytes_per_chip": step.state_bytes._asdict()}
  if step.overflow:
    return answer | {"overflow": step.overflow._asdict(), "try": aot.remedies(step, topology)}
  if not plan.fits:
    answer["try"] = aot.remedies(step, topology)
  memory = step.memory._asdict() | {"total": step.memory.total,
                                    "free": topology.chip.usable_hbm - step.memory.total}
  roofline = step.roofline
  return answer | {
      "memory_bytes_per_chip": memory, "bound": roofline.bound,
      "compiled_flops_per_chip": roofline.matmul_flops,
      "hidden_flops_per_chip": roofline.hidden_flops,
      "hbm_bytes_per_chip": roofline.hbm_bytes, "seconds_by_resource": roofline.seconds_by,
      "compiler_seconds": roofline.compiler_seconds,
      "collectives": [dataclasses.asdict(total) for total in roofline.collectives],
      "networks": sum_networks(roofline.collectives),
      "kernels": [kernels.to_json(kernel) for kernel in roofline.kernels[:num_kernels]]}


def _ranked_to_json(ranked: search.RankedVariant) -> dict[str, Any]:
  plan, memory = ranked.plan, ranked.plan.step.memory
  return {"overrides": list(ranked.overrides), "fits": plan.fits,
          "step_seconds": _number(plan.step_seconds), "mfu": _number(plan.mfu),
          "bytes_per_chip": memory and memory.total}


def _number(value: float) -> float | None:
  """Returns a number that JSON can represent: None for nan."""
  return None if math.isnan(value) else value
