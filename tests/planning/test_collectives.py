"""bertgpt.planning.collectives: kinds, bytes, groups and networks, against known answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bertgpt.devices import data_parallel, hardware, sharding
from bertgpt.planning import collectives, hlo, roofline, topologies
from bertgpt.planning.collectives import Collective, Network, Place

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
BYTES = 256 * 4  # Bytes of the array that every device holds.


def collectives_of(function):
  """Returns (kind, axes, bytes, runs) for a function that 8 devices call on f32 [256]."""
  mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh):
    mapped = jax.shard_map(function, in_specs=PartitionSpec(tuple(MESH)),
                           out_specs=PartitionSpec(tuple(MESH)), check_vma=False)
    text = jax.jit(mapped).lower(jnp.ones(8 * 256)).compile().as_text()
  return [(c.kind, collectives.axes_of(c.groups[0], MESH), c.bytes, execution.runs)
          for execution in hlo.executions(hlo.parse(text))
          if (c := collectives.collective_of(execution.instruction, 8))]


def ring(axis):
  return [(i, (i + 1) % MESH[axis]) for i in range(MESH[axis])]


@pytest.mark.parametrize("function, expected", [
    (lambda x: jax.lax.psum(x, "fsdp"), ("all-reduce", "fsdp", BYTES, 1)),
    (lambda x: jax.lax.psum(x, ("data", "tensor")), ("all-reduce", "data+tensor", BYTES, 1)),
    (lambda x: jax.lax.psum(x, tuple(MESH)), ("all-reduce", "data+fsdp+tensor", BYTES, 1)),
    (lambda x: jax.lax.all_gather(x, "data").sum(0), ("all-gather", "data", 2 * BYTES, 1)),
    (lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True).repeat(2),
     ("reduce-scatter", "tensor", BYTES, 1)),
    (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True),
     ("all-to-all", "fsdp", BYTES, 1)),
    (lambda x: jax.lax.ppermute(x, "data", ring("data")),
     ("collective-permute", "data", BYTES, 1)),
    (lambda x: jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.sin(x), "fsdp"), None), x, None,
                            length=5)[0],
     ("all-reduce", "fsdp", BYTES, 5))])
def test_known_collectives_of_a_compiled_program(function, expected):
  assert collectives_of(function) == [expected]


def test_a_program_without_collectives():
  assert collectives_of(jnp.sin) == []


FUSED = """HloModule m

%all-reduce-scatter (input: f32[30592,256]) -> f32[3840,256] {
  %input = f32[30592,256]{1,0:T(8,128)} parameter(0)
  %zero = f32[] constant(0)
  %pad = f32[30720,256]{1,0:T(8,128)} pad(%input, %zero), padding=0_128x0_0
  %sum = f32[30720,256]{1,0:T(8,128)} all-reduce(%pad), replica_groups={{0,1,2,3,4,5,6,7}}
  %id = u32[] partition-id()
  %rows = u32[] constant(3840)
  %first = u32[] multiply(%id, %rows)
"""
PART = "%part = f32[3840,256]{1,0} dynamic-slice(%sum, %first, %zero)"


@pytest.mark.parametrize("rest, kind", [
    (f"  ROOT {PART}", "reduce-scatter"),
    (f"  {PART}\n  ROOT %view = f32[480,8,256]{{2,1,0}} bitcast(%part)", "reduce-scatter"),
    (f"  {PART}\n  ROOT %all = (f32[3840,256]{{1,0}}, f32[30720,256]{{1,0}}) tuple(%part, %sum)",
     "all-reduce"),
    (f"  ROOT {PART.replace('%sum', '%pad')}", "all-reduce")])
def test_a_sum_of_which_each_device_keeps_a_part_is_a_scatter(rest, kind):
  """TPUs run such a fusion, here as libtpu 0.0.42 writes it, in one pass around the ring."""
  (computation,) = hlo.parse(f"{FUSED}{rest}\n}}\n").computations.values()
  collective = collectives.collective_of(computation.instructions["sum"], 8)
  assert (collective.kind, collective.bytes) == (kind, 30720 * 256 * 4)
  assert collective.groups == (tuple(range(8)),)


# Devices 0 to 7 as [data, fsdp, tensor]; groups along fsdp, in every notation of XLA.
ALONG_FSDP = ((0, 2), (1, 3), (4, 6), (5, 7))


@pytest.mark.parametrize("text", [
    "replica_groups={{0,2},{1,3},{4,6},{5,7}}, use_global_device_ids=true",
    "replica_groups=[4,2]<=[2,2,2]T(0,2,1), metadata={}",
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, x=1",
    "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}",
    "replica_groups=mesh['b'=2,'a'=4], device_ids=([2,2,2]T(1,0,2)) {'b'}",
    "replica_groups=mesh['b'=2,'a'=4], device_ids=(0,1,4,5,2,3,6,7) {'b'}"])
def test_all_notations_of_groups(text):
  assert collectives.replica_groups(f"channel_id=1, {text}", 8) == ALONG_FSDP


def test_without_groups_all_take_part():
  assert collectives.replica_groups("replica_groups={}, to_apply=%add", 4) == ((0, 1, 2, 3),)


# ------------------------------------------------------------------- wires


CHIP = hardware.CHIPS["v5e"]._replace(link_bandwidth=1e9, dcn_bandwidth=1e8)
GRID = {(x, y): 16 * x + y for x in range(16) for y in range(16)}


def slices(count=1):
  places = [Place(i, xy) for i in range(count) for xy in GRID]
  return Network(CHIP, places, (16, 16), {"data": len(places)})


def send(kind, group, network, size=1e6):
  return collectives.traffic_of(Collective(kind, size, (tuple(group),)), network)


@pytest.mark.parametrize("kind, rounds", [("all-reduce", 2), ("all-gather", 1),
                                          ("reduce-scatter", 1)])
def test_a_ring_sends_all_but_its_own_part(kind, rounds):
  traffic = send(kind, range(16), slices())  # A whole column: a closed ring, two links.
  assert traffic.fast_bytes == pytest.approx(rounds * 1e6 * 15 / 16)
  assert traffic.slow_bytes == 0
  assert traffic.seconds == pytest.approx(
      traffic.fast_bytes / 2e9 / hardware.TPU.network)


@pytest.mark.parametrize("group, links", [
    (range(256), 4), (range(16), 2), (range(8), 1), ([0, 16, 1, 17], 2)])
def test_links_that_a_group_has(group, links):
  coords = [list(GRID)[i] for i in group]
  assert collectives.fast_bandwidth(coords, slices()) == links * CHIP.link_bandwidth


@pytest.mark.parametrize("torus, links", [
    ((4, 4, 4), 6), ((4, 4, 8), 6), ((2, 2, 4), 3), ((2, 4, 4), 3), ((1, 1, 4), 1), ((2, 2, 1), 2)])
def test_only_cubes_of_chips_have_rings(torus, links):
  """Optical switches close the axes of cubes of 4 x 4 x 4; a part of one has none."""
  coords = list(np.ndindex(*torus))
  network = Network(CHIP, [Place(0, xyz) for xyz in coords], torus, {"data": len(coords)})
  assert collectives.fast_bandwidth(coords, network) == links * CHIP.link_bandwidth


def steps_to_all(torus, is_ring):
  """Returns the steps until a message from chip 0 has reached all, over links played through."""
  reached, steps = {(0,) * len(torus)}, 0
  while len(reached) < math.prod(torus):
    steps += 1
    for chip in list(reached):
      for axis, size in enumerate(torus):
        for to in (chip[axis] - 1, chip[axis] + 1):
          if is_ring(axis) or 0 <= to < size:
            reached.add((*chip[:axis], to % size, *chip[axis + 1:]))
  return steps


@pytest.mark.parametrize("torus, rings", [
    ((16, 16), (0, 1)), ((8, 16), (1,)), ((4, 4), ()), ((4, 4, 8), (0, 1, 2)), ((2, 2, 1), ())])
def test_hops_are_the_steps_of_a_message_to_the_farthest_chip(torus, rings):
  coords = list(np.ndindex(*torus))
  network = Network(CHIP, [Place(0, c) for c in coords], torus, {"data": len(coords)})
  assert collectives.count_hops(coords, network) == steps_to_all(torus, rings.__contains__)


def test_a_small_array_takes_the_time_of_its_hops():
  """There and back, 8 + 8 hops each way; a large one takes as long as its bytes need."""
  seconds = 32 * hardware.TPU.hop_seconds
  assert send("all-reduce", range(256), slices(), size=4).seconds == pytest.approx(seconds)
  assert send("all-gather", range(256), slices(), size=4).seconds == pytest.approx(seconds / 2)
  large = send("all-reduce", range(256), slices(), size=1e9)
  assert large.seconds == pytest.approx(large.fast_bytes / 4e9 / hardware.TPU.network)
  node = Network(hardware.CHIPS["h100"], [Place(0, ())] * 8, (), {"data": 8})
  assert send("all-reduce", range(8), node, size=4).seconds < 1e-9


def test_between_slices_only_the_shards_are_sent():
  traffic = send("all-reduce", range(512), slices(count=2))
  assert traffic.fast_bytes == pytest.approx(2e6 * 255 / 256)
  assert traffic.slow_bytes == pytest.approx(2e6 / 256 / 2)


def test_an_exchange_has_something_for_every_device():
  """Two slices of four: each device keeps an eighth, and sends one half to the other slice."""
  places = [Place(i // 4, (i % 4 // 2, i % 2)) for i in range(8)]
  traffic = send("all-to-all", range(8), Network(CHIP, places, (2, 2), {"data": 8}))
  assert traffic.slow_bytes == pytest.approx(1e6 * 4 / 8)
  assert traffic.fast_bytes == pytest.approx(1e6 * 3 / 8)


@pytest.mark.parametrize("pairs, is_slow", [([(0, 1), (4, 5)], False), ([(0, 1), (3, 4)], True)])
def test_one_pair_between_slices_makes_a_permutation_slow(pairs, is_slow):
  places = [Place(i // 4, (i % 4 // 2, i % 2)) for i in range(8)]
  network = Network(CHIP, places, (2, 2), {"data": 8})
  traffic = collectives.traffic_of(Collective("collective-permute", 1e6, tuple(pairs)), network)
  assert (traffic.slow_bytes, traffic.fast_bytes) == ((1e6, 0) if is_slow else (0, 1e6))


def test_of_one_device_nothing_is_sent():
  assert send("all-reduce", [3], slices()) == (0, 0, 0, 0)


@pytest.mark.parametrize("num_slices, chips", [
    (1, 1), (1, 2), (1, 8), (1, 64), (1, 256), (2, 256), (4, 256), (128, 8)])
def test_slices_together_send_what_one_ring_of_all_their_chips_would(num_slices, chips):
  """A reduction over n chips sends 2 (n - 1) / n of the array per chip, at most 2 for any n."""
  places = [Place(i, (chip // 16, chip % 16)) for i in range(num_slices) for chip in range(chips)]
  network = Network(CHIP, places, (16, 16), {"data": len(places)})
  traffic = send("all-reduce", range(len(places)), network)
  rounds = lambda n: 2 * (n - 1) / n
  assert traffic.fast_bytes == pytest.approx(1e6 * rounds(chips))
  assert traffic.slow_bytes == pytest.approx(1e6 / chips * rounds(num_slices))
  assert traffic.fast_bytes + traffic.slow_bytes == pytest.approx(1e6 * rounds(len(places)))


@pytest.mark.libtpu
@pytest.mark.parametrize("slices, num_slices", [
    ("v5e:2x4", 1), ("v5e:2x4:2", 2), ("v5e:2x4:4", 4), ("tpu7x:2x2x1", 1)])
def test_a_sum_that_is_compiled_for_tpus_sends_what_a_ring_would(slices, num_slices):
  """An array of b bytes over s slices of m chips: 2 b (m - 1) / m, and 2 b / m (s - 1) / s."""
  chips, side = 8, 2048
  topology = topologies.open_topology(slices)
  mesh = sharding.make_mesh(tiny.make_config(), topology.devices)
  x = jax.ShapeDtypeStruct((mesh.size, side, side), jnp.float32,
                           sharding=NamedSharding(mesh, PartitionSpec("data")))
  step = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
  network = Network(topology.chip, [topology.place(d) for d in mesh.devices.flat], topology.torus,
                    dict(mesh.shape))
  totals = roofline.analyze(step.lower(x).compile().as_text(), network).collectives
  size = 4 * side**2
  assert sum(total.fast_bytes for total in totals) == pytest.approx(2 * size * (1 - 1 / chips))
  assert sum(total.slow_bytes for total in totals) == pytest.approx(
      2 * size / chips * (1 - 1 / num_slices))


@pytest.mark.libtpu
def test_gradients_of_any_shape_send_what_a_ring_would():
  """In slices of 256 chips: the rows of BERT's word table are not a multiple of 256."""
  topology = topologies.open_topology("v5e:16x16:2")
  config = tiny.make_config()
  mesh = sharding.make_mesh(config, topology.devices)
  place = NamedSharding(mesh, PartitionSpec("data"))
  grads = [jax.ShapeDtypeStruct((mesh.size, *shape), jnp.float32, sharding=place)
           for shape in ((30592, 256), (2, 768), (30592,), (256, 2))]
  with sharding.use_mesh(mesh, config):
    program = jax.jit(data_parallel.sum_gradients).lower(grads).compile()
  network = Network(topology.chip, [topology.place(d) for d in mesh.devices.flat], topology.torus,
                    dict(mesh.shape))
  totals = roofline.analyze(program.as_text(), network).collectives
  size = sum(4 * math.prod(x.shape[1:]) for x in grads)
  assert program.memory_analysis().temp_size_in_bytes < 4 * size, "no row of 128 holds two elements"
  fast, slow = 2 * size * (1 - 1 / 256), 2 * size / 256 / 2
  assert fast <= sum(total.fast_bytes for total in totals) <= 1.07 * fast
  assert slow <= sum(total.slow_bytes for total in totals) <= 1.07 * slow


def test_the_slow_network_takes_its_part_of_the_time():
  traffic = send("all-reduce", range(512), slices(count=2))
  share = hardware.TPU.network
  assert traffic.slow_seconds == pytest.approx(traffic.slow_bytes / 1e8 / share)
  assert traffic.seconds - traffic.slow_seconds == pytest.approx(traffic.fast_bytes / 4e9 / share)


def test_bytes_of_a_reduction_are_those_of_a_ring_played_through():
  """The test simulates scatter-reduce and gather of n chunks until all devices have the sum."""
  n, chunk = 8, 125
  arrays = np.random.default_rng(0).integers(0, 9, (n, n, chunk))  # [device, chunk, element]
  expected, sent = arrays.sum(axis=0), np.zeros(n)
  for step in range(2 * (n - 1)):
    messages = [(device, (device - step) % n) for device in range(n)]
    contents = [arrays[device, number].copy() for device, number in messages]
    for (device, number), content in zip(messages, contents, strict=True):
      to = (device + 1) % n
      arrays[to, number] = content + (arrays[to, number] if step < n - 1 else 0)
      sent[device] += content.size * 8
  np.testing.assert_array_equal(arrays, np.broadcast_to(expected, arrays.shape))
  network = Network(hardware.CHIPS["h100"], [Place(0, ())] * n, (), {"data": n})
  traffic = send("all-reduce", range(n), network, size=n * chunk * 8)
  np.testing.assert_allclose(traffic.fast_bytes, sent)
