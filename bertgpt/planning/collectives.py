"""Collectives of a compiled program: who takes part, what they send, over which network.

A group of devices is known by its partition numbers, which follow the order of the mesh; where
these devices lie says which wires it uses.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bertgpt.devices import hardware
from bertgpt.planning.hlo import COLLECTIVES, Computation, Instruction


class Collective(NamedTuple):
  """One collective operation.

  Attributes:
    kind: one of COLLECTIVES.
    bytes: of the whole array as one device sees it: the reduced, the gathered, the exchanged.
    groups: partition numbers of the devices that take part together; for permutes the pairs.
  """

  kind: str
  bytes: float
  groups: tuple[tuple[int, ...], ...]


def collective_of(instruction: Instruction, computation: Computation,
                  num_devices: int) -> Collective | None:
  """The collective that an instruction is or starts, or None."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in COLLECTIVES:
    return None
  pairs = instruction.attribute(r"source_target_pairs=\{(\{[^=]*?\})\}")
  groups = _explicit(pairs) if pairs else replica_groups(instruction.attributes, num_devices)
  size = sum(a.bytes for name in instruction.operands for a in computation.shape(name))
  return Collective(kind, size * (len(groups[0]) if kind == "all-gather" else 1), groups)


def replica_groups(attributes: str, num_devices: int) -> tuple[tuple[int, ...], ...]:
  """The groups in any of XLA's notations; without any, all devices are one group.

  {{0,1},{2,3}}   [2,4]<=[4,2]T(1,0)   mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}
  """
  if found := re.search(r"replica_groups=\{(\{[^=]*?\})\}", attributes):
    return _explicit(found[1])
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
    shape, dims, order = ([int(x) for x in (text or "").split(",") if x] for text in found.groups())
    return _iota_groups(dims, order or range(len(dims)), shape[-1])
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? "
                        r"\{([^}]*)\}", attributes):
    return _mesh_groups(*found.groups())
  return (tuple(range(num_devices)),)


def _mesh_groups(mesh: str, device_ids: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
  """Groups along some axes of a mesh; an axis may be used in part: 'a':(2)4 is 4 after 2."""
  dims, used = [], []
  parts = {name: (int(before or 1), int(size or 0))
           for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", axes)}
  for name, size in re.findall(r"'([^']*)'=(\d+)", mesh):
    before, width = parts.get(name, (int(size), 1))
    width = width or int(size)
    if name in parts:
      used.append(len(dims) + 1)
    dims += [before, width, int(size) // (before * width)]
  kept = [i for i in range(len(dims)) if i not in used]
  groups = _iota_groups(dims, kept + used, math.prod(dims[i] for i in used))
  if not device_ids:
    return groups
  if iota := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids):
    shape, order = ([int(x) for x in (text or "").split(",") if x] for text in iota.groups())
    (ids,) = _iota_groups(shape, order or range(len(shape)), math.prod(shape))
  else:
    ids = [int(x) for x in device_ids.split(",")]
  return tuple(tuple(ids[i] for i in group) for group in groups)


def _iota_groups(dims, order, group_size) -> tuple[tuple[int, ...], ...]:
  """range(prod(dims)) reshaped to dims, transposed by order, cut into groups."""
  strides = [math.prod(dims[i + 1:]) for i in range(len(dims))]
  flat = [0]
  for axis in order:
    flat = [base + strides[axis] * i for base in flat for i in range(dims[axis])]
  return tuple(tuple(flat[i:i + group_size]) for i in range(0, len(flat), group_size))


def _explicit(text: str) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(int(x) for x in group.split(","))
               for group in re.findall(r"\{([\d,]+)\}", text))


# -------------------------------------------------------------------- wires


class Place(NamedTuple):
  """Where a device is: number of its slice or node, and its coordinates inside."""

  island: int
  coords: tuple[int, ...]


class Network(NamedTuple):
  """The machine as collectives see it.

  Attributes:
    places: by partition number, which is the order of the mesh.
    torus: chips of a slice along its axes; () for the switch of a GPU node.
    mesh_shape: axis -> size, in the order of the mesh.
  """

  chip: hardware.Chip
  places: Sequence[Place]
  torus: tuple[int, ...]
  mesh_shape: Mapping[str, int]


class Traffic(NamedTuple):
  """What one group's collective puts on the wires, bytes a device and seconds."""

  fast_bytes: float
  slow_bytes: float
  seconds: float


# Sends of a device in a ring, as a share of the array.
_ROUNDS = {"all-reduce": 2.0}


def traffic_of(collective: Collective, network: Network) -> Traffic:
  """Rings along every axis of a slice that the group spans, then between slices or nodes.

  Of an array of b bytes over n devices a gather, a scatter or an exchange sends b (n - 1) / n, a
  reduction twice that; between m islands only the n-th part of it is left to send.
  """
  chip, group = network.chip, collective.groups[0]
  members = collections.defaultdict(list)
  for number in group:
    members[network.places[number].island].append(network.places[number].coords)
  islands, inside = len(members), max(members.values(), key=len)
  if collective.kind == "collective-permute":
    fast, slow = (0.0, collective.bytes) if islands > 1 else (collective.bytes, 0.0)
    bandwidth = chip.link_bandwidth
  else:
    rounds = _ROUNDS.get(collective.kind, 1.0)
    fast = rounds * collective.bytes * (1 - 1 / len(inside))
    slow = rounds * collective.bytes / len(inside) * (1 - 1 / islands)
    bandwidth = fast_bandwidth(inside, network)
  seconds = (fast / bandwidth + slow / chip.dcn_bandwidth) / hardware.EFFICIENCY["network"]
  return Traffic(fast, slow, seconds)


def fast_bandwidth(coords: Sequence[tuple[int, ...]], network: Network) -> float:
  """Bytes a second that a device can send in its group: both ways round every ring it is in.

  An axis closes to a ring where the slice has the whole of it: 16 chips of a v5e or v6e, a
  multiple of 4 of a v4 or v5p. Otherwise it is a line, whose end has one link.
  """
  chip = network.chip
  if not network.torus:
    return chip.link_bandwidth
  links = 0
  for axis, size in enumerate(network.torus):
    span = len({c[axis] for c in coords})
    if span > 1:
      closed = span == size and (size % 4 == 0 if len(network.torus) == 3 else size == 16)
      links += 2 if closed else 1
  return chip.link_bandwidth * max(1, links)


def axes_of(group: Sequence[int], mesh_shape: Mapping[str, int]) -> str:
  """Mesh axes along which the devices of a group differ, as 'data+fsdp'; '-' for none."""
  differing, stride = [], 1
  for axis, size in reversed(mesh_shape.items()):
    if len({number // stride % size for number in group}) > 1:
      differing.append(axis)
    stride *= size
  return "+".join(reversed(differing)) or "-"
