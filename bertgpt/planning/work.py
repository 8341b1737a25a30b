"""The work of one operation of a compiled program: matmuls, vector operations, bytes."""

import dataclasses

from bertgpt.planning import hlo_costs
from bertgpt.planning.hlo import Instruction

_UNKNOWN_CYCLES = 2**63 - 1  # What libtpu writes if it makes no estimate.


@dataclasses.dataclass
class Work:
  """Work of one device.

  Attributes:
    matmul_flops: FLOPs of matmuls.
    padded_flops: the same, with the sides of matmuls padded to the size of the matrix unit.
    fp8_flops: the part of padded_flops that multiplies float8.
    attention_flops: the part of padded_flops in kernels of attention; none of it in float8.
    vector_operations: element operations outside the matrix units.
    hbm_bytes: bytes read and written.
    compiler_cycles: the compiler's own estimate; 0 if it makes none.
    hidden_kernels: kernels whose FLOPs the text does not show.
  """

  matmul_flops: float = 0.0
  padded_flops: float = 0.0
  fp8_flops: float = 0.0
  attention_flops: float = 0.0
  vector_operations: float = 0.0
  hbm_bytes: float = 0.0
  compiler_cycles: float = 0.0
  hidden_kernels: float = 0.0

  def add(self, other: "Work", runs: float) -> None:
    """Adds other work.

    Args:
      other: work of one run.
      runs: runs per step.
    """
    for field in dataclasses.fields(self):
      setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name) * runs)


def work_of(instruction: Instruction, tile: int) -> Work:
  """Returns the work of one run of an operation.

  Args:
    instruction: one that runs as a separate operation, with its parts if it is a fusion.
    tile: side of the matrix unit, in elements.
  Returns:
    The work of one device.
  """
  parts = list(instruction.parts())
  products = [product for part in parts if (product := hlo_costs.product_of(part))]
  cycles = instruction.attribute(r'"estimated_cycles":"(\d+)"')
  if cycles == str(_UNKNOWN_CYCLES):
    cycles = None
  return Work(sum(product.flops for product in products),
              sum(padded_flops(product, tile) for product in products),
              sum(padded_flops(product, tile) for product in products if product.is_fp8),
              sum(padded_flops(product, tile) for product in products if product.is_attention),
              sum(hlo_costs.vector_operations(part) for part in parts),
              hlo_costs.hbm_bytes(instruction), float(cycles or 0),
              sum(hlo_costs.hides_work(part) for part in parts))


def padded_flops(product: hlo_costs.Product, tile: int) -> float:
  """Returns the FLOPs of a matmul whose sides are padded to the size of the matrix unit.

  Args:
    product: its contracted side is padded, and one of the other two, whichever wastes less.
    tile: side of the matrix unit, in elements.
  Returns:
    FLOPs, at least those of the matmul.
  """
  def fill(size: float) -> float:
    return -(-size // tile) * tile / size
  return product.flops * fill(product.k) * min(fill(product.m), fill(product.n))
