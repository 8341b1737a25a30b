"""What a run will take on hardware that is not there: memory, work, time, price.

`aot` compiles the steps; here its answers become a table or JSON. Every time is a prediction, made
with the constants of `hardware`.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from bertgpt.config import ConfigDict
from bertgpt.errors import ConfigError
from bertgpt.planning import aot, roofline, search
from bertgpt.planning.aot import Memory, Phase, Step
from bertgpt.planning.topologies import Topology


def run(config: ConfigDict, topology: Topology, *, phase: int | None, price: float | None,
        do_search: bool, as_json: bool) -> str:
  """What `bertgpt plan` prints.

  Args:
    phase: this one alone; None: all, and the last one for a search.
    price: of a chip-hour.
  Raises:
    ConfigError: no such phase, or a config that does not fit the machine.
  """
  phases = range(len(config.phases)) if phase is None else [phase]
  if phase is not None and not 0 <= phase < len(config.phases):
    raise ConfigError(f"--phase={phase}: the config has phases 0 to {len(config.phases) - 1}")
  plan = aot.make_plan(config, topology, phases)
  ranked = search.search(plan[-1].step, topology) if do_search else []
  if as_json:
    return json.dumps(to_json(plan, topology, price)
                      | {"search": [_ranked_to_json(r) for r in ranked]}, indent=2)
  text = show(plan, topology, price)
  return f"{text}\n\n{show_search(ranked, plan[-1].step)}" if ranked else text


# -------------------------------------------------------------- as a table


def show(plan: Sequence[Phase], topology: Topology, price: float | None) -> str:
  """The plan as text."""
  lines = [f"PREDICTION for {describe(topology)}; compiled for it, nothing was run"]
  for phase in plan:
    lines += ["", *_show_phase(phase, topology)]
  if all(phase.fits for phase in plan):
    hours, chip_hours = (sum(getattr(p, name) for p in plan) for name in ("hours", "chip_hours"))
    cost = f", {price * chip_hours:,.0f} at {price:g} a chip-hour" if price is not None else ""
    lines += ["", f"the run      {_duration(hours)} predicted, {chip_hours:,.1f} chip-hours{cost} "
                  f"(evaluation and checkpoints not counted)"]
  return "\n".join(lines)


def describe(topology: Topology) -> str:
  islands = f" in {topology.islands} islands" if topology.islands > 1 else ""
  return (f"{len(topology.devices)} x {topology.name.split(':')[0]} ({topology.name}){islands}, "
          f"{topology.chip.peak_flops / 1e12:g} TFLOP/s and "
          f"{topology.chip.usable_hbm / 2**30:.2f} GiB usable each")


def _show_phase(phase: Phase, topology: Topology) -> list[str]:
  step, shape = phase.step, phase.step.phase
  title = (f"phase {step.phase_index}: {shape.steps:,} steps of {shape.batch_size:,} x "
           f"{shape.seq_len:,} tokens in "
           + ("one piece" if shape.micro_batches == 1 else f"{shape.micro_batches} pieces"))
  if not phase.fits:
    return [title, *_show_overflow(step, topology)]
  return [title, *_show_memory(step.memory, topology), *_show_work(phase, topology),
          *_show_collectives(step.roofline.collectives),
          f"  predicted  {phase.step_seconds * 1e3:,.1f} ms a step, {phase.tokens_per_second:,.0f} "
          f"tokens/s, MFU {phase.mfu:.1%}, bound by {step.roofline.bound}",
          f"             {_duration(phase.hours)} and {phase.chip_hours:,.1f} chip-hours for the "
          "phase"]


def _show_memory(memory: Memory, topology: Topology) -> list[str]:
  parts = ", ".join(f"{name} {_gib(size)}" for name, size in memory._asdict().items())
  free = topology.chip.usable_hbm - memory.total
  return [f"  fits       {_gib(memory.total)} GiB of a chip, {_gib(free)} free",
          f"  memory     {parts} (GiB)"]


def _show_work(phase: Phase, topology: Topology) -> list[str]:
  roof, chips = phase.step.roofline, len(topology.devices)
  analytic = phase.step.analytic_flops / chips
  shares = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in roof.seconds_by.items())
  lines = [f"  work       {analytic / 1e9:,.1f} GFLOP a chip by formula, compiled "
           f"{roof.matmul_flops / 1e9:,.1f} ({roof.matmul_flops / analytic:.3f} of it); "
           f"{roof.hbm_bytes / 1e9:,.2f} GB of HBM traffic, {roof.kernels:,.0f} kernels",
           f"  time       {shares} (ms, by what binds each kernel)"]
  if roof.compiler_seconds:
    lines.append(f"             {roof.compiler_seconds * 1e3:.1f} ms on the chip by the "
                 "compiler's own estimates, collectives left out")
  return lines


def _show_collectives(rows: Sequence[roofline.Row]) -> list[str]:
  lines = []
  for row in rows:
    network = "between islands" if row.slow_bytes else "fast network"
    sent = f"sends {(row.fast_bytes + row.slow_bytes) / 1e6:,.2f}"
    if row.slow_bytes:
      sent += f", of it {row.slow_bytes / 1e6:,.2f} between islands"
    lines.append(f"  {row.kind:<18} over {row.axes}, {network}: {row.count:,.0f} x, "
                 f"{row.bytes / 1e6:,.2f} MB a chip, {sent}; {row.seconds * 1e3:.2f} ms, "
                 f"{row.exposed_seconds * 1e3:.2f} not hidden")
  return lines or ["  no collectives"]


def _show_overflow(step: Step, topology: Topology) -> list[str]:
  if step.overflow is None:
    needed, available, largest = step.memory.total, topology.chip.usable_hbm, []
  else:
    needed, available, largest = step.overflow
  lines = ["  DOES NOT FIT"]
  if needed:
    lines[0] += (f": {_gib(needed)} GiB needed of a chip, {_gib(available)} there, "
                 f"{_gib(needed - available)} over")
  parameters, optimizer = step.state
  lines.append(f"  memory     parameters {_gib(parameters)}, optimizer {_gib(optimizer)} (GiB); "
               "the rest is activations and temporaries")
  lines += [f"  largest    {size}  {shape}  {name}" for size, name, shape in largest[:3]]
  return lines + [f"  try        {remedy}" for remedy in aot.remedies(step, topology)]


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f}"


def _duration(hours: float) -> str:
  return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.2f} hours"


def show_search(ranked: Sequence[search.Ranked], step: Step) -> str:
  """The table of `--search`, with what to paste."""
  lines = [f"search over phase {step.phase_index}, best predicted time first"]
  for r in ranked:
    if r.phase.fits:
      row = (f"{r.phase.step_seconds * 1e3:9,.1f} ms  MFU {r.phase.mfu:6.1%}  "
             f"{_gib(r.phase.step.memory.total):>7} GiB")
    else:
      row = f"{'does not fit':>36}"
    lines.append(f"  {row}  {' '.join(r.overrides) or '(as given)'}")
  return "\n".join(lines)


# ---------------------------------------------------------------- as JSON


def to_json(plan: Sequence[Phase], topology: Topology, price: float | None) -> dict[str, Any]:
  """The plan as plain numbers; bytes, seconds and FLOPs, of one chip where the name says so."""
  chip = topology.chip
  chip_hours = sum(phase.chip_hours for phase in plan)
  return {
      "prediction": True, "topology": topology.name, "chips": len(topology.devices),
      "islands": topology.islands, "peak_flops_per_chip": chip.peak_flops,
      "usable_hbm_per_chip": chip.usable_hbm, "fits": all(phase.fits for phase in plan),
      "hours": _number(sum(phase.hours for phase in plan)), "chip_hours": _number(chip_hours),
      "price": None if price is None else _number(price * chip_hours),
      "phases": [_phase_to_json(phase, topology) for phase in plan]}


def _phase_to_json(phase: Phase, topology: Topology) -> dict[str, Any]:
  step = phase.step
  numbers = {name: _number(getattr(phase, name)) for name in
             ("step_seconds", "tokens_per_second", "mfu", "hours", "chip_hours")}
  answer = {"phase": step.phase_index, "fits": phase.fits, **numbers,
            "analytic_flops": step.analytic_flops,
            "state_bytes_per_chip": dict(zip(("parameters", "optimizer"), step.state, strict=True))}
  if step.overflow:
    return answer | {"overflow": step.overflow._asdict(), "try": aot.remedies(step, topology)}
  roof = step.roofline
  memory = step.memory._asdict() | {"total": step.memory.total,
                                    "free": topology.chip.usable_hbm - step.memory.total}
  if not phase.fits:
    answer["try"] = aot.remedies(step, topology)
  return answer | {
      "memory_bytes_per_chip": memory, "bound": roof.bound,
      "compiled_flops_per_chip": roof.matmul_flops, "hidden_flops_per_chip": roof.hidden_flops,
      "hbm_bytes_per_chip": roof.hbm_bytes, "seconds_by_resource": roof.seconds_by,
      "compiler_seconds": roof.compiler_seconds,
      "collectives": [row._asdict() for row in roof.collectives]}


def _ranked_to_json(r: search.Ranked) -> dict[str, Any]:
  memory = r.phase.step.memory
  return {"overrides": list(r.overrides), "fits": r.phase.fits,
          "step_seconds": _number(r.phase.step_seconds), "mfu": _number(r.phase.mfu),
          "bytes_per_chip": memory and memory.total}


def _number(value: float) -> float | None:
  """JSON knows no NaN."""
  return None if math.isnan(value) else value
