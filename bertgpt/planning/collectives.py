"""Collectives of a compiled program: which devices take part, what they send, over which network.

A group of devices is given by partition ids, which follow the order of the mesh. The places of
these devices determine which links the group uses.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bertgpt.devices import hardware
from bertgpt.planning.hlo import COLLECTIVES, Instruction

Groups = tuple[tuple[int, ...], ...]

_VIEWS = ("bitcast", "reshape", "copy", "convert", "transpose")


class Collective(NamedTuple):
  """One collective operation.

  Attributes:
    kind: one of COLLECTIVES.
    bytes: size of the whole array as one device sees it: the reduced, gathered or exchanged one.
    groups: partition ids of the devices that take part together; for permutes, the pairs.
  """

  kind: str
  bytes: float
  groups: Groups


def is_collective(instruction: Instruction) -> bool:
  """Returns whether an instruction is a collective or starts one."""
  return instruction.opcode.removesuffix("-start") in COLLECTIVES or is_between_slices(instruction)


def is_between_slices(instruction: Instruction) -> bool:
  """Returns whether an instruction starts the sum of an array over TPU slices.

  The compiler does not leave this to a collective, but to a runtime on the hosts (megascale), which
  gets the array by a `send`. The result comes by the `recv` of the same name.
  """
  return (instruction.opcode == "send"
          and instruction.attribute(r"(_xla_megascale_reduce_operation)=") is not None)


def transfer_name(instruction: Instruction) -> str | None:
  """Returns the name that the `send` and the `recv` of a sum over slices share; None for others."""
  return instruction.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"')


def collective_of(instruction: Instruction, num_devices: int) -> Collective | None:
  """Returns the collective that an instruction is or starts.

  Args:
    instruction: any instruction; a fusion itself is never a collective, but its parts may be.
    num_devices: devices that run the program.
  Returns:
    The collective; None for any other instruction.
  """
  if not is_collective(instruction):
    return None
  if is_between_slices(instruction):
    target = instruction.attribute(r'_xla_megascale_target="\{([^}]*)\}x')
    return Collective("all-reduce", sum(array.bytes for array in instruction.operand_shape(0)),
                      _slice_groups(_count_items(target), num_devices))
  kind = instruction.opcode.removesuffix("-start")
  pairs = instruction.attribute(r"source_target_pairs=\{(\{[^=]*?\})\}")
  groups = (_explicit_groups(pairs) if pairs
            else replica_groups(instruction.attributes, num_devices))
  size = sum(array.bytes for number in range(len(instruction.operands))
             for array in instruction.operand_shape(number))
  if kind == "all-reduce" and _is_scattered(instruction):
    kind = "reduce-scatter"
  return Collective(kind, size * (len(groups[0]) if kind == "all-gather" else 1), groups)


def _is_scattered(instruction: Instruction) -> bool:
  """Returns whether an all-reduce is part of a TPU's fusion that leaves each device its slice.

  The fusion runs as a reduce-scatter (its emitter is called AllReduceScatterFusion).
  """
  result = _without_views(instruction.computation.root)
  return (result is not None and result.opcode == "dynamic-slice"
          and _without_views(result.operand(0)) is instruction)


def _without_views(instruction: Instruction | None) -> Instruction | None:
  """Returns the instruction whose elements another one only arranges or rounds."""
  while instruction and instruction.opcode in _VIEWS:
    instruction = instruction.operand(0)
  return instruction


def _count_items(text: str) -> int:
  """Returns how many numbers '1,2' or '1:4' lists; both ends of a range count."""
  ends = [[int(end) for end in part.split(":")] for part in text.split(",")]
  return sum(end[-1] - end[0] + 1 for end in ends)


def _slice_groups(num_slices: int, num_devices: int) -> Groups:
  """Returns groups of the devices at the same place in every slice; slices come first in a mesh."""
  size = num_devices // num_slices
  return tuple(tuple(range(i, num_devices, size)) for i in range(size))


def replica_groups(attributes: str, num_devices: int) -> Groups:
  """Returns the groups of devices of a collective, written in any of XLA's notations.

  {{0,1},{2,3}}   [2,4]<=[4,2]T(1,0)   mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}

  Args:
    attributes: the instruction's attributes.
    num_devices: devices that run the program.
  Returns:
    Partition ids, group by group; all devices in one group if the attributes name none.
  """
  if found := re.search(r"replica_groups=\{(\{[^=]*?\})\}", attributes):
    return _explicit_groups(found[1])
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
    shape, dims, order = map(_integers, found.groups())
    return _iota_groups(dims, order or range(len(dims)), shape[-1])
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? "
                        r"\{([^}]*)\}", attributes):
    return _mesh_groups(*found.groups())
  return (tuple(range(num_devices)),)


def _mesh_groups(mesh: str, device_ids: str | None, axes: str) -> Groups:
  """Returns groups along some axes of a mesh; 'a':(2)4 is a's factor 4 after a factor 2."""
  parts = {name: (int(before or 1), int(size or 0))
           for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", axes)}
  dims, in_group = [], []  # Every axis becomes three: before the part, the part, after it.
  for name, size in re.findall(r"'([^']*)'=(\d+)", mesh):
    before, width = parts.get(name, (int(size), 1))
    width = width or int(size)
    if name in parts:
      in_group.append(len(dims) + 1)
    dims += [before, width, int(size) // (before * width)]
  across = [i for i in range(len(dims)) if i not in in_group]
  groups = _iota_groups(dims, across + in_group, math.prod(dims[i] for i in in_group))
  if not device_ids:
    return groups
  ids = _device_ids(device_ids)
  return tuple(tuple(ids[i] for i in group) for group in groups)


def _device_ids(text: str) -> Sequence[int]:
  """Returns the devices of a mesh in its order, from '[2,4]T(1,0)' or a list."""
  iota = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if not iota:
    return _integers(text)
  shape, order = map(_integers, iota.groups())
  (ids,) = _iota_groups(shape, order or range(len(shape)), math.prod(shape))
  return ids


def _iota_groups(dims: Sequence[int], order: Sequence[int], group_size: int) -> Groups:
  """Returns range(prod(dims)), reshaped to dims, transposed by order and cut into groups."""
  strides = [math.prod(dims[i + 1:]) for i in range(len(dims))]
  flat = [0]
  for axis in order:
    flat = [base + strides[axis] * i for base in flat for i in range(dims[axis])]
  return tuple(tuple(flat[i:i + group_size]) for i in range(0, len(flat), group_size))


def _explicit_groups(text: str) -> Groups:
  return tuple(tuple(_integers(group)) for group in re.findall(r"\{([\d,]+)\}", text))


def _integers(text: str | None) -> list[int]:
  return [int(number) for number in (text or "").split(",") if number]


# -------------------------------------------------------------------- wires


class Place(NamedTuple):
  """A device's place in the machine.

  Attributes:
    slice_index: index of its TPU slice or GPU node.
    coords: coordinates of the chip in its slice, one per axis of the torus; () in a node.
  """

  slice_index: int
  coords: tuple[int, ...]


class Network(NamedTuple):
  """The machine as collectives see it.

  Attributes:
    chip: data sheet of every device.
    places: place of each device by partition id, in the order of the mesh.
    torus: number of chips along each axis of a slice; () for the switch of a GPU node.
    mesh_shape: axis -> size, in the order of the mesh.
  """

  chip: hardware.Chip
  places: Sequence[Place]
  torus: tuple[int, ...]
  mesh_shape: Mapping[str, int]


class Traffic(NamedTuple):
  """The bytes that one run of a collective sends, and their time.

  Attributes:
    fast_bytes: bytes that a device sends over ICI or NVLink.
    slow_bytes: bytes that a device sends over the network between slices or nodes.
    seconds: time on the wires.
    slow_seconds: the part of it on the network between slices or nodes.
  """

  fast_bytes: float
  slow_bytes: float
  seconds: float
  slow_seconds: float


# Number of times that a device sends the array around a ring; 1 for kinds that are not listed.
_ROUNDS = {"all-reduce": 2.0}


def traffic_of(collective: Collective, network: Network) -> Traffic:
  """Returns the traffic of a collective: rings within slices, then between slices or nodes.

  Within a slice, it takes at least `Efficiency.hop_seconds` per chip that data pass on their way
  (Austin et al. 2025, "How to Scale Your Model", part 3).

  Over n devices a gather, a scatter or an exchange of b bytes sends b (n - 1) / n per device, a
  reduction twice that. Between slices, only the n-th part of a gather, a scatter or a reduction
  remains to be sent (ring algorithms: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce
  algorithms for clusters of workstations", J. Parallel Distrib. Comput. 69). In an exchange, every
  device has something for every other one. A permutation takes as long as its slowest pair.

  Args:
    collective: the collective; its first group is taken to represent all groups but pairs.
    network: the machine.
  Returns:
    Bytes per device and seconds, at the share of the bandwidth that `Chip.efficiency` states.
  """
  chip = network.chip
  members = collections.defaultdict(list)  # Coordinates by slice.
  for number in collective.groups[0]:
    members[network.places[number].slice_index].append(network.places[number].coords)
  num_slices, inside = len(members), max(members.values(), key=len)
  rounds = _ROUNDS.get(collective.kind, 1.0)
  hops = rounds * count_hops(inside, network)
  if collective.kind == "collective-permute":
    slices = ({network.places[number].slice_index for number in pair} for pair in collective.groups)
    crosses = any(len(pair) > 1 for pair in slices)
    fast, slow = (0.0, collective.bytes) if crosses else (collective.bytes, 0.0)
    bandwidth, hops = chip.link_bandwidth, 1
  elif collective.kind in ("all-to-all", "ragged-all-to-all"):
    fast = collective.bytes * (1 - 1 / len(inside)) / num_slices
    slow = collective.bytes * (1 - 1 / num_slices)
    bandwidth = fast_bandwidth(inside, network)
  else:
    fast = rounds * collective.bytes * (1 - 1 / len(inside))
    slow = rounds * collective.bytes / len(inside) * (1 - 1 / num_slices)
    bandwidth = fast_bandwidth(inside, network)
  share = chip.efficiency.network
  slow_seconds = slow / (chip.dcn_bandwidth * share)
  fast_seconds = max(fast / (bandwidth * share), hops * chip.efficiency.hop_seconds if fast else 0)
  return Traffic(fast, slow, fast_seconds + slow_seconds, slow_seconds)


def fast_bandwidth(coords: Sequence[tuple[int, ...]], network: Network) -> float:
  """Returns the bytes per second that a device can send within its slice or node.

  A device sends both ways around every ring that it is in. An axis that is no ring is a line, whose
  end has one link.

  Args:
    coords: coordinates of the devices in the group.
    network: the machine.
  Returns:
    Bytes per second of one device, at the peak of its links.
  """
  links = sum(2 if is_ring else 1 for _, is_ring in _sides(coords, network))
  return network.chip.link_bandwidth * max(1, links)


def count_hops(coords: Sequence[tuple[int, ...]], network: Network) -> int:
  """Returns the links between the two devices of a group that are farthest from each other.

  Args:
    coords, network: see `fast_bandwidth`. A switch has no hops.
  """
  return sum(span // 2 if is_ring else span - 1 for span, is_ring in _sides(coords, network))


def _sides(coords, network) -> Iterator[tuple[int, bool]]:
  """Yields the devices of a group along every axis of the torus that it extends along, and whether
  they are a ring.

  For v5e and v6e, an axis of 16 chips closes to a ring. For v4, v5p and TPU7x, all axes do if the
  slice consists of cubes of 4 x 4 x 4 (Austin et al. 2025, "How to Scale Your Model", part 2).
  """
  has_cubes = len(network.torus) == 3 and all(size % 4 == 0 for size in network.torus)
  for axis, size in enumerate(network.torus):
    span = len({c[axis] for c in coords})
    if span > 1:
      yield span, span == size and (has_cubes or len(network.torus) == 2 and size == 16)


def axes_of(group: Sequence[int], mesh_shape: Mapping[str, int]) -> str:
  """Returns the mesh axes along which the devices of a group differ.

  Args:
    group: partition ids of its devices.
    mesh_shape: axis -> size, in the order of the mesh.
  Returns:
    Names, such as 'data+fsdp'; '-' if no axis differs.
  """
  differing, stride = [], 1
  for axis, size in reversed(list(mesh_shape.items())):
    if len({number // stride % size for number in group}) > 1:
      differing.append(axis)
    stride *= size
  return "+".join(reversed(differing)) or "-"
