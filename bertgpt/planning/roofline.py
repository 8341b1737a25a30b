"""Step time as a roofline predicts it: for every kernel the resource that it uses up longest.

  kernel     max(matrix products / peak, vector operations / peak, HBM bytes / bandwidth, start)
  on chip    the sum over kernels, but at least all HBM bytes / bandwidth (copies that run ahead)
  network    of every collective, what is not hidden behind kernels between its start and its end
  step       on chip + network + work that the text does not show (custom calls), at peak

Peaks are those of `hardware.CHIPS`, each times its share of `hardware.EFFICIENCY`. This is a
prediction: it knows neither the schedule inside a kernel nor contention.
"""

from collections import Counter, defaultdict
from typing import NamedTuple

from bertgpt.devices import hardware
from bertgpt.planning import collectives, hlo


class Row(NamedTuple):
  """All collectives of one kind over the same mesh axes, of a step.

  Attributes:
    bytes: of the arrays, a device; fast_bytes, slow_bytes: what it sends over ICI or NVLink and
      over the network between slices or nodes.
    seconds, exposed_seconds: on the wires, and what the step waits for.
  """

  kind: str
  axes: str
  count: float
  bytes: float
  fast_bytes: float
  slow_bytes: float
  seconds: float
  exposed_seconds: float


class Roofline(NamedTuple):
  """One device's work in a step, and the time that it is predicted to take.

  Attributes:
    matmul_flops: of the program, loops in full; hidden_flops: the analytic count beyond them.
    seconds_by: resource -> seconds of the step that it binds; their sum is `seconds`.
    compiler_seconds: the sum of the compiler's own estimates of kernels, where it makes them.
  """

  matmul_flops: float
  hidden_flops: float
  vector_operations: float
  hbm_bytes: float
  kernels: float
  collectives: list[Row]
  seconds_by: dict[str, float]
  compiler_seconds: float

  @property
  def seconds(self) -> float:
    return sum(self.seconds_by.values())

  @property
  def bound(self) -> str:
    return max(self.seconds_by, key=self.seconds_by.get)


def analyse(text: str, network: collectives.Network, analytic_flops: float = 0.0) -> Roofline:
  """The roofline of a compiled program.

  Args:
    text: `compiled.as_text()`.
    analytic_flops: of useful work, a device; what is missing from the program's matrix products is
      thought to be in kernels that the text does not show.
  """
  program, chip = hlo.parse(text), network.chip
  meter = _Meter(program, network)
  for kernel in hlo.walk(program):
    meter.add(kernel)
  meter.finish_all()
  hidden = max(0.0, analytic_flops - meter.totals["flops"])
  by = dict(meter.seconds)
  by["matmul"] += hidden / (chip.peak_flops * hardware.EFFICIENCY["matmul"])
  copies = meter.totals["bytes"] / (chip.hbm_bandwidth * hardware.EFFICIENCY["memory"])
  on_chip = sum(by[name] for name in ("matmul", "vector", "memory", "start"))
  by["memory"] += max(0.0, copies - on_chip)
  return Roofline(meter.totals["flops"], hidden, meter.totals["vector"], meter.totals["bytes"],
                  meter.totals["kernels"], meter.rows(), by,
                  meter.totals["cycles"] / chip.clock if chip.clock else 0.0)


class _Pending(NamedTuple):
  """A collective under way: seconds on the wires, and the on-chip clock around it."""

  row: tuple[str, str]
  seconds: float
  times: float
  started: float
  ended: float


class _Meter:
  """Adds up kernels in the order of the program; `clock` is on-chip time so far."""

  def __init__(self, program: hlo.Program, network: collectives.Network):
    self._program, self._network = program, network
    self._clock = 0.0
    self._pending: dict[str, _Pending] = {}
    self._rows = defaultdict(lambda: [0.0] * 6)
    self.totals = Counter()
    self.seconds = {name: 0.0 for name in ("matmul", "vector", "memory", "network", "start")}

  def add(self, kernel: hlo.Kernel) -> None:
    instruction, computation, times = kernel
    if instruction.opcode.endswith("-done") and instruction.operands[0] in self._pending:
      name = instruction.operands[0]
      self._pending[name] = self._pending[name]._replace(ended=self._clock)
      self.finish(name)
      return
    parts = list(hlo.parts(self._program, instruction, computation))
    started = self._clock
    if not is_collective(instruction):
      self._compute(parts, instruction, computation, times)
    for part, where in parts:
      collective = collectives.collective_of(part, where, len(self._network.places))
      if collective:
        self._communicate(collective, part, kernel, started)

  def _compute(self, parts, instruction, computation, times) -> None:
    """Adds a kernel's own work."""
    chip, share = self._network.chip, hardware.EFFICIENCY
    products = [p for part in parts if (p := hlo.product_of(*part))]
    vector = sum(hlo.vector_operations(*part) for part in parts)
    moved = hlo.hbm_bytes(self._program, instruction, computation)
    cycles = instruction.attribute(r'"estimated_cycles":"(\d+)"')
    for name, amount in (("flops", sum(p.flops for p in products)), ("vector", vector),
                         ("bytes", moved), ("cycles", float(cycles or 0))):
      self.totals[name] += amount * times
    if instruction.opcode in hlo.FREE or instruction.opcode.endswith(("-start", "-done")):
      return  # Copies that run ahead count in the total of bytes alone.
    needs = {"matmul": sum(padded_flops(p, chip.tile) for p in products)
             / (chip.peak_flops * share["matmul"]),
             "vector": vector / (chip.vector_flops * share["vector"]),
             "memory": moved / (chip.hbm_bandwidth * share["memory"]),
             "start": hardware.KERNEL_SECONDS}
    binding = max(needs, key=needs.get)
    self.seconds[binding] += needs[binding] * times
    self.totals["kernels"] += times
    self._clock += needs[binding] * times

  def _communicate(self, collective, part, kernel, started) -> None:
    """Counts a collective once: on TPU a hidden one shows up in every kernel that hides it."""
    is_fused = part is not kernel.instruction
    channel = part.attribute(r"channel_id=(\d+)") if is_fused else None
    name = f"{kernel.computation.name}/{channel}" if channel else part.name
    if channel and name in self._pending:
      self._pending[name] = self._pending[name]._replace(ended=self._clock)
      return
    traffic = collectives.traffic_of(collective, self._network)
    row = (collective.kind, collectives.axes_of(collective.groups[0], self._network.mesh_shape))
    for i, amount in enumerate((1, collective.bytes, traffic.fast_bytes, traffic.slow_bytes,
                                traffic.seconds)):
      self._rows[row][i] += amount * kernel.times
    pending = _Pending(row, traffic.seconds, kernel.times, started, self._clock)
    if is_fused or part.opcode.endswith("-start"):
      self._pending[name] = pending
    else:
      self._expose(pending)

  def finish(self, name: str) -> None:
    """A collective is done, or all kernels that hid it have been seen."""
    self._expose(self._pending.pop(name))

  def finish_all(self) -> None:
    for name in list(self._pending):
      self.finish(name)

  def _expose(self, pending: "_Pending") -> None:
    hidden = (pending.ended - pending.started) / pending.times
    exposed = max(0.0, pending.seconds - hidden) * pending.times
    self._rows[pending.row][5] += exposed
    self.seconds["network"] += exposed

  def rows(self) -> list[Row]:
    return [Row(*name, *amounts) for name, amounts in
            sorted(self._rows.items(), key=lambda item: -item[1][1])]


def is_collective(instruction: hlo.Instruction) -> bool:
  return instruction.opcode.removesuffix("-start") in hlo.COLLECTIVES


def padded_flops(product: hlo.Product, tile: int) -> float:
  """With the contracted side, and the better of the others, filled up to the matrix unit."""
  def fill(size):
    return -(-size // tile) * tile / size
  return product.flops * fill(product.k) * min(fill(product.m), fill(product.n))
