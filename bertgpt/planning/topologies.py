"""Machines that are not there, by name: devices to compile for.

  v5e:4x4        16 chips of one TPU slice; v4 and v5p have three sides: v5p:2x2x4
  v5e:16x16:2    two such slices, joined by the data-center network
  h100:8         one node of eight GPUs
  h200:2x8       two nodes of eight

TPU programs are compiled by libtpu, GPU programs by the CUDA plugin of JAX; neither needs the
device.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from bertgpt.devices import hardware
from bertgpt.errors import ConfigError
from bertgpt.planning.collectives import Place

EXAMPLES = "as v5e:4x4, v5p:2x2x4, v5e:16x16:2 (two slices), h100:8 or h200:2x8 (nodes x GPUs)"

# What libtpu reads when it is loaded: there is no metadata server, and no TPU to be alone on.
TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                   "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3",
                   "TPU_MIN_LOG_LEVEL": "3",
                   "TPU_ACCELERATOR_TYPE": "v4-8"}  # Any that it knows: of the host, not the plan.

# The CUDA compiler picks kernels by trying them, which needs the device.
COMPILER_OPTIONS = {"tpu": {}, "cuda": {"xla_gpu_autotune_level": 0}}


class Topology(NamedTuple):
  """A machine.

  Attributes:
    torus: chips of one slice along its axes; () for GPUs.
    islands: slices or nodes.
    devices: of JAX, fit to compile for only.
  """

  name: str
  platform: str
  chip: hardware.Chip
  torus: tuple[int, ...]
  islands: int
  devices: Sequence[jax.Device]

  def place(self, device: jax.Device) -> Place:
    if self.platform == "cuda":
      return Place(device.process_index, ())
    return Place(getattr(device, "slice_index", None) or 0,
                 tuple(device.coords[:len(self.torus)]))


def open_topology(name: str) -> Topology:
  """The machine of a --topology.

  Raises:
    ConfigError: no such machine, or its compiler is not installed.
  """
  kind, _, rest = name.partition(":")
  if kind not in hardware.CHIPS:
    raise ConfigError(f"--topology={name}: {kind!r} is none of {', '.join(hardware.CHIPS)}; give "
                      f"KIND:SHAPE, {EXAMPLES}")
  shape, *slices = rest.split(":")
  try:
    sides, (islands,) = [int(side) for side in shape.split("x")], map(int, slices or ["1"])
  except ValueError:
    raise ConfigError(f"--topology={name}: {rest!r} is no shape; give KIND:SHAPE, "
                      f"{EXAMPLES}") from None
  if min(*sides, islands) < 1:
    raise ConfigError(f"--topology={name}: sides are at least 1")
  use_host_for_everything_else()
  open_kind = _open_tpu if kind.startswith("v") else _open_gpu
  return open_kind(name, kind, sides, islands)


def use_host_for_everything_else() -> None:
  """Devices that are there must not be taken: a plan needs none."""
  os.environ.update({key: os.environ.get(key, value) for key, value in TPU_ENVIRONMENT.items()})
  jax.config.update("jax_platforms", "cpu")


# ---------------------------------------------------------------------- TPU


def _open_tpu(name: str, kind: str, sides: list[int], islands: int) -> Topology:
  dimensions = hardware.CHIPS[kind].links // 2
  _check_sides(name, kind, sides, dimensions)
  # Hosts of four chips, but for what is smaller than that.
  host = tuple(min(2, side) for side in (*sides, 1)[:2]) + (1,)
  options = {"chips_per_host_bounds": host, "num_slices": islands}
  if kind == "v4":
    options["chip_config_name"] = "megacore"  # Both cores of a chip as one device, as on the VMs.
  try:
    devices = topologies.get_topology_desc("x".join([f"{kind}:{sides[0]}", *map(str, sides[1:])]),
                                           "tpu", **options).devices
  except (RuntimeError, jax.errors.JaxRuntimeError) as e:
    if "TPU support not installed" in str(e):
      raise ConfigError(f"--topology={name}: the TPU compiler is not installed; "
                        "in the source tree: make install-plan, or pip install -e .[plan]") from e
    raise ConfigError(f"--topology={name}: {_first_line(e)}") from e
  return Topology(name, "tpu", hardware.CHIPS[kind], tuple(sides), islands, devices)


def _check_sides(name: str, kind: str, sides: list[int], dimensions: int) -> None:
  """Shapes that are sold: powers of two up to 16 x 16; cubes of 4 x 4 x 4 and parts of one."""
  if dimensions == 2:
    good = all(side in (1, 2, 4, 8, 16) for side in sides)
    rule = "two sides out of 1, 2, 4, 8, 16"
  else:
    good = all(side in (1, 2) or side % 4 == 0 for side in sides)
    rule = "three sides, each 1, 2 or a multiple of 4"
  if len(sides) != dimensions or not good:
    raise ConfigError(f"--topology={name}: a slice of {kind} has {rule}")


# ---------------------------------------------------------------------- GPU


# What the compiler asks of a device, by kind: multiprocessors, clock, L2, shared memory a block and
# a multiprocessor, compute capability, name. Sources: CUDA C++ programming guide 12, table of
# compute capabilities; NVIDIA's architecture papers of A100 (2020) and H100 (2022).
_GPUS = {
    "a100": (108, 1.41, 41_943_040, 166_912, 167_936, (8, 0), "NVIDIA A100-SXM4-80GB"),
    "h100": (132, 1.98, 52_428_800, 232_448, 233_472, (9, 0), "NVIDIA H100 80GB HBM3"),
    "h200": (132, 1.98, 62_914_560, 232_448, 233_472, (9, 0), "NVIDIA H200"),
}

_TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory:.0f}
  shared_memory_per_block_optin: {shared_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""


def _open_gpu(name: str, kind: str, sides: list[int], islands: int) -> Topology:
  nodes, gpus = (1, *sides)[-2:]
  if len(sides) > 2 or islands > 1 or gpus > 8:
    raise ConfigError(f"--topology={name}: give GPUS or NODESxGPUS, up to 8 GPUs a node, as "
                      f"{kind}:8 or {kind}:2x8")
  try:
    devices = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(kind), topology=f"1x{nodes}x{gpus}").devices
  except NotImplementedError as e:
    raise ConfigError(f"--topology={name}: the CUDA compiler is not installed; "
                      "in the source tree: pip install -e .[cuda]") from e
  return Topology(name, "cuda", hardware.CHIPS[kind], (), nodes, devices)


def target_config(kind: str) -> str:
  """XLA's description of a GPU, a text proto of stream_executor.GpuTargetConfigProto."""
  chip = hardware.CHIPS[kind]
  cores, clock, l2, shared_block, shared_core, (major, minor), name = _GPUS[kind]
  return _TARGET_CONFIG.format(
      cores=cores, clock=clock, l2=l2, shared_block=shared_block, shared_core=shared_core,
      fpus=64 if major == 8 else 128, bandwidth=chip.hbm_bandwidth, memory=chip.hbm_bytes,
      major=major, minor=minor, name=name)


def _first_line(e: Exception) -> str:
  return (str(e).strip().splitlines() or [type(e).__name__])[0]
