"""Costs of instructions of a compiled program: matmuls, vector operations, HBM bytes.

Every function takes an `hlo.Instruction` and counts one run of it on one device. Matmuls and
convolutions are counted as XLA's HloCostAnalysis counts them (openxla/xla,
xla/service/hlo_cost_analysis.cc, 2025); arrays in on-chip memory cost no HBM bytes.
"""

import functools
import math
import re
from typing import NamedTuple

from bertgpt.planning.hlo import ASYNC_CALLS, COLLECTIVES, Array, Instruction

# Opcodes that neither read nor write memory: they name a value, or their parts are counted.
FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "replica-id", "add-dependency"})

# Opcodes that move or name elements and compute nothing.
NO_ARITHMETIC = FREE | {
    "broadcast", "reshape", "transpose", "copy", "slice", "dynamic-slice", "dynamic-update-slice",
    "pad", "concatenate", "gather", "scatter", "iota", "reverse", "convert", "bitcast-convert",
    "fusion", "dot", "convolution", "custom-call", *COLLECTIVES}

# Operations per element on a vector unit, which evaluates a polynomial (assumption). Any other
# opcode is one operation.
OPERATIONS_PER_ELEMENT = {
    "exponential": 6, "log": 6, "tanh": 8, "logistic": 8, "power": 12, "divide": 4, "sqrt": 4,
    "rsqrt": 4, "erf": 12, "sine": 12, "cosine": 12}

# Opcodes whose result is their first operand, perhaps in another type or place.
ALIASES = ("bitcast", "reshape", "get-tuple-element", "convert", "copy")


# -------------------------------------------------------------------- matmuls


class Product(NamedTuple):
  """A batch of matmuls [m, k] x [k, n].

  Attributes:
    flops: FLOPs of the whole batch; a multiplication and an addition are two.
    m, n, k: sizes of one matmul.
    is_fp8: whether it multiplies float8.
    is_attention: whether it is in a kernel of attention.
  """

  flops: float
  m: float
  n: float
  k: float
  is_fp8: bool = False
  is_attention: bool = False


def product_of(instruction: Instruction) -> Product | None:
  """Returns the matmuls of a plain instruction.

  Args:
    instruction: any. A dot, a convolution, a call of cuBLAS or cuDNN, and a Pallas kernel that
      states its cost have matmuls. A fusion itself has none, but its parts may.
  Returns:
    The matmuls; None for any other instruction.
  """
  target = call_target(instruction)
  if instruction.opcode == "dot" or target.startswith("__cublas$"):
    return _dot(instruction)
  if instruction.opcode == "convolution":
    return _convolution(instruction)
  if target.startswith("__cudnn$fmha"):
    return _cudnn_attention(instruction)
  if target == "tpu_custom_call" and instruction.name.startswith("splash_mha"):
    return _splash_attention(instruction)
  flops = stated_cost(instruction, "flops")
  # All Pallas kernels here are kernels of attention.
  return Product(flops, _EVEN, _EVEN, _EVEN, is_attention=True) if flops else None


_EVEN = 2.0**20  # Side of a matmul that fills a matrix unit of any size.


def call_target(instruction: Instruction) -> str:
  """Returns the name of the target of a custom call; '' for any other instruction."""
  if instruction.opcode != "custom-call":
    return ""
  return instruction.attribute(r'custom_call_target="([^"]*)"') or ""


def is_free(instruction: Instruction) -> bool:
  """Returns whether an instruction runs nothing: it names values or reserves memory."""
  return instruction.opcode in FREE or call_target(instruction) == "AllocateBuffer"


def stated_cost(instruction: Instruction, name: str) -> float:
  """Returns a number from the cost that the author of a Pallas kernel states; 0 if none is stated.

  Args:
    instruction: any; only calls of Pallas kernels state a cost.
    name: 'flops', 'transcendentals' or 'bytes_accessed', of its `pallas_call`'s cost estimate, or
      any name in its metadata, such as 'vector_operations'.
  """
  target = call_target(instruction)
  if target == "__gpu$xla.gpu.triton":  # Only the metadata is there, with \22 for quotes.
    pattern = rf'serialized_metadata = "[^"]*\\22{name}\\22: ?\\22(\d+)'
    return float(instruction.attribute(pattern) or 0)
  if target != "tpu_custom_call":
    return 0.0
  return float(instruction.attribute(rf'kernel_metadata={{[^}}]*"{name}": ?"(\d+)"')
               or instruction.attribute(rf'"cost_estimate":{{[^}}]*"{name}":"(\d+)"') or 0)


def hides_work(instruction: Instruction) -> bool:
  """Returns whether an instruction is a kernel whose work the text does not show."""
  is_kernel = re.search(r"tpu_custom_call|triton|mosaic|__cu", call_target(instruction))
  return bool(is_kernel) and product_of(instruction) is None


def _cudnn_attention(instruction: Instruction) -> Product:
  """Returns the matmuls of flash attention: two forward, and five backward, one of them repeated
  (Dao 2023, arXiv:2307.08691). Blocks that a causal mask hides are left out.
  """
  tensor = instruction.attribute(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]')
  rows, heads, queries, keys = map(int, re.findall(r"\d+", tensor))
  width = instruction.operand_shape(0)[0].size / (rows * heads * queries)
  number = 5 if "Backward" in call_target(instruction) else 2
  is_causal = "CAUSAL" in (instruction.attribute(r'"mask_type": ?"(\w*)"') or "")
  flops = number * 2.0 * rows * heads * queries * keys * width
  return Product(flops / 2 if is_causal else flops, queries, keys, width, is_attention=True)


def _splash_attention(instruction: Instruction) -> Product:
  """Returns the matmuls of a kernel of splash attention in the blocks that it visits.

  These are two in the forward pass. In the backward pass they are five, or if the queries have a
  kernel of their own, three there and four for keys and values. The blocks are named by
  `models.attention.splash_name`; without that name, all count.
  """
  # The values of `splash.BlockSizes`, as JSON in JSON.
  size = lambda name: instruction.attribute(rf'{name}\\?": (\w+)')
  number = 2
  if "_dkv" in instruction.name:
    number = 5 if any(len(array.dims) == 5 for array in instruction.shape) else 4
  elif "_dq" in instruction.name:
    number = 3
  queries = next(array for at in range(len(instruction.operands))
                 for array in instruction.operand_shape(at) if len(array.dims) == 4)
  width, length = queries.dims[2:]
  if size("q_layout") != "2":  # Not SEQ_MINOR.
    width, length = length, width
  found = re.search(r'op_name="[^"]*splash_(\d+)_of_(\d+)_blocks', instruction.attributes)
  visited = int(found[1]) / int(found[2]) if found else 1.0
  block = int(size(r"block_q\w*"))
  return Product(number * 2.0 * queries.size * length * visited, block, block, width,
                 is_attention=True)


def _dot(instruction: Instruction) -> Product:
  lhs, rhs = (instruction.operand_shape(number)[0].dims for number in (0, 1))
  contracted = _dimensions(instruction, "lhs_contracting_dims", "lhs_contracting_dimensions")
  batch = _dimensions(instruction, "lhs_batch_dims", "lhs_batch_dimensions")
  k = math.prod(lhs[d] for d in contracted)
  batches = math.prod(lhs[d] for d in batch)
  m, n = math.prod(lhs) / (k * batches), math.prod(rhs) / (k * batches)
  return Product(2.0 * batches * m * n * k, m, n, k, _is_fp8(instruction))


def _is_fp8(instruction: Instruction) -> bool:
  return all(instruction.operand_shape(number)[0].bits == 8 for number in (0, 1))


def _dimensions(instruction: Instruction, *names: str) -> list[int]:
  """Returns a list of dimensions, by its name in HLO's notation or in cuBLAS's JSON."""
  for name in names:
    text = instruction.attribute(rf'"?{name}"?[=:][{{\[]([^}}\]]*)[}}\]]')
    if text is not None:
      return [int(d) for d in re.findall(r"\d+", text)]
  return []


class _WindowDimension(NamedTuple):
  """One spatial dimension of a convolution, in elements."""

  input_size: int
  filter_size: int
  output_size: int
  stride: int
  padding_low: int
  input_dilation: int
  filter_dilation: int


def _convolution(instruction: Instruction) -> Product:
  """Returns a convolution as matmuls.

  On TPU every matmul is a convolution, whose window, with dilation and padding, expresses the batch
  dimensions. Only positions of the window that meet an element of the input count, as in
  HloCostAnalysis::HandleConvolution.
  """
  labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|\s|$)")
  input_labels, filter_labels, output_labels = re.match(r"(\w+)_(\w+)->(\w+)", labels).groups()
  inputs = dict(zip(input_labels, instruction.operand_shape(0)[0].dims, strict=True))
  filters = dict(zip(filter_labels, instruction.operand_shape(1)[0].dims, strict=True))
  outputs = dict(zip(output_labels, instruction.shape[0].dims, strict=True))
  spatial = sorted(label for label in outputs if label.isdigit())
  window = dict(item.split("=") for item in
                (instruction.attribute(r"window=\{([^}]*)\}") or "").split())

  def field(name: str, i: int, default: str) -> str:
    return window[name].split("x")[i] if name in window else default

  positions = math.prod(
      _valid_positions(_WindowDimension(
          inputs[label], filters[label], outputs[label], int(field("stride", i, "1")),
          int(field("pad", i, "0_0").split("_")[0]), int(field("lhs_dilate", i, "1")),
          int(field("rhs_dilate", i, "1"))))
      for i, label in enumerate(spatial))
  m, n, k = outputs["b"], outputs["f"], filters["i"]
  flops = 2.0 * k * n * m * positions
  places = math.prod(outputs[label] for label in spatial)
  return Product(flops, m, n, k * max(1.0, positions / places), _is_fp8(instruction))


@functools.cache
def _valid_positions(window: _WindowDimension) -> int:
  """Counts the (output, filter position) pairs that meet an element of the input."""
  count = 0
  for position in range(window.filter_size):
    for output in range(window.output_size):
      at = output * window.stride + position * window.filter_dilation - window.padding_low
      count += (at % window.input_dilation == 0
                and 0 <= at // window.input_dilation < window.input_size)
  return count


# ----------------------------------------------------------- vector arithmetic


def vector_operations(instruction: Instruction) -> float:
  """Returns the element operations of a plain instruction outside the matrix units.

  Args:
    instruction: any. A fusion itself has none, only its parts; a Pallas kernel may state them.
  Returns:
    Operations; a transcendental function is several (OPERATIONS_PER_ELEMENT).
  """
  if instruction.opcode == "custom-call":
    return (stated_cost(instruction, "vector_operations") or
            stated_cost(instruction, "transcendentals") * OPERATIONS_PER_ELEMENT["exponential"])
  if instruction.opcode in NO_ARITHMETIC or instruction.is_start_or_done:
    return 0.0
  if instruction.opcode in ("reduce", "reduce-window") and instruction.operands:
    return float(sum(array.size for array in instruction.operand_shape(0)))
  return float(OPERATIONS_PER_ELEMENT.get(instruction.opcode, 1)
               * max((array.size for array in instruction.shape), default=0))


# ---------------------------------------------------------------- HBM bytes


def hbm_bytes(instruction: Instruction) -> float:
  """Returns the bytes that an instruction reads from and writes to HBM.

  If only a part of an operand is read (slices, gathers), or a part of the result is written in
  place, only the part counts. Of copies to and from the on-chip memories of a TPU, the HBM side
  counts.

  Args:
    instruction: one that runs as a separate operation; a fusion is counted with its parts.
  Returns:
    Bytes, read and written together.
  """
  if is_free(instruction) or instruction.opcode.endswith("-done"):
    return 0.0
  if instruction.opcode in ("copy-start", "slice-start"):
    return _copied_bytes(instruction)
  if instruction.opcode in ASYNC_CALLS:
    return sum((hbm_bytes(part) for part in instruction.fused.instructions.values()
                if part.opcode not in COLLECTIVES), start=0.0)
  read = sum(_read_bytes(instruction, number) for number in range(len(instruction.operands)))
  # A kernel may read its arguments several times.
  return max(read + _written_bytes(instruction), stated_cost(instruction, "bytes_accessed"))


def _copied_bytes(start: Instruction) -> float:
  """Returns the HBM traffic of an asynchronous copy.

  The shape is (destination, source, ...) or ((source), destination, ...); the smaller one is
  copied.
  """
  destination, source = sorted(start.shape[:2], key=lambda array: array.size)
  return min(source.stored_bytes, destination.stored_bytes) * (source.in_hbm + destination.in_hbm)


def _read_bytes(instruction: Instruction, number: int) -> float:
  """Returns the bytes of an operand, given by its index, that are read from HBM."""
  whole = sum(array.hbm_bytes for array in instruction.operand_shape(number))
  if not whole:
    return 0.0
  part = _part_read(instruction, number)
  return whole if part is None else min(whole, part)


def _part_read(instruction: Instruction, number: int) -> float | None:
  """Returns the bytes of an operand, given by its index, that are read; None if all of them are."""
  if instruction.opcode == "fusion":
    parameter = instruction.fused.parameter(number)
    return 0.0 if parameter is None else _part_used(parameter)
  if number == 0 and instruction.opcode in ("slice", "dynamic-slice", "gather"):
    return instruction.stored_bytes
  if number == 0 and instruction.opcode in ("dynamic-update-slice", "scatter"):
    return 0.0 if instruction.opcode == "dynamic-update-slice" else _update_bytes(instruction)
  return None


def _part_used(value: Instruction) -> float | None:
  """Returns the bytes of a value in a fusion that its users read; None if they read all of them."""
  total = 0.0
  for user in value.users:
    is_alias = user.opcode in ALIASES or _is_relabelled(user)
    for number in (n for n, operand in enumerate(user.operands) if operand == value.name):
      part = _part_used(user) if is_alias else _part_read(user, number)
      if part is None or user.is_root and is_alias:
        return None
      total += part
  return total


def _is_relabelled(instruction: Instruction) -> bool:
  """Returns whether a fusion gives its operand another layout in place, as libtpu does."""
  return (instruction.opcode == "fusion" and instruction.fused.root.opcode in ALIASES
          and "output_to_operand_aliasing" in instruction.attributes)


def _update_bytes(instruction: Instruction) -> float:
  """Returns the bytes of the update of a scatter or a dynamic-update-slice."""
  number = 1 if instruction.opcode == "dynamic-update-slice" else -1
  return sum(array.stored_bytes for array in instruction.operand_shape(number))


def _written_bytes(instruction: Instruction) -> float:
  """Returns the bytes that an instruction writes to HBM."""
  if call_target(instruction).startswith("__cublas$") and len(instruction.shape) > 1:
    # The last of several results is scratch memory, which has the same size for all matmuls.
    return sum(array.hbm_bytes for array in instruction.shape[:-1])
  results = _results(instruction)
  if len(results) == 1:
    return _result_bytes(results[0], instruction.shape, is_only=True)
  shapes = [(array,) for array in instruction.shape[:len(results)]]
  return sum((_result_bytes(result, shape, is_only=False)
              for result, shape in zip(results, shapes, strict=True)), start=0.0)


def _results(instruction: Instruction) -> list[Instruction]:
  """Returns the instructions that compute the results; those of a fusion are inside it."""
  if instruction.opcode != "fusion":
    return [instruction]
  root = instruction.fused.root
  if root.opcode != "tuple":
    return [root]
  return [root.operand(number) for number in range(len(root.operands))]


def _result_bytes(result: Instruction, shape: tuple[Array, ...], is_only: bool) -> float:
  """Returns the bytes of one result that are written to HBM.

  Args:
    result: the instruction that computes it.
    shape: shape of the result in the instruction outside the fusion; its layout names the memory.
    is_only: whether there is no other result.
  """
  while result.opcode in ALIASES and result.operand(0):
    result = result.operand(0)
  whole = sum(array.hbm_bytes for array in shape)
  if result.opcode == "fusion" and is_only:
    return min(whole, _written_bytes(result))
  if result.opcode in ("dynamic-update-slice", "scatter") and any(a.in_hbm for a in shape):
    return _update_bytes(result)
  return whole
