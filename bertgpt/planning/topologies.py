"""Devices to compile for, found by the names of machines that need not be present.

  v5e:4x4        16 chips of one TPU slice; v4, v5p and tpu7x have three dimensions: v5p:2x2x4
  v5e:16x16:2    two such slices, joined by the data-center network
  tpu7x:2x2x1    four chips of TPU7x (Ironwood), which are eight devices
  h100:8         one node of eight GPUs
  h200:2x8       two nodes of eight

TPU programs are compiled by libtpu, GPU programs by the CUDA plugin of JAX; neither needs the
device.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from bertgpt.devices import hardware
from bertgpt.errors import ConfigError, one_line
from bertgpt.planning.collectives import Place

EXAMPLES = "such as v5e:4x4, v5p:2x2x4, v5e:16x16:2 (two slices), h100:8 or h200:2x8 (nodes x GPUs)"
# A list of this many devices takes a gigabyte of memory.
MAX_DEVICES = 100_000

# Variables that libtpu reads when it is loaded: there is no metadata server to ask and no TPU to
# lock.
TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                   "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3",
                   "TPU_MIN_LOG_LEVEL": "3",
                   "TPU_ACCELERATOR_TYPE": "v4-8"}  # Any type that libtpu knows; not the plan's.

# Number of sides of a TPU slice -> shapes; with three sides, those of less than 4 x 4 x 4 chips.
SMALL_SHAPES = {2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
                3: ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")}

# The CUDA compiler would choose kernels by timing them on the device, which is absent.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"tpu": {}, "gpu": {"xla_gpu_autotune_level": 0}}


class Topology(NamedTuple):
  """A machine.

  Attributes:
    name: the value of --topology.
    platform: 'tpu' or 'gpu'.
    chip: data sheet of every device.
    torus: number of chips along each axis of a slice; () for GPUs.
    num_slices: number of TPU slices, or of GPU nodes.
    devices: JAX devices that programs can only be compiled for.
  """

  name: str
  platform: str
  chip: hardware.Chip
  torus: tuple[int, ...]
  num_slices: int
  devices: Sequence[jax.Device]

  @property
  def devices_per_model(self) -> int:
    """The largest number of devices that parameters may be split over: see `sharding.make_mesh`."""
    return len(self.devices) // (self.num_slices if self.platform == "tpu" else 1)

  def place(self, device: jax.Device) -> Place:
    """Returns where a device is.

    Args:
      device: one of `devices`.
    """
    if self.platform == "gpu":
      return Place(device.process_index, ())
    return Place(getattr(device, "slice_index", None) or 0,
                 tuple(device.coords[:len(self.torus)]))


def open_topology(name: str) -> Topology:
  """Opens a machine by its name.

  JAX uses the CPU for everything but compiling for the machine.

  Args:
    name: KIND:SHAPE, or KIND:SHAPE:SLICES for TPUs.
  Returns:
    The machine.
  Raises:
    ConfigError: there is no such machine, or its compiler is not installed.
  """
  kind, _, rest = name.partition(":")
  if kind not in hardware.CHIPS:
    raise ConfigError(f"--topology={name}: {kind!r} is none of {', '.join(hardware.CHIPS)}. Give "
                      f"KIND:SHAPE, {EXAMPLES}")
  shape, *slices = rest.split(":")
  try:
    sides, (num_slices,) = [int(side) for side in shape.split("x")], map(int, slices or ["1"])
  except ValueError:
    raise ConfigError(f"--topology={name}: {rest!r} is not a shape. Give KIND:SHAPE, "
                      f"{EXAMPLES}") from None
  if min(*sides, num_slices) < 1:
    raise ConfigError(f"--topology={name}: every side and the number of slices must be at least 1")
  if (size := math.prod(sides) * num_slices) > MAX_DEVICES:
    raise ConfigError(f"--topology={name}: has {size:,} chips or GPUs. Plan for {MAX_DEVICES:,} at "
                      "most")
  use_host_for_everything_else()
  if not hardware.CHIPS[kind].clock and kind not in _GPUS:  # TPU compilers make estimates.
    raise ConfigError(f"--topology={name}: there is no description of this GPU for the compiler. "
                      "Add a line to _GPUS in bertgpt/planning/topologies.py")
  open_kind = _open_gpu if kind in _GPUS else _open_tpu
  return open_kind(name, sides, num_slices)


def with_network(topology: Topology, gbps: float) -> Topology:
  """Returns a machine with another network speed between its slices or nodes.

  Args:
    topology: the machine.
    gbps: Gbit/s per device and direction.
  Raises:
    ConfigError: the machine has no such network.
  """
  if topology.num_slices == 1:
    raise ConfigError(f"--network_gbps: --topology={topology.name} is a single slice or node, so "
                      "nothing is sent between slices or nodes. Omit --network_gbps, or give "
                      "several slices or nodes, such as v5e:16x16:2 or h200:2x8")
  return topology._replace(chip=topology.chip._replace(dcn_bandwidth=gbps * 1e9 / 8))


def use_host_for_everything_else() -> None:
  """Keeps JAX and libtpu from taking the devices of this host: a plan needs none."""
  os.environ.update({key: os.environ.get(key, value) for key, value in TPU_ENVIRONMENT.items()})
  jax.config.update("jax_platforms", "cpu")


# ---------------------------------------------------------------------- TPU


def _open_tpu(name: str, sides: list[int], num_slices: int) -> Topology:
  kind = name.partition(":")[0]
  _check_sides(name, sides, dimensions=hardware.CHIPS[kind].links // 2)
  # Hosts have four chips, unless the slice is smaller than that.
  host = tuple(min(2, side) for side in (*sides, 1)[:2]) + (1,)
  options = {"chips_per_host_bounds": host, "num_slices": num_slices}
  if kind == "v4":
    options["chip_config_name"] = "megacore"  # Both cores of a chip as one device, as on the VMs.
  try:
    devices = topologies.get_topology_desc("x".join([f"{kind}:{sides[0]}", *map(str, sides[1:])]),
                                           "tpu", **options).devices
  except (RuntimeError, jax.errors.JaxRuntimeError) as e:
    if "TPU support not installed" in str(e):
      raise ConfigError(f"--topology={name}: the TPU compiler is not installed. "
                        "In the source tree: make install-plan, or pip install -e '.[plan]'") from e
    raise ConfigError(f"--topology={name}: {one_line(e)}") from e
  return Topology(name, "tpu", hardware.CHIPS[kind], tuple(sides), num_slices, devices)


def _check_sides(name: str, sides: list[int], dimensions: int) -> None:
  """Refuses shapes that cloud providers do not offer (Cloud TPU's pages on v5e, v4 and v5p).

  One chip of a kind with three sides is accepted, for predictions per chip. Its larger slices are
  cubes of 4 x 4 x 4, or parts of one.
  """
  shape = "x".join(map(str, sides))
  *others, last = SMALL_SHAPES[dimensions]
  rule = f"{'two' if dimensions == 2 else 'three'} sides: {', '.join(others)} or {last}"
  good = shape in SMALL_SHAPES[dimensions]
  if dimensions == 3:
    good |= len(sides) == 3 and all(side % 4 == 0 for side in sides)
    rule += ", or each side a multiple of 4"
  if not good:
    raise ConfigError(f"--topology={name}: a slice of {name.partition(':')[0]} has {rule}")


# ---------------------------------------------------------------------- GPU


class _Gpu(NamedTuple):
  """Properties of a GPU that the compiler needs.

  Sources: CUDA C++ programming guide 12, table of compute capabilities; NVIDIA's architecture
  papers of A100 (2020) and H100 (2022); B200: openxla/xla,
  xla/backends/gpu/target_config/specs/b200.txtpb (2025).

  Attributes:
    cores: multiprocessors.
    clock: GHz.
    l2_bytes: cache of the device.
    shared_bytes_per_block, shared_bytes_per_core: largest shared memory.
    compute_capability: (major, minor).
    name: NVIDIA's name for it.
  """

  cores: int
  clock: float
  l2_bytes: int
  shared_bytes_per_block: int
  shared_bytes_per_core: int
  compute_capability: tuple[int, int]
  name: str


_GPUS = {
    "a100": _Gpu(108, 1.41, 41_943_040, 166_912, 167_936, (8, 0), "NVIDIA A100-SXM4-80GB"),
    "h100": _Gpu(132, 1.98, 52_428_800, 232_448, 233_472, (9, 0), "NVIDIA H100 80GB HBM3"),
    "b200": _Gpu(148, 1.965, 132_644_864, 232_448, 233_472, (10, 0), "NVIDIA B200"),
    "h200": _Gpu(132, 1.98, 62_914_560, 232_448, 233_472, (9, 0), "NVIDIA H200"),
}

_TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes_per_core}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.hbm_bandwidth:.0f}
  l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {chip.hbm_bytes:.0f}
  shared_memory_per_block_optin: {gpu.shared_bytes_per_block}
  cuda_compute_capability {{ major: {major} minor: {minor}{extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "12.8.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{gpu.name}"
"""


def _open_gpu(name: str, sides: list[int], num_slices: int) -> Topology:
  kind = name.partition(":")[0]
  nodes, gpus = (1, *sides)[-2:]
  if len(sides) > 2 or num_slices > 1 or gpus > 8:
    raise ConfigError(f"--topology={name}: a node has up to 8 GPUs. Give GPUS or NODESxGPUS, such "
                      f"as {kind}:8 or {kind}:2x8")
  try:
    devices = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(kind), topology=f"1x{nodes}x{gpus}").devices
  except NotImplementedError as e:
    raise ConfigError(f"--topology={name}: the CUDA compiler is not installed. "
                      "In the source tree: make install-gpu, or pip install -e '.[cuda]'") from e
  return Topology(name, "gpu", hardware.CHIPS[kind], (), nodes, devices)


def target_config(kind: str) -> str:
  """Returns XLA's description of a GPU.

  Args:
    kind: 'a100', 'h100', 'h200' or 'b200'.
  Returns:
    A text proto of stream_executor.GpuTargetConfigProto.
  """
  gpu = _GPUS[kind]
  major, minor = gpu.compute_capability
  # From Hopper on, a program may use instructions of a single architecture (sm_90a).
  extension = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
  return _TARGET_CONFIG.format(gpu=gpu, chip=hardware.CHIPS[kind], major=major, minor=minor,
                               extension=extension, fpus=64 if major == 8 else 128)
