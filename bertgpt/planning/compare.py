"""Two plans of the same phases side by side."""

from collections.abc import Sequence

from bertgpt.planning.aot import PhasePlan

# (name, value for a plan that fits, format); lower is better except for the last two.
ROWS = (
    ("ms per step", lambda plan: plan.step_seconds * 1e3, ",.2f"),
    ("bound by matmul, ms", lambda plan: plan.step.roofline.seconds_by["matmul"] * 1e3, ",.2f"),
    ("bound by vector, ms", lambda plan: plan.step.roofline.seconds_by["vector"] * 1e3, ",.2f"),
    ("bound by memory, ms", lambda plan: plan.step.roofline.seconds_by["memory"] * 1e3, ",.2f"),
    ("bound by start, ms", lambda plan: plan.step.roofline.seconds_by["start"] * 1e3, ",.2f"),
    ("network, ms", lambda plan: plan.step.roofline.seconds_by["network"] * 1e3, ",.2f"),
    ("HBM traffic, GB", lambda plan: plan.step.roofline.hbm_bytes / 1e9, ",.2f"),
    ("operations", lambda plan: plan.step.roofline.operations, ",.0f"),
    ("memory, GiB per chip", lambda plan: plan.step.memory.total / 2**30, ",.2f"),
    ("hours of the phase", lambda plan: plan.hours, ",.2f"),
    ("tokens/s", lambda plan: plan.tokens_per_second, ",.0f"),
    ("MFU", lambda plan: plan.mfu, ".1%"),
)


def show(plans: Sequence[PhasePlan], others: Sequence[PhasePlan],
         overrides: Sequence[str]) -> str:
  """Returns a table per phase: the config as given, the other one, and the ratio of the two.

  Args:
    plans: plans of the config as given.
    others: plans of the other config, for the same phases.
    overrides: fields in which the other config differs, 'FIELD=VALUE' each.
  """
  lines = [f"comparison with {' '.join(overrides)}"]
  for plan, other in zip(plans, others, strict=True):
    title = f"phase {plan.step.phase_index}"
    lines += ["", f"{title:<29} {'as given':>12} {'compared':>12} {'ratio':>8}"]
    if not (plan.fits and other.fits):
      fit = ["fits" if p.fits else "does not fit" for p in (plan, other)]
      lines.append(f"  {'':<27} {fit[0]:>12} {fit[1]:>12}")
      continue
    for name, number, form in ROWS:
      values = number(plan), number(other)
      ratio = f"{values[1] / values[0]:8.3f}" if values[0] else f"{'':>8}"
      lines.append(f"  {name:<27} {values[0]:>12{form}} {values[1]:>12{form}} {ratio}".rstrip())
  return "\n".join(lines)

