"""Compiled programs as objects, parsed from XLA's text: modules, computations, instructions.

  text -> parse -> HloModule -> executions: instructions, each with its runs per step

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; `executions`
multiplies everything inside a loop by that count. A program with scanned layers, which compiles
many times faster than an unrolled one, is therefore counted in full.

Sizes are per device: the text is the program after partitioning. Notation: XLA documentation,
"Operation semantics" and "Shapes and layout" (openxla.org/xla, 2025).
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
               "collective-permute", "collective-broadcast")

# Starts of asynchronous calls of a computation, of which `NAME-done` is the end.
ASYNC_CALLS = ("async-start", "call-start", "fusion-start")

# Bits per element of types whose names do not contain this number.
ELEMENT_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


class Array(NamedTuple):
  """The type of one array.

  Attributes:
    bits: bits per element.
    dims: sizes of the dimensions; () for a scalar.
    in_hbm: False for the on-chip memories of a TPU.
    tile: sizes to whose multiples the last dimensions in memory are padded, as `order` has them.
    order: the dimensions, the one whose elements are next to each other first.
  """

  bits: int
  dims: tuple[int, ...]
  in_hbm: bool
  tile: tuple[int, ...] = ()
  order: tuple[int, ...] = ()

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes of its elements."""
    return self.bits * self.size / 8

  @property
  def stored_bytes(self) -> float:
    """Bytes in any memory, with those that fill the tiles of a TPU's layout."""
    dims = list(self.dims)
    for dim, size in zip(self.order, self.tile, strict=False):
      dims[dim] += -dims[dim] % size
    return self.bits * math.prod(dims) / 8

  @property
  def hbm_bytes(self) -> float:
    """Bytes in HBM: all of the array's stored bytes, or 0."""
    return self.stored_bytes if self.in_hbm else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """`name = shape opcode(operands), attributes` in a computation.

  Attributes:
    shape: arrays of the result; nested tuples are flattened.
    operands: names of instructions in the same computation. For a parameter, this is its index; for
      a constant, its value.
    attributes: text after the operands.
    is_root: whether its result is that of the computation.
    computation: the computation that holds it.
  """

  name: str
  shape: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool
  computation: "Computation" = dataclasses.field(repr=False)

  @property
  def stored_bytes(self) -> float:
    """Bytes of the result in memory."""
    return sum(array.stored_bytes for array in self.shape)

  @property
  def is_start_or_done(self) -> bool:
    """Whether it is one half of an asynchronous pair."""
    return self.opcode.endswith(("-start", "-done"))

  @property
  def users(self) -> list["Instruction"]:
    """Instructions that have it as an operand."""
    return [i for i in self.computation.instructions.values() if self.name in i.operands]

  @property
  def fused(self) -> "Computation":
    """The computation inside a fusion, or that a call runs."""
    ((computation, _),) = self.called()
    return computation

  def attribute(self, pattern: str) -> str | None:
    """Searches the attributes.

    Args:
      pattern: a regular expression with a group.
    Returns:
      The text of the first group; None if the attributes do not match.
    """
    found = re.search(pattern, self.attributes)
    return found[1] if found else None

  def operand(self, number: int) -> "Instruction | None":
    """Returns an operand.

    Args:
      number: position among the operands; -1 is the last.
    Returns:
      The instruction; None if the operand is something else, such as a parameter's index.
    """
    return self.computation.instructions.get(self.operands[number])

  def operand_shape(self, number: int) -> tuple[Array, ...]:
    """Returns the arrays of an operand.

    Args:
      number: position among the operands; -1 is the last.
    Returns:
      Its arrays; () if the operand is not an instruction.
    """
    operand = self.operand(number)
    return operand.shape if operand else ()

  def called(self) -> list[tuple["Computation", float]]:
    """Returns (computation, runs per run of this instruction) for everything that it calls.

    The element functions of reductions are left out.
    """
    computations = self.computation.module.computations
    if self.opcode == "while":
      return [(computations[self.attribute(r"body=%?([\w.$-]+)")], trip_count(self))]
    if self.opcode == "conditional":
      listed = self.attribute(r"branch_computations=\{([^}]*)\}")
      names = listed.split(",") if listed else [
          self.attribute(rf"{value}_computation=%?([\w.$-]+)") for value in ("false", "true")]
      share = self.computation.module.true_share
      runs = [1 - share, share] if share is not None and len(names) == 2 else len(names) * [1.0]
      return [(computations[name.strip().lstrip("%")], n)
              for name, n in zip(names, runs, strict=True)]
    if self.opcode in ("fusion", "call", *ASYNC_CALLS):
      name = self.attribute(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.$-]+)")
      return [(computations[name], 1.0)]
    return []

  def parts(self) -> Iterator["Instruction"]:
    """Yields the instruction itself and, if it is a fusion or a call, everything inside."""
    yield self
    if self.opcode in ("fusion", "call", *ASYNC_CALLS):
      for part in self.fused.instructions.values():
        yield from part.parts()


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """A function of the module: its instructions by name, in the order in which they are scheduled.
  """

  name: str
  module: "HloModule" = dataclasses.field(repr=False)
  instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict, repr=False)

  @property
  def root(self) -> Instruction:
    """The instruction whose result is that of the computation."""
    return next(i for i in self.instructions.values() if i.is_root)

  def parameter(self, number: int) -> Instruction | None:
    """Returns a parameter.

    Args:
      number: position of the parameter, from 0.
    Returns:
      The parameter; None if there is no such parameter.
    """
    return next((i for i in self.instructions.values()
                 if i.opcode == "parameter" and i.operands == (str(number),)), None)


@dataclasses.dataclass(eq=False)
class HloModule:
  """A compiled program.

  Attributes:
    entry: name of the computation that a step runs.
    computations: computations by name.
    true_share: share of the runs of a conditional with two branches whose condition is true. None:
      all branches are counted as if they ran every time.
  """

  entry: str = ""
  computations: dict[str, Computation] = dataclasses.field(default_factory=dict)
  true_share: float | None = None


# ------------------------------------------------------------------ parsing


_HEADER = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")


def parse(text: str, true_share: float | None = None) -> HloModule:
  """Parses the text of a compiled program.

  Args:
    text: `compiled.as_text()`.
    true_share: see `HloModule`.
  Returns:
    The module.
  Raises:
    ValueError: an instruction's parentheses do not match.
  """
  module, computation = HloModule(true_share=true_share), None
  # Metadata of a Pallas kernel may span several lines in the middle of its instruction.
  for line in text.replace("={\n", "={").replace("\n}}", "}}").splitlines():
    if header := _HEADER.match(line):
      computation = Computation(header[2], module)
      module.computations[computation.name] = computation
      if header[1]:
        module.entry = computation.name
    elif computation and (start := _INSTRUCTION.match(line)):
      definition = _COMMENT.sub("", line[start.end():])
      instruction = _parse_instruction(start[2], definition, bool(start[1]), computation)
      computation.instructions[instruction.name] = instruction
  return module


def _parse_instruction(name: str, definition: str, is_root: bool,
                       computation: Computation) -> Instruction:
  """Parses the text that follows `name = `."""
  split = (_end_of_parentheses(definition, 0) if definition.startswith("(")
           else definition.index(" "))
  shape, rest = definition[:split], definition[split:].lstrip()
  opening = rest.index("(")
  closing = _end_of_parentheses(rest, opening)
  opcode = rest[:opening]
  if opcode in ("parameter", "constant"):
    operands = (rest[opening + 1:closing - 1],)
  else:
    operands = tuple(re.findall(r"%([\w.$-]+)", rest[opening:closing]))
  return Instruction(name, parse_shape(shape), opcode, operands, rest[closing:], is_root,
                     computation)


def _end_of_parentheses(text: str, start: int) -> int:
  """Returns the index after the parenthesis that closes the one at `start`."""
  depth = 0
  for at in range(start, len(text)):
    depth += (text[at] == "(") - (text[at] == ")")
    if not depth:
      return at + 1
  raise ValueError(f"unbalanced parentheses: {text[:80]}")


def parse_shape(text: str) -> tuple[Array, ...]:
  """Parses 'f32[2,3]{1,0}' or a tuple of shapes.

  Args:
    text: one shape, with or without its layout. In a layout, `S(n)` with n > 0 is on-chip memory;
      the numbers before `T(8,128)` are the dimensions, the tile's last one first.
  Returns:
    Its arrays; nested tuples are flattened.
  """
  arrays = []
  for element_type, dims, layout in _ARRAY.findall(text):
    sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
    memory = re.search(r"S\((\d+)\)", layout)
    tiled = re.search(r"([\d,]+):T\(([\d,]+)\)", layout)
    order, tile = map(_integers, tiled.groups()) if tiled else ((), ())
    arrays.append(Array(element_bits(element_type), sizes, not memory or memory[1] == "0",
                        tile[::-1], order))
  return tuple(arrays)


def _integers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(","))


def element_bits(element_type: str) -> int:
  """Returns the bits per element of a type: 16 for 'bf16', 8 for 'f8e4m3fn', 4 for 's4'."""
  if element_type in ELEMENT_BITS:
    return ELEMENT_BITS[element_type]
  return int(re.search(r"\d+", element_type)[0])


# ------------------------------------------------------------------ walking


class Execution(NamedTuple):
  """An instruction that runs as a separate operation, and its runs per step."""

  instruction: Instruction
  runs: float


def executions(module: HloModule) -> Iterator[Execution]:
  """Yields the instructions that a step runs, in the order of the schedule.

  Args:
    module: the compiled step.
  Yields:
    Every instruction outside fusions and asynchronous calls. Instructions in loops are multiplied
    by the trip counts, those in the branches of a conditional by its share: `module.true_share`.
  """
  yield from _executions(module.computations[module.entry], 1.0)


def _executions(computation: Computation, runs: float) -> Iterator[Execution]:
  for instruction in computation.instructions.values():
    if instruction.opcode in ("while", "call", "conditional"):
      for called, runs_per_call in instruction.called():
        yield from _executions(called, runs * runs_per_call)
    else:
      yield Execution(instruction, runs)


def trip_count(loop: Instruction) -> float:
  """Returns how often the body of a loop runs.

  Args:
    loop: a `while` that counts by 1, made by `scan` or `fori_loop`.
  Returns:
    The count that the compiler states, otherwise the distance from the first value of the loop's
    counter to the largest integer in its condition; 1 if there is neither, and at least 1.
  """
  known = loop.attribute(r'known_trip_count[^}]*?"n":\s*"(\d+)"')
  if known:
    return float(known)
  condition = loop.computation.module.computations[loop.attribute(r"condition=%?([\w.$-]+)")]
  limits = [int(i.operands[0]) for i in condition.instructions.values()
            if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.operands[0])]
  if not limits:
    return 1.0
  comparison = condition.root
  reaches_limit = comparison.attribute(r"direction=(LE|GE)") is not None
  return max(1.0, float(abs(max(limits) - _first_value(loop, comparison)) + reaches_limit))


def _first_value(loop: Instruction, comparison: Instruction) -> int:
  """Returns the first value of a loop's counter; 0 if the program does not show it.

  The compiler may run the first iteration before the loop, which then starts with 1.
  """
  counter, start = comparison.operand(0), loop.operand(0)
  index = counter.attribute(r"index=(\d+)") if counter else None
  if index is None or start is None or start.opcode != "tuple":
    return 0
  value = start.operand(int(index))
  while value and value.opcode == "copy":
    value = value.operand(0)
  return int(value.operands[0]) if value and value.opcode == "constant" else 0
