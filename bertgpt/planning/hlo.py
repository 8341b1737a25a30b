"""What a compiled program does, read from its text: matrix products, bytes, collectives.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; here the walk
from the entry multiplies everything inside a loop by it. A program with scanned layers, which
compiles many times faster than an unrolled one, is thus counted in full.

  text -> parse -> Program -> walk -> kernels, each with how often a step runs it

Sizes are of one device: the text is the program after partitioning.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

# Bits of an element.
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
               "collective-permute", "collective-broadcast")

# Neither read nor write memory: names for what is there, and what is counted by its own parts.
FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "replica-id", "add-dependency"})

# Move or name elements and compute nothing.
NO_ARITHMETIC = FREE | {
    "broadcast", "reshape", "transpose", "copy", "slice", "dynamic-slice", "dynamic-update-slice",
    "pad", "concatenate", "gather", "scatter", "iota", "reverse", "convert", "bitcast-convert",
    "fusion", "dot", "convolution", "custom-call", *COLLECTIVES}
# Steps of a polynomial on a vector unit (assumption); everything else is one.
SLOW_ARITHMETIC = {"exponential": 6, "log": 6, "tanh": 8, "logistic": 8, "power": 12, "divide": 4,
                   "sqrt": 4, "rsqrt": 4, "erf": 12, "sine": 12, "cosine": 12}

ALIASES = ("bitcast", "reshape", "get-tuple-element", "convert", "copy")


class Array(NamedTuple):
  """One array of a shape; `in_hbm` is False for TPU's on-chip memories."""

  bits: int
  dims: tuple[int, ...]
  in_hbm: bool

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    return self.bits * self.size / 8

  @property
  def hbm_bytes(self) -> float:
    return self.bytes if self.in_hbm else 0


class Instruction(NamedTuple):
  """`name = shape opcode(operands), attributes`. A tuple's arrays are flat in `shape`."""

  name: str
  shape: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def attribute(self, pattern: str) -> str | None:
    found = re.search(pattern, self.attributes)
    return found and found[1]


class Computation(NamedTuple):
  name: str
  instructions: Mapping[str, Instruction]

  @property
  def root(self) -> Instruction:
    return next(i for i in self.instructions.values() if i.is_root)

  def shape(self, name: str) -> tuple[Array, ...]:
    return self.instructions[name].shape if name in self.instructions else ()

  def users(self, name: str) -> list[Instruction]:
    return [i for i in self.instructions.values() if name in i.operands]


class Program(NamedTuple):
  entry: str
  computations: Mapping[str, Computation]


# ------------------------------------------------------------------ reading


_HEADER = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")


def parse(text: str) -> Program:
  """Reads the text of a compiled module, `compiled.as_text()`."""
  computations, entry, name, instructions = {}, "", "", {}
  for line in text.splitlines():
    if header := _HEADER.match(line):
      name, instructions = header[2], {}
      computations[name] = Computation(name, instructions)
      entry = name if header[1] else entry
    elif name and (start := _INSTRUCTION.match(line)):
      rest = _COMMENT.sub("", line[start.end():])
      instruction = _parse_instruction(start[2], rest, bool(start[1]))
      instructions[instruction.name] = instruction
  return Program(entry, computations)


def _parse_instruction(name: str, rest: str, is_root: bool) -> Instruction:
  split = _end_of_parentheses(rest, 0) if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:split], rest[split:].lstrip()
  opening = rest.index("(")
  closing = _end_of_parentheses(rest, opening)
  operands = tuple(re.findall(r"%([\w.$-]+)", rest[opening:closing]))
  if rest[:opening] in ("parameter", "constant"):
    operands = (rest[opening + 1:closing - 1],)  # Its number, its value.
  return Instruction(name, parse_shape(shape), rest[:opening], operands, rest[closing:], is_root)


def _end_of_parentheses(text: str, start: int) -> int:
  depth = 0
  for at in range(start, len(text)):
    depth += (text[at] == "(") - (text[at] == ")")
    if not depth:
      return at + 1
  raise ValueError(f"unbalanced parentheses: {text[:80]}")


def parse_shape(text: str) -> tuple[Array, ...]:
  """The arrays of 'f32[2,3]{1,0}' or of a tuple, nested ones flat."""
  arrays = []
  for kind, dims, layout in _ARRAY.findall(text):
    sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
    memory = re.search(r"S\((\d+)\)", layout)
    arrays.append(Array(bits_of(kind), sizes, not memory or memory[1] == "0"))
  return tuple(arrays)


def bits_of(kind: str) -> int:
  """Of an element: 'bf16' 16, 'f8e4m3fn' 8, 's4' 4."""
  return BITS[kind] if kind in BITS else int(re.search(r"\d+", kind)[0])


# ------------------------------------------------------------------ walking


class Kernel(NamedTuple):
  """An operation of its own, and how often a step runs it."""

  instruction: Instruction
  computation: Computation
  times: float


def walk(program: Program) -> Iterator[Kernel]:
  """Every kernel in the order of a step, loops by their trip counts, branches as if all ran."""
  yield from _walk(program, program.computations[program.entry], 1.0)


def _walk(program, computation, times) -> Iterator[Kernel]:
  for instruction in computation.instructions.values():
    if instruction.opcode in ("while", "call", "conditional", "async-start"):
      for name, count in _called(program, instruction):
        yield from _walk(program, program.computations[name], times * count)
    else:
      yield Kernel(instruction, computation, times)


def parts(program: Program, instruction: Instruction,
          computation: Computation) -> Iterator[tuple[Instruction, Computation]]:
  """A kernel and, where it is a fusion, everything in it."""
  yield instruction, computation
  if instruction.opcode == "fusion":
    inner = program.computations[_called(program, instruction)[0][0]]
    for part in inner.instructions.values():
      yield from parts(program, part, inner)


def _called(program: Program, instruction: Instruction) -> list[tuple[str, float]]:
  """(computation, runs) of a call; the element functions of reductions are left out."""
  if instruction.opcode == "while":
    return [(instruction.attribute(r"body=%?([\w.$-]+)"), trip_count(program, instruction))]
  if instruction.opcode == "conditional":
    names = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    names = names or ",".join(re.findall(r"(?:true|false)_computation=%?([\w.$-]+)",
                                         instruction.attributes))
    return [(name.strip().lstrip("%"), 1.0) for name in names.split(",")]
  if instruction.opcode in ("fusion", "call", "async-start"):
    name = instruction.attribute(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.$-]+)")
    return [(name, 1.0)]
  return []


def trip_count(program: Program, loop: Instruction) -> float:
  """Of a `while` that counts from 0 by 1, as those of `scan` and `fori_loop`; else 1."""
  known = loop.attribute(r'known_trip_count[^}]*?"n":\s*"(\d+)"')
  if known:
    return float(known)
  condition = program.computations[loop.attribute(r"condition=%?([\w.$-]+)")]
  limits = [int(i.operands[0]) for i in _integer_constants(condition)]
  return float(max(limits, default=1))


def _integer_constants(computation: Computation) -> list[Instruction]:
  return [i for i in computation.instructions.values()
          if i.opcode == "constant" and i.operands and i.operands[0].isdigit()]


# ------------------------------------------------------------ matrix products


class Product(NamedTuple):
  """A batch of matrix products [m, k] x [k, n], `flops` in all."""

  flops: float
  m: float
  n: float
  k: float


def product_of(instruction: Instruction, computation: Computation) -> Product | None:
  """The work of a dot, a convolution or a call of cuBLAS; None for anything else."""
  if instruction.opcode == "dot" or instruction.opcode == "custom-call" and \
      "__cublas$" in instruction.attributes:
    return _dot(instruction, computation)
  if instruction.opcode == "convolution":
    return _convolution(instruction, computation)
  return None


def _dot(instruction, computation) -> Product:
  lhs, rhs = (computation.shape(name)[0].dims for name in instruction.operands[:2])
  dims = functools.partial(_dimensions, instruction)
  contracted = dims("lhs_contracting_dims", "lhs_contracting_dimensions")
  batch = dims("lhs_batch_dims", "lhs_batch_dimensions")
  k = math.prod(lhs[d] for d in contracted)
  batches = math.prod(lhs[d] for d in batch)
  m, n = math.prod(lhs) / (k * batches), math.prod(rhs) / (k * batches)
  return Product(2.0 * batches * m * n * k, m, n, k)


def _dimensions(instruction: Instruction, *names: str) -> list[int]:
  """A dimension list, in HLO's own notation or in cuBLAS's JSON."""
  for name in names:
    text = instruction.attribute(rf'"?{name}"?[=:][{{\[]([^}}\]]*)[}}\]]')
    if text is not None:
      return [int(d) for d in re.findall(r"\d+", text)]
  return []


def _convolution(instruction, computation) -> Product:
  """On TPU every product is one; windows with dilation and padding spell out batches.

  A position of the window counts where it meets an element of the input (XLA's
  HloCostAnalysis::HandleConvolution).
  """
  lhs, rhs = (computation.shape(name)[0].dims for name in instruction.operands[:2])
  out = instruction.shape[0].dims
  in_labels, kernel_labels, out_labels = re.match(
      r"(\w+)_(\w+)->(\w+)", instruction.attribute(r"dim_labels=(\S+?)(?:,|\s|$)")).groups()
  window = {"size": None, "stride": None, "pad": None, "lhs_dilate": None, "rhs_dilate": None}
  text = instruction.attribute(r"window=\{([^}]*)\}") or ""
  window |= dict(item.split("=") for item in text.split())
  spatial = sorted(c for c in out_labels if c.isdigit())
  get = lambda field, i, default: (window[field].split("x")[i] if window[field] else default)
  positions = 1
  for i, c in enumerate(spatial):
    low, high = map(int, get("pad", i, "0_0").split("_"))
    del high  # The number of outputs says it.
    positions *= _valid_positions(
        lhs[in_labels.index(c)], rhs[kernel_labels.index(c)], out[out_labels.index(c)],
        int(get("stride", i, 1)), low, int(get("lhs_dilate", i, 1)), int(get("rhs_dilate", i, 1)))
  k = rhs[kernel_labels.index("i")]
  groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
  m, n = out[out_labels.index("b")], out[out_labels.index("f")]
  flops = 2.0 * k * n * m * positions / groups
  outputs = math.prod(out[out_labels.index(c)] for c in spatial)
  return Product(flops, m, n, k * max(1.0, positions / outputs))


@functools.cache
def _valid_positions(size, kernel, outputs, stride, low, lhs_dilate, rhs_dilate) -> int:
  """(output, kernel position) pairs of one dimension that meet an element of the input."""
  count = 0
  for position in range(kernel):
    for out in range(outputs):
      at = out * stride + position * rhs_dilate - low
      count += at % lhs_dilate == 0 and 0 <= at // lhs_dilate < size
  return count


# ----------------------------------------------------------- vector arithmetic


def vector_operations(instruction: Instruction, computation: Computation) -> float:
  """Element operations outside the matrix units, of a plain instruction."""
  if instruction.opcode in NO_ARITHMETIC or instruction.opcode.endswith(("-start", "-done")):
    return 0.0
  if instruction.opcode in ("reduce", "reduce-window") and instruction.operands:
    return float(sum(a.size for a in computation.shape(instruction.operands[0])))
  return float(SLOW_ARITHMETIC.get(instruction.opcode, 1)
               * max((a.size for a in instruction.shape), default=0))


# ---------------------------------------------------------------- HBM bytes


def hbm_bytes(program: Program, instruction: Instruction, computation: Computation) -> float:
  """Bytes that a kernel reads from and writes to HBM.

  Where only a part of an operand is read (slices, gathers), or a part of a result written in
  place, the part counts. Copies to and from TPU's on-chip memory count on the side of HBM.
  """
  if (instruction.opcode in FREE or instruction.opcode.endswith("-done")
      or 'custom_call_target="AllocateBuffer"' in instruction.attributes):
    return 0.0
  if instruction.opcode in ("copy-start", "slice-start"):
    # (destination, source, ...) or ((source), destination, ...): the smaller is what moves.
    source, destination = sorted(instruction.shape[:2], key=lambda a: a.size)[::-1]
    moved = min(source.bytes, destination.bytes)
    return moved * (source.in_hbm + destination.in_hbm)
  read = sum(_read_bytes(program, computation, operand, instruction, number)
             for number, operand in enumerate(instruction.operands))
  return read + _written_bytes(program, instruction, computation)


def _read_bytes(program, computation, name, user, number) -> float:
  """Bytes of the operand `name` that `user`, whose operand of this number it is, reads."""
  arrays = computation.shape(name)
  whole = sum(a.hbm_bytes for a in arrays)
  if not whole:
    return 0.0
  part = _part_read(program, user, computation, number)
  return whole if part is None else min(whole, part)


def _part_read(program, user, computation, number) -> float | None:
  """Bytes of its operand of this number that `user` reads, None for all of it."""
  if user.opcode in ("dynamic-slice", "slice") or user.opcode == "gather" and number == 0:
    return sum(a.bytes for a in user.shape) if number == 0 else None
  if user.opcode == "dynamic-update-slice" and number == 0:
    return 0.0
  if user.opcode == "scatter" and number == 0:
    return sum(a.bytes for a in computation.shape(user.operands[-1]))
  if user.opcode == "fusion":
    inner = program.computations[_called(program, user)[0][0]]
    parameter = next((i.name for i in inner.instructions.values()
                      if i.opcode == "parameter" and i.operands == (str(number),)), None)
    return 0.0 if parameter is None else _part_used(program, inner, parameter)
  return None


def _part_used(program, computation, name) -> float | None:
  """Bytes of a fused computation's parameter that all its users together read."""
  total = 0.0
  for user in computation.users(name):
    for number in (n for n, operand in enumerate(user.operands) if operand == name):
      part = (_part_used(program, computation, user.name) if user.opcode in ALIASES
              else _part_read(program, user, computation, number))
      if part is None or user.is_root and user.opcode in ALIASES:
        return None
      total += part
  return total


def _written_bytes(program, instruction, computation) -> float:
  results = [instruction]
  if instruction.opcode == "fusion":
    computation = program.computations[_called(program, instruction)[0][0]]
    root = computation.root
    results = ([computation.instructions[name] for name in root.operands]
               if root.opcode == "tuple" else [root])
  written = 0.0
  for result, shape in zip(results, _by_result(instruction.shape, len(results)), strict=True):
    while result.opcode in ALIASES and result.operands[0] in computation.instructions:
      result = computation.instructions[result.operands[0]]
    if result.opcode == "fusion" and len(results) == 1:
      written += min(sum(a.hbm_bytes for a in shape),
                     _written_bytes(program, result, computation))
    elif result.opcode in ("dynamic-update-slice", "scatter") and any(a.in_hbm for a in shape):
      update = result.operands[1 if result.opcode == "dynamic-update-slice" else -1]
      written += sum(a.bytes for a in computation.shape(update))
    else:
      written += sum(a.hbm_bytes for a in shape)
  return written


def _by_result(shape: Sequence[Array], count: int) -> list[Sequence[Array]]:
  return [shape] if count == 1 else [(array,) for array in shape[:count]]
