"""The table of accelerators: data-sheet figures, and the share of them that programs reach.

Figures are per device as JAX counts devices: a chip (TPU v4 and v5p: both cores together), half a
chip (TPU7x: each chiplet is a device), or a GPU. Sources of the columns:

| column                      | source                                                            |
|-----------------------------|-------------------------------------------------------------------|
| peak_flops, fp8_flops, HBM  | TPU: pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x   |
|                             | (Ironwood)" of docs.cloud.google.com/tpu/docs (2024, 2026); GPU:  |
|                             | NVIDIA data sheets of A100 80GB SXM (2020), H100 SXM (2022), H200 |
|                             | SXM (2023), and HGX B200 (Blackwell, 2025), without sparsity      |
| links, link_bandwidth (TPU) | Austin et al. 2025, "How to Scale Your Model", table of TPUs;     |
|                             | TPU7x: the page above, 1,200 GB/s over 6 links in both            |
|                             | directions, shared by the two devices of a chip                   |
| links, link_bandwidth (GPU) | NVLink 3, 4 and 5: 300, 450 and 900 GB/s per direction            |
| dcn_bandwidth               | TPU: Austin et al. 2025, TPU7x: the page above; GPU: DGX A100,    |
|                             | H100 and B200, 200, 400 and 400 Gb/s per GPU                      |
| vector_flops                | TPU: 8 x 128 lanes x 4 units x cores x clock (Austin et al. 2025; |
|                             | v4, v6e and TPU7x: assumption, the same units); GPU: half of the  |
|                             | FP32 figure of the data sheet, which counts a multiply-add as two |
| tile                        | TPU: side of the matrix unit; GPU: 64, assumption                 |
| usable_hbm                  | TPU: limit of the compiler, in messages of libtpu 0.0.42, 0.0.50; |
|                             | GPU: 0.95 of the memory, assumption                               |
| clock                       | TPU7x: the peak divided by the FLOPs per cycle of four matrix     |
|                             | units of 256 x 256, which agrees with libtpu's estimates          |
"""

import re
from typing import NamedTuple

from bertgpt.errors import ConfigError

GB, GIB = 1e9, 2**30


class Efficiency(NamedTuple):
  """Shares of the data sheet's peaks that good programs reach; every prediction depends on them.

  Attributes:
    matmul: of the matrix units, in matmuls neither in float8 nor in kernels of attention.
    fp8: of the matrix units' peak in float8, in float8 matmuls.
    attention: of the matrix units, in kernels of attention.
    vector: of the units for other operations.
    memory: of the bandwidth of the memory.
    network: of the bandwidth of the links between devices.
    kernel_seconds: least time of an operation, in seconds.
    hop_seconds: least time of a transfer between neighbors in a torus, in seconds.
  """

  matmul: float
  fp8: float
  attention: float
  vector: float
  memory: float
  network: float
  kernel_seconds: float
  hop_seconds: float = 0.0


# Assumptions, but for the time of an operation, which is the smallest in XLA's estimates for TPU,
# and that of a hop: Austin et al. 2025, "How to Scale Your Model", part 3.
TPU = Efficiency(matmul=0.80, fp8=0.80, attention=0.80, vector=0.60, memory=0.80, network=0.80,
                 kernel_seconds=1.2e-6, hop_seconds=1e-6)

# Measured on one H100 (jax 0.11.2, bfloat16), but for the network, which is an assumption: steps of
# BERT-base, BERT-large and GPT-2 124M and the kernels of their profiles, see docs/performance.md.
# A matmul of 8,192 x 8,192 alone reaches 0.91, a copy of 1 GiB alone 0.86. The share of float8 is
# that of such a matmul alone; no step in float8 was measured. Kernels of attention reach 0.10 in
# rows of 128 tokens, and 0.18 to 0.23 in rows of 512 and 1,024. The share of the vector units is
# that of the kernel with dropout, whose masks need integers. Other GPUs are assumed to reach the
# same shares.
GPU = Efficiency(matmul=0.69, fp8=0.50, attention=0.20, vector=0.43, memory=0.72, network=0.80,
                 kernel_seconds=1.4e-6)


class Chip(NamedTuple):
  """Figures of one device.

  Attributes:
    device_kinds: substrings of JAX's names for the device.
    peak_flops: dense bfloat16 FLOP/s of the matrix units.
    fp8_flops: dense float8 FLOP/s of the matrix units; 0: they have no float8. v6e has it,
      but is as fast in bfloat16.
    vector_flops: element operations per second outside the matrix units.
    tile: side of a tile of the matrix unit; matmuls whose sides are not multiples of it leave part
      of the unit idle.
    hbm_bytes: memory in bytes.
    usable_hbm: bytes of the memory that a program may use.
    hbm_bandwidth: bytes per second between memory and compute units.
    links: number of links to the fast network (ICI, NVLink).
    link_bandwidth: bytes per second of one link in one direction.
    dcn_bandwidth: bytes per second per device between slices or nodes.
    clock: cycles per second in the compiler's own estimates; 0: the compiler makes none.
    devices_per_chip: devices, as JAX counts them, on one chip.
    efficiency: shares of these peaks that good programs reach.
  """

  device_kinds: tuple[str, ...]
  peak_flops: float
  fp8_flops: float
  vector_flops: float
  tile: int
  hbm_bytes: float
  usable_hbm: float
  hbm_bandwidth: float
  links: int
  link_bandwidth: float
  dcn_bandwidth: float
  clock: float = 0
  devices_per_chip: int = 1
  efficiency: Efficiency = TPU


# The first chip that is named in JAX's name is taken: "TPU v5" is v5p.
CHIPS = {
    "b200": Chip(
        device_kinds=("B200",),
        peak_flops=2250e12, fp8_flops=4500e12, vector_flops=37.5e12, tile=64,
        hbm_bytes=180 * GB, usable_hbm=171 * GB, hbm_bandwidth=7700 * GB,
        links=1, link_bandwidth=900 * GB, dcn_bandwidth=50 * GB,
        efficiency=GPU),
    "h200": Chip(
        device_kinds=("H200",),
        peak_flops=989e12, fp8_flops=1979e12, vector_flops=33.5e12, tile=64,
        hbm_bytes=141 * GB, usable_hbm=134 * GB, hbm_bandwidth=4800 * GB,
        links=1, link_bandwidth=450 * GB, dcn_bandwidth=50 * GB,
        efficiency=GPU),
    "h100": Chip(
        device_kinds=("H100",),
        peak_flops=989e12, fp8_flops=1979e12, vector_flops=33.5e12, tile=64,
        hbm_bytes=80 * GB, usable_hbm=76 * GB, hbm_bandwidth=3350 * GB,
        links=1, link_bandwidth=450 * GB, dcn_bandwidth=50 * GB,
        efficiency=GPU),
    "a100": Chip(
        device_kinds=("A100",),
        peak_flops=312e12, fp8_flops=0, vector_flops=9.75e12, tile=64,
        hbm_bytes=80 * GB, usable_hbm=76 * GB, hbm_bandwidth=2039 * GB,
        links=1, link_bandwidth=300 * GB, dcn_bandwidth=25 * GB,
        efficiency=GPU),
    "tpu7x": Chip(
        device_kinds=("TPU7x",),
        peak_flops=1153.5e12, fp8_flops=2307e12, vector_flops=9.0e12, tile=256,
        hbm_bytes=96 * GIB, usable_hbm=94.74 * GIB, hbm_bandwidth=3690 * GB,
        links=6, link_bandwidth=50 * GB, dcn_bandwidth=6.25 * GB,
        clock=2.2e9, devices_per_chip=2),
    "v6e": Chip(
        device_kinds=("TPU v6",),
        peak_flops=918e12, fp8_flops=918e12, vector_flops=7.2e12, tile=256,
        hbm_bytes=32 * GIB, usable_hbm=31.25 * GIB, hbm_bandwidth=1638 * GB,
        links=4, link_bandwidth=90 * GB, dcn_bandwidth=12.5 * GB,
        clock=1.75e9),
    "v5e": Chip(
        device_kinds=("TPU v5 lite", "TPU v5e"),
        peak_flops=197e12, fp8_flops=0, vector_flops=6.1e12, tile=128,
        hbm_bytes=16 * GIB, usable_hbm=15.75 * GIB, hbm_bandwidth=819 * GB,
        links=4, link_bandwidth=45 * GB, dcn_bandwidth=3.125 * GB,
        clock=1.5e9),
    "v5p": Chip(
        device_kinds=("TPU v5",),
        peak_flops=459e12, fp8_flops=0, vector_flops=14.3e12, tile=128,
        hbm_bytes=95 * GIB, usable_hbm=95.74 * GIB, hbm_bandwidth=2765 * GB,
        links=6, link_bandwidth=90 * GB, dcn_bandwidth=6.25 * GB,
        clock=1.75e9),
    "v4": Chip(
        device_kinds=("TPU v4",),
        peak_flops=275e12, fp8_flops=0, vector_flops=8.6e12, tile=128,
        hbm_bytes=32 * GIB, usable_hbm=30.75 * GIB, hbm_bandwidth=1228 * GB,
        links=6, link_bandwidth=45 * GB, dcn_bandwidth=6.25 * GB,
        clock=1.05e9),
}


def check_matmul(matmul: str, name: str, chip: Chip | None,
                 remedy: str = "model.matmul='bf16'") -> None:
  """Checks that a chip has matmuls of the requested precision.

  Args:
    matmul: `config.model.matmul`.
    name: name of the chip, for the message.
    chip: its figures; None if it is not in the table, such as a CPU, which emulates float8.
    remedy: field and value that turn float8 off, for the message.
  Raises:
    ConfigError: float8 would be emulated by a chip that is slower with it.
  """
  if matmul == "fp8" and chip and not chip.fp8_flops:
    able = ", ".join(kind for kind, other in CHIPS.items() if other.fp8_flops)
    raise ConfigError(f"model.matmul='fp8': {name} has no float8 matmuls; {able} have. Set "
                      f"{remedy}")


def find_chip(device_kind: str) -> Chip | None:
  """Returns the figures of a device; None if it is not in the table, such as a CPU or an RTX A1000.

  Args:
    device_kind: JAX's name of the device, `jax.Device.device_kind`.
  """
  # Such an H100 is slower than that of a server, and a MIG slice is a part of one.
  if re.search(r"\b(PCIe|NVL)$|\bMIG\b", device_kind):
    return None
  return next((chip for chip in CHIPS.values() for kind in chip.device_kinds
               if re.search(rf"(?<!\w){kind}(?!\d)", device_kind)), None)
