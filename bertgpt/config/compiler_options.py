"""Named sets of options for XLA, chosen by `config.system.xla_options`.

They go to the compiler with the program of the train step, so no environment variable has to be
set before JAX starts, and `bertgpt plan` compiles with the same ones. This module needs no JAX.

Sources: MaxText, benchmarks/xla_flags_library.py (2024), for the TPU's options; NVIDIA,
JAX-Toolbox, "Tips for High-Performance LLMs with JAX and XLA", and xla/debug_options_flags.cc for
the GPU's.
"""

from typing import Any, NamedTuple


class OptionSet(NamedTuple):
  """Options of the compiler of one platform, 'gpu' or 'tpu'."""

  platform: str
  options: dict[str, Any]


SETS = {
    "tpu_overlap": OptionSet("tpu", {
        # Sums of gradients start, and what does not need them goes on: the default of gathers ...
        "xla_enable_async_all_reduce": True,
        # ... inside the kernels that compute meanwhile, which move the data along ...
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        # ... one array at a time: what is joined to a sum of several is not fused. Bytes. Planned
        # for BERT-large in rows of 512 on v5e:4x4, 10 ms of 22 ms of sums remain to be waited for;
        # without this line, all.
        "xla_jf_crs_combiner_threshold_in_bytes": 2**20,
    }),
    "gpu_overlap": OptionSet("gpu", {
        # Collectives start as early and are waited for as late as what they need allows.
        "xla_gpu_enable_latency_hiding_scheduler": True,
        # In the loop over layers, the sum of a layer's gradients runs beside the next layer ...
        "xla_gpu_enable_pipelined_all_reduce": True,
        # ... and with mesh.fsdp its parameters are gathered, its gradients sent, a turn apart.
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
    }),
}

AUTO = {"tpu": "tpu_overlap", "gpu": "gpu_overlap"}  # What 'auto' takes, for several devices.


def choose(requested: str, platform: str, num_devices: int) -> dict[str, Any]:
  """Options for the compiler of a platform, 'cpu', 'gpu' or 'tpu'; {} leaves its defaults.

  Args:
    requested: 'auto', 'none' or the name of a set, which must be of this platform.
  """
  if requested == "auto":
    requested = AUTO.get(platform, "none") if num_devices > 1 else "none"
  return {} if requested == "none" else SETS[requested].options
