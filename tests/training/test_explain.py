"""bertgpt.training.explain: the choices for every phase, with reasons."""

import tiny
from jax.sharding import AbstractMesh, AxisType

from bertgpt import config as config_lib
from bertgpt.devices import sharding
from bertgpt.training.explain import explain


def test_every_phase_says_which_kernel_and_why():
  config = tiny.make_config(width=128, num_heads=2, dtype="bfloat16", attention_dropout=0.0)
  config.phases = tuple(config_lib.phase(seq_len=length) for length in (128, 512))
  mesh = AbstractMesh((1, 1, 1), config_lib.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
  with sharding.use_mesh(mesh, config, platform="tpu"):
    short, long, loop, remat = explain(config)
  assert short.startswith("phases[0], 128 tokens per row: attention by xla: ")
  assert long.startswith("phases[1], 512 tokens per row: attention by splash: ")
  assert loop == "1 of 2 layers per iteration of the loop: a loop compiles several times faster"
  assert "remat=products: on a TPU, matmuls recompute" in remat
