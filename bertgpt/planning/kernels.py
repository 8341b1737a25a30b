"""The kernels of a compiled step that take longest, and what bounds each.

A kernel is an instruction that runs as a separate operation, usually a fusion. Kernels that do the
same work for the same source operation count as one kind, so the layers of a model without a loop
are one line.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bertgpt.devices import hardware
from bertgpt.planning.hlo import Instruction
from bertgpt.planning.work import Work

# Parts of a source operation's path that only show how JAX traced it.
_TRACING = re.compile(
    r"^(jit\(|vmap\(|(while|body|closed_call|checkpoint|remat|pjit|shard_map)$)")


class Kernel(NamedTuple):
  """One kind of kernel in a step.

  Attributes:
    name: name of its instruction in the compiled program, without the number.
    source: path of the operation it comes from; '' if the compiler does not say.
    runs: runs per step.
    work: work of one run, on one device.
    busy: resource -> seconds that it is busy during one run; result of
      `roofline.operation_seconds`.
    efficiency: shares of the peaks that these times assume.
    compiler_seconds: the compiler's own estimate for one run; 0 if it makes none.
  """

  name: str
  source: str
  runs: float
  work: Work
  busy: dict[str, float]
  efficiency: hardware.Efficiency
  compiler_seconds: float = 0.0

  @property
  def bound(self) -> str:
    """The resource that bounds it."""
    return max(self.busy, key=self.busy.get)

  @property
  def seconds(self) -> float:
    """Predicted seconds per step, all runs together."""
    return self.runs * self.busy[self.bound]

  def use(self, resource: str) -> float:
    """Returns the share of the kernel's time that a resource is busy; 1 for the one that bounds it.
    """
    return self.busy[resource] / self.busy[self.bound]

  @property
  def of_peak(self) -> float:
    """The share of its peak, as in the data sheet, that the busiest unit reaches in this time.

    Matmuls that do not fill the matrix unit lower it, and so does the time to start.
    """
    work, share = self.work, self.efficiency
    matmul = share.attention if work.attention_flops else (
        share.fp8 if work.fp8_flops else share.matmul)
    filled = work.matmul_flops / work.padded_flops if work.padded_flops else 0.0
    return max(self.use("matmul") * filled * matmul, self.use("vector") * share.vector,
               self.use("memory") * share.memory)


def make_kernel(instruction: Instruction, runs: float, work: Work, busy: dict[str, float],
                efficiency: hardware.Efficiency, compiler_seconds: float = 0.0) -> Kernel:
  """Returns the kernel of an instruction.

  Args:
    instruction: one that runs as a separate operation.
    runs, work, busy, efficiency, compiler_seconds: see `Kernel`.
  """
  target = instruction.attribute(r'custom_call_target="([^"]*)"')
  name = target or re.sub(r"[.\d]+$", "", instruction.name)
  return Kernel(name, source_of(instruction), runs, work, busy, efficiency, compiler_seconds)


def source_of(instruction: Instruction) -> str:
  """Returns the path of the operation that an instruction comes from, without names of transforms.

  A path of the backward pass begins with 'backward'.

  Args:
    instruction: one with or without metadata.
  """
  path = instruction.attribute(r'op_name="([^"]*)"') or ""
  parts = [part for part in path.split("/") if part and not _TRACING.match(part)]
  if not parts:
    return ""
  is_backward = "transpose(" in path
  parts = [re.sub(r"^(?:transpose\(|jvp\()+([^()]*)\)*$", r"\1", part) for part in parts]
  return "/".join((["backward"] if is_backward else []) + [part for part in parts if part])


def merge(kernels: Iterable[Kernel]) -> list[Kernel]:
  """Returns the kernels with equal ones merged, the one that takes longest first."""
  merged: dict[tuple, Kernel] = {}
  for kernel in kernels:
    key = (kernel.name, kernel.source, *vars(kernel.work).values())
    runs = merged[key].runs if key in merged else 0.0
    merged[key] = kernel._replace(runs=runs + kernel.runs)
  return sorted(merged.values(), key=lambda kernel: -kernel.seconds)


def show(kernels: Sequence[Kernel], count: int) -> list[str]:
  """Returns a table of the kernels that take longest.

  Args:
    kernels: result of `merge`.
    count: number of kernels to show.
  """
  total = sum(kernel.seconds for kernel in kernels)
  shown = kernels[:count]
  share = sum(kernel.seconds for kernel in shown) / total if total else 0.0
  lines = [f"  kernels    the {len(shown)} that take longest of {len(kernels):,} kinds: "
           f"{share:.0%} of the time on the chip; of peak: share of the busiest unit's peak"]
  if hidden := sum(kernel.runs for kernel in kernels if kernel.work.hidden_kernels):
    lines.append(f"             {hidden:,.0f} runs are of kernels whose FLOPs the program hides")
  has_estimates = any(kernel.compiler_seconds for kernel in kernels)
  compiler = f"{'compiler':>8} " if has_estimates else ""
  lines.append(f"  {'ms':>8} {compiler}{'runs':>6} {'GB':>8} {'GFLOP':>9}  {'bound by':<9} "
               f"{'matmul':>6} {'memory':>6} {'of peak':>7}  kernel, source")
  return lines + [_show_kernel(kernel, has_estimates) for kernel in shown]


def _show_kernel(kernel: Kernel, has_estimates: bool) -> str:
  work, runs = kernel.work, kernel.runs
  compiler = f"{kernel.compiler_seconds * runs * 1e3:8.3f} " if has_estimates else ""
  flops = f"{'hidden':>9}" if work.hidden_kernels else f"{work.matmul_flops * runs / 1e9:9,.1f}"
  return (f"  {kernel.seconds * 1e3:8.3f} {compiler}{runs:6,.0f} "
          f"{work.hbm_bytes * runs / 1e9:8.3f} {flops}  {kernel.bound:<9} "
          f"{kernel.use('matmul'):6.0%} {kernel.use('memory'):6.0%} "
          f"{kernel.of_peak:7.0%}  {kernel.name}, {kernel.source or 'source unknown'}")


def to_json(kernel: Kernel) -> dict[str, Any]:
  """Returns a kernel as JSON values; its bytes and FLOPs are totals over all runs in a step."""
  return {"name": kernel.name, "source": kernel.source, "runs": kernel.runs,
          "seconds": kernel.seconds, "compiler_seconds": kernel.compiler_seconds * kernel.runs,
          "bound": kernel.bound, "of_peak": kernel.of_peak,
          "hides_flops": kernel.work.hidden_kernels > 0,
          "hbm_bytes": kernel.work.hbm_bytes * kernel.runs,
          "matmul_flops": kernel.work.matmul_flops * kernel.runs,
          "use": {resource: kernel.use(resource) for resource in kernel.busy}}
