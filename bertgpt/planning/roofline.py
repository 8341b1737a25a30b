"""Step time predicted by a roofline: for each operation, the resource that it uses longest.

  operation  max(matmul FLOPs / peak, vector operations / peak, HBM bytes / bandwidth, start)
  on chip    the sum over operations, but at least all HBM bytes / bandwidth (copies run ahead)
  network    for each collective, the time not hidden behind operations between its start and end
  step       on chip + network + work that the text does not show (custom calls), at peak

Peaks are those of `hardware.CHIPS`, each times its share in `Chip.efficiency`. This is a
prediction: it knows neither the schedule inside an operation nor contention. The model: Williams,
Waterman and Patterson 2009, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52(4).
"""

import dataclasses
from typing import NamedTuple

from bertgpt.devices import hardware
from bertgpt.planning import collectives, hlo, hlo_costs, kernels
from bertgpt.planning.collectives import Collective, Network, Traffic
from bertgpt.planning.hlo import Execution, Instruction
from bertgpt.planning.kernels import Kernel
from bertgpt.planning.work import Work, work_of


@dataclasses.dataclass
class CollectiveTotals:
  """All collectives of one kind over the same mesh axes, summed over a step.

  Attributes:
    kind: one of hlo.COLLECTIVES.
    axes: mesh axes, such as 'data+fsdp'.
    count: collectives per step.
    bytes: sizes of the arrays, as one device sees them.
    fast_bytes: bytes that a device sends over ICI or NVLink.
    slow_bytes: bytes that a device sends over the network between slices or nodes.
    seconds: time on the wires.
    exposed_seconds: the part of it that the step waits for.
    slow_seconds: the part of `seconds` on the network between slices or nodes.
    slow_exposed_seconds: by how much the step would be shorter if that network took no time.
  """

  kind: str
  axes: str
  count: float = 0.0
  bytes: float = 0.0
  fast_bytes: float = 0.0
  slow_bytes: float = 0.0
  seconds: float = 0.0
  exposed_seconds: float = 0.0
  slow_seconds: float = 0.0
  slow_exposed_seconds: float = 0.0

  def add(self, collective: Collective, traffic: Traffic, runs: float) -> None:
    """Adds a collective.

    Args:
      collective: the collective.
      traffic: traffic of one run of the collective.
      runs: runs per step.
    """
    self.count += runs
    self.bytes += collective.bytes * runs
    self.fast_bytes += traffic.fast_bytes * runs
    self.slow_bytes += traffic.slow_bytes * runs
    self.seconds += traffic.seconds * runs
    self.slow_seconds += traffic.slow_seconds * runs


class Roofline(NamedTuple):
  """One device's work in a step, and the time that it is predicted to take.

  Attributes:
    matmul_flops: FLOPs of the program's matmuls, with loops counted in full.
    hidden_flops: analytic FLOPs in excess of `matmul_flops`, assumed to be in the kernels whose
      work the text does not show; 0 if there are none.
    vector_operations: element operations outside the matrix units.
    hbm_bytes: bytes read and written.
    operations: number of separate operations; each takes time to start.
    collectives: by kind and axes, most bytes first.
    seconds_by: resource -> seconds of the step that it bounds; their sum is `seconds`.
    compiler_seconds: the sum of the compiler's own estimates; 0 if it makes none.
    kernels: kinds of kernels, the one that takes longest first.
  """

  matmul_flops: float
  hidden_flops: float
  vector_operations: float
  hbm_bytes: float
  operations: float
  collectives: list[CollectiveTotals]
  seconds_by: dict[str, float]
  compiler_seconds: float
  kernels: list[Kernel]

  @property
  def seconds(self) -> float:
    """Predicted time of the step."""
    return sum(self.seconds_by.values())

  @property
  def bound(self) -> str:
    """The resource that bounds most of the step."""
    return max(self.seconds_by, key=self.seconds_by.get)


def analyze(text: str, network: Network, analytic_flops: float = 0.0,
            true_share: float | None = None) -> Roofline:
  """Returns the roofline of a compiled program.

  Args:
    text: `compiled.as_text()`.
    network: the machine that runs it.
    analytic_flops: FLOPs of useful work per device. If the program's matmuls have fewer, and some
      kernels do not show their work, the rest is assumed to be in these kernels.
    true_share: see `HloModule`.
  Returns:
    Work and times of one device in one step.
  """
  chip, chip_work, transfers = network.chip, _ChipWork(network.chip), _Transfers(network)
  for execution in hlo.executions(hlo.parse(text, true_share)):
    if name := transfers.ends(execution.instruction):
      transfers.end(name, chip_work.seconds)
      continue
    if execution.instruction.opcode in ("recv", "send-done"):  # See `is_between_slices`.
      continue
    started = chip_work.seconds
    if not collectives.is_collective(execution.instruction):
      chip_work.add(execution)
    for part in execution.instruction.parts():
      if collective := collectives.collective_of(part, len(network.places)):
        transfers.add(collective, part, execution, _Span(started, chip_work.seconds))
  transfers.end_all()
  work = chip_work.total
  hidden = max(0.0, analytic_flops - work.matmul_flops) if work.hidden_kernels else 0.0
  return Roofline(work.matmul_flops, hidden, work.vector_operations, work.hbm_bytes,
                  chip_work.operations, transfers.totals(),
                  _seconds_by(chip_work, transfers.exposed_seconds, hidden),
                  work.compiler_cycles / chip.clock if chip.clock else 0.0,
                  kernels.merge(chip_work.kernels))


def _seconds_by(chip_work: "_ChipWork", exposed_seconds: float,
                hidden_flops: float) -> dict[str, float]:
  """Returns resource -> seconds of the step, including time that belongs to no single operation."""
  chip = chip_work.chip
  on_chip = dict(chip_work.seconds_by)
  share = chip.efficiency
  on_chip["matmul"] += hidden_flops / (chip.peak_flops * share.attention)
  copies = chip_work.total.hbm_bytes / (chip.hbm_bandwidth * share.memory)
  on_chip["memory"] += max(0.0, copies - sum(on_chip.values()))
  start = on_chip.pop("start")
  return on_chip | {"network": exposed_seconds, "start": start}


# ------------------------------------------------------------------ on chip


def operation_seconds(work: Work, chip: hardware.Chip) -> dict[str, float]:
  """Returns the time that each resource is busy during one run of an operation.

  Args:
    work: work of one run, on one device.
    chip: the device.
  Returns:
    Resource -> seconds, at the share of its peak that `chip.efficiency` states.
  """
  share = chip.efficiency
  rate = chip.peak_flops * share.matmul
  fp8_rate = chip.fp8_flops * share.fp8 or rate  # Without float8 units, it is emulated.
  attention_rate = chip.peak_flops * share.attention
  plain = work.padded_flops - work.fp8_flops - work.attention_flops
  return {"matmul": (plain / rate + work.fp8_flops / fp8_rate
                     + work.attention_flops / attention_rate),
          "vector": work.vector_operations / (chip.vector_flops * share.vector),
          "memory": work.hbm_bytes / (chip.hbm_bandwidth * share.memory),
          "start": share.kernel_seconds}


class _ChipWork:
  """Sums over the operations so far.

  Attributes:
    total: work of all operations.
    operations: number of operations that take time.
    seconds_by: resource -> seconds of the operations that it bounds.
    seconds: on-chip time, which is the clock for collectives.
    kernels: the operations that take time.
  """

  def __init__(self, chip: hardware.Chip):
    self.chip = chip
    self.total = Work()
    self.operations = 0.0
    self.seconds_by = dict.fromkeys(("matmul", "vector", "memory", "start"), 0.0)
    self.seconds = 0.0
    self.kernels: list[Kernel] = []

  def add(self, execution: Execution) -> None:
    """Adds an operation that is not a collective."""
    instruction, runs = execution
    work = work_of(instruction, self.chip.tile)
    self.total.add(work, runs)
    if hlo_costs.is_free(instruction) or instruction.is_start_or_done:
      return  # Copies that run ahead count only toward the total number of bytes.
    busy = operation_seconds(work, self.chip)
    bound = max(busy, key=busy.get)
    self.operations += runs
    self.seconds_by[bound] += busy[bound] * runs
    self.seconds += busy[bound] * runs
    compiler = work.compiler_cycles / self.chip.clock if self.chip.clock else 0.0
    self.kernels.append(kernels.make_kernel(instruction, runs, work, busy, self.chip.efficiency,
                                            compiler))


# ------------------------------------------------------------------ network


class _Span(NamedTuple):
  """Two moments of the on-chip clock, in seconds."""

  started: float
  ended: float


@dataclasses.dataclass
class _Transfer:
  """A collective in progress.

  Attributes:
    totals: totals of its kind and axes.
    traffic: bytes and time on the wires of one run.
    runs: runs per step.
    span: on-chip time from its start to its end, all runs together.
  """

  totals: CollectiveTotals
  traffic: Traffic
  runs: float
  span: _Span

  def exposed_seconds(self, *, of_slow: bool = False) -> float:
    """Returns the seconds per step that nothing hides, or those due to the slow network."""
    hidden = (self.span.ended - self.span.started) / self.runs
    exposed = max(0.0, self.traffic.seconds - hidden)
    if of_slow:
      exposed -= max(0.0, self.traffic.seconds - self.traffic.slow_seconds - hidden)
    return exposed * self.runs


class _Transfers:
  """Sums over the collectives so far.

  Attributes:
    exposed_seconds: time that the step waits for the collectives that have ended.
  """

  def __init__(self, network: Network):
    self._network = network
    self._totals: dict[tuple[str, str], CollectiveTotals] = {}
    self._under_way: dict[str, _Transfer] = {}
    self.exposed_seconds = 0.0

  def totals(self) -> list[CollectiveTotals]:
    """Returns the totals by kind and axes, most bytes first."""
    return sorted(self._totals.values(), key=lambda totals: -totals.bytes)

  def add(self, collective: Collective, part: Instruction, execution: Execution,
          span: _Span) -> None:
    """Counts a collective once: on TPU, every operation that hides it contains it.

    These operations have its channel, and its chain if it starts in one operation and ends in
    another. A chain may go through a loop, whose operations then continue it. On TPU7x, the
    SparseCores run collectives, each in an asynchronous call.

    Args:
      collective: the collective.
      part: the collective's instruction, inside the executed one if that is a fusion or a call.
      execution: the executed instruction.
      span: on-chip time before and after the executed instruction.
    """
    start = execution.instruction
    is_fused = start.opcode == "fusion"
    channel = part.attribute(r"channel_id=(\d+)") if is_fused else None
    chain = part.attribute(r'chain_id="(\d+)"') if is_fused else None
    place = f"chain {chain}" if chain else start.computation.name
    name = f"{place}/{channel}" if channel else part.name if is_fused else start.name
    if channel and name in self._under_way:
      self._extend(name, span.ended)
      return
    transfer = self._count(collective, execution.runs, span)
    if collectives.is_between_slices(part):
      name = collectives.transfer_name(part) or name
    elif name in self._under_way:  # A second one in the same call.
      name = part.name
    if is_fused or start.opcode.endswith("-start") or collectives.is_between_slices(part):
      self._under_way[name] = transfer
    else:
      self._expose(transfer)

  def _count(self, collective: Collective, runs: float, span: _Span) -> _Transfer:
    axes = collectives.axes_of(collective.groups[0], self._network.mesh_shape)
    totals = self._totals.setdefault((collective.kind, axes),
                                     CollectiveTotals(collective.kind, axes))
    traffic = collectives.traffic_of(collective, self._network)
    totals.add(collective, traffic, runs)
    return _Transfer(totals, traffic, runs, span)

  def ends(self, instruction: Instruction) -> str | None:
    """Returns the name of the transfer that an instruction ends; None if it ends none."""
    if not instruction.opcode.endswith("-done"):
      return None
    name, start = instruction.operands[0], instruction.operand(0)
    if instruction.opcode == "recv-done" and start:
      name = collectives.transfer_name(start) or name
    return name if name in self._under_way else None

  def end(self, name: str, now: float) -> None:
    """Ends a collective at a moment of the on-chip clock."""
    self._extend(name, now)
    self._expose(self._under_way.pop(name))

  def end_all(self) -> None:
    """Ends the collectives in fusions, each after the last operation that hid it."""
    for transfer in self._under_way.values():
      self._expose(transfer)
    self._under_way.clear()

  def _extend(self, name: str, now: float) -> None:
    transfer = self._under_way[name]
    transfer.span = transfer.span._replace(ended=now)

  def _expose(self, transfer: _Transfer) -> None:
    exposed = transfer.exposed_seconds()
    transfer.totals.exposed_seconds += exposed
    transfer.totals.slow_exposed_seconds += transfer.exposed_seconds(of_slow=True)
    self.exposed_seconds += exposed
