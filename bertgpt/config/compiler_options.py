"""Named sets of options for XLA, chosen by `config.system.xla_options`.

They are passed to the compiler with the program of the train step, so that no environment variable
has to be set before JAX starts, and `bertgpt plan` compiles with the same options. This module does
not import JAX.

Sources: for TPUs, MaxText, benchmarks/xla_flags_library.py (2024); for GPUs, NVIDIA JAX-Toolbox,
"Tips for High-Performance LLMs with JAX and XLA", and xla/debug_options_flags.cc.
"""

import importlib.metadata
import re
from typing import Any, NamedTuple


class OptionSet(NamedTuple):
  """Options of the compiler for one platform, 'gpu' or 'tpu'."""

  platform: str
  options: dict[str, Any]


# Matmuls in cuBLAS, which adds a bias or another array, or computes GELU and also writes its input
# for the backward pass, before the result leaves the chip. XLA's own matmuls, written in Triton, do
# none of this: their results are read and written once more. Autotuning on a device compares only
# the matmuls themselves; without a device, it is off and XLA uses Triton. MaxText's scripts for
# GPUs turn Triton's matmuls off too (2024).
_CUBLAS = {"xla_gpu_enable_triton_gemm": False}

# Jaxlib from which the options of the pipeliner have other names, and modes (openxla/xla, pull
# request 45836, 2026). The old names are still accepted in XLA_FLAGS, but not here.
_RENAMED_IN = (0, 11, 1)


def pipelined(jaxlib: str) -> dict[str, Any]:
  """Returns the options that pipeline the collectives of a loop.

  In the loop over layers, the sum of a layer's gradients then runs during the next layer. With
  `mesh.fsdp`, parameters are gathered one iteration earlier than they are used, and gradients are
  sent one iteration later than they are computed.

  Args:
    jaxlib: version of jaxlib, and so of its XLA.
  """
  collectives = ("all_reduce", "all_gather", "reduce_scatter")
  release = re.match(r"[\d.]*\d", jaxlib)[0]  # Without '.dev20261101' or 'rc1'.
  if tuple(map(int, release.split("."))) < _RENAMED_IN:
    return {f"xla_gpu_enable_pipelined_{name}": True for name in collectives}
  return {f"xla_gpu_pipeline_{name}": "COLLECTIVE_PIPELINING_MODE_ON" for name in collectives}


SETS = {
    "tpu_overlap": OptionSet("tpu", {
        # Sums of gradients run while independent operations continue.
        "xla_enable_async_all_reduce": True,
        # The sums are fused into kernels that compute and move the data at the same time.
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        # Bytes. Small, so that arrays are summed one by one: sums of several arrays are not fused.
        # Planned for BERT-large with rows of 512 tokens on v5e:4x4, a step waits for 10 of the
        # 22 ms of sums, and for all of them without this option.
        "xla_jf_crs_combiner_threshold_in_bytes": 2**20,
        # Of a sum over several slices, each chip of a slice gets only the part that it sends to the
        # other slices, also of arrays [1, in, out] of the loop over layers. Otherwise, or if the
        # part is smaller than a tile, it gets the whole array, which sends 1.5 times as much.
        "xla_tpu_use_minor_sharding_for_major_trivial_input": True,
        "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": 1,
        "xla_tpu_assign_all_reduce_scatter_layout": True,
    }),
    "gpu_cublas": OptionSet("gpu", _CUBLAS),
    "gpu_overlap": OptionSet("gpu", _CUBLAS | {
        # Collectives start as early, and are awaited as late, as their dependencies allow.
        "xla_gpu_enable_latency_hiding_scheduler": True,
    } | pipelined(importlib.metadata.version("jaxlib"))),
}

# Sets that 'auto' uses for one device, and for several.
AUTO = {"tpu": ("none", "tpu_overlap"), "gpu": ("gpu_cublas", "gpu_overlap")}


def choose(requested: str, platform: str, num_devices: int) -> dict[str, Any]:
  """Returns options for the compiler; {} leaves its defaults.

  Args:
    requested: 'auto', 'none' or the name of a set, which must be for this platform.
    platform: 'cpu', 'gpu' or 'tpu'.
    num_devices: devices that the program runs on.
  """
  if requested == "auto":
    requested = AUTO.get(platform, ("none", "none"))[num_devices > 1]
  return {} if requested == "none" else SETS[requested].options
