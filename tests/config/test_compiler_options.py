"""bertgpt.config.compiler_options: compilers know every option, and the train step uses them."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt.config import compiler_options
from bertgpt.errors import ConfigError

needs_cuda = pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None,
                                reason="the CUDA compiler is not installed: jax[cuda12]")

# Data parallel: six layers, whose gradients are summed over the devices in a loop.
COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bertgpt.planning import topologies
topology = topologies.open_topology(sys.argv[1])
mesh = Mesh(np.array(topology.devices), "data")
rows = NamedSharding(mesh, P("data"))
def loss(params, x):
  def layer(x, p):
    y = jax.nn.gelu(x @ p[0].astype(x.dtype) + p[2].astype(x.dtype))
    return jax.lax.with_sharding_constraint(x + y @ p[1].astype(x.dtype), rows), None
  return (jax.lax.scan(layer, x, params)[0] ** 2).astype(jnp.float32).mean()
def step(params, x):
  return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x))
array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32,
                                            sharding=NamedSharding(mesh, P()))
lowered = jax.jit(step).lower((array(6, 1024, 1024), array(6, 1024, 1024), array(6, 1024)),
                              jax.ShapeDtypeStruct((8192, 1024), jnp.bfloat16, sharding=rows))
for options in json.loads(sys.argv[2]):
  try:
    program = lowered.compile(compiler_options=options).as_text()
    print("accepted,", program.count("AsyncCollective"))
  except jax.errors.JaxRuntimeError as e:
    print(str(e).splitlines()[0])
"""


def compile_with(topology: str, sets: list[dict]) -> list[str]:
  """Returns, for every set, the compiler's error, or 'accepted,' and the overlapped kernels."""
  result = subprocess.run([sys.executable, "-c", COMPILE, topology, json.dumps(sets)],
                          capture_output=True, text=True, check=False,
                          cwd=pathlib.Path(__file__).parents[2],
                          env={**os.environ, "XLA_FLAGS": ""})
  assert result.returncode == 0, result.stderr
  return result.stdout.splitlines()


@pytest.mark.libtpu
def test_libtpu_accepts_every_option_and_hides_the_sums_of_gradients():
  sets = [s.options for s in compiler_options.SETS.values() if s.platform == "tpu"]
  plain, *answers, wrong = compile_with("v5e:2x2", [{}, *sets, {"xla_tpu_no_such_option": True}])
  assert plain == "accepted, 0"
  assert len(answers) == len(sets)
  assert all(re.fullmatch("accepted, [1-9][0-9]*", answer) for answer in answers), answers
  assert "No such compile option" in wrong  # So the compiler does check the names.


@needs_cuda
def test_the_cuda_compiler_accepts_every_option():
  sets = [{"xla_gpu_autotune_level": 0} | s.options for s in compiler_options.SETS.values()
          if s.platform == "gpu"]
  *answers, wrong = compile_with("h100:8", [*sets, {"xla_gpu_no_such_option": True}])
  assert answers == ["accepted, 0"] * len(sets)
  assert "No such compile option" in wrong


@pytest.mark.parametrize("name", [n for n, s in compiler_options.SETS.items()
                                  if s.platform == "gpu"])
def test_options_for_gpus_are_known_to_the_xla_of_this_jax(name):
  """The options of GPUs are in the XLA of every platform. XLA_FLAGS would accept old names too."""
  options = compiler_options.SETS[name].options
  run = lambda **more: jax.jit(lambda x: x + 1, compiler_options=options | more)(1.0)
  assert run() == 2
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
    run(xla_gpu_no_such_option=True)


@pytest.mark.parametrize("jaxlib, option", [
    ("0.10.2", "xla_gpu_enable_pipelined_all_reduce"),
    ("0.11.0", "xla_gpu_enable_pipelined_all_reduce"),
    ("0.11.1", "xla_gpu_pipeline_all_reduce"), ("0.12.0.1", "xla_gpu_pipeline_all_reduce"),
    ("0.12.0.dev20261101", "xla_gpu_pipeline_all_reduce"),
    ("0.12rc1", "xla_gpu_pipeline_all_reduce"),
    ("0.11.dev1", "xla_gpu_enable_pipelined_all_reduce")])
def test_the_names_of_the_pipeliners_options_depend_on_the_version(jaxlib, option):
  assert option in compiler_options.pipelined(jaxlib)


@pytest.mark.parametrize("requested, platform, num_devices, expected", [
    ("auto", "cpu", 8, "none"), ("auto", "tpu", 1, "none"), ("auto", "gpu", 1, "gpu_cublas"),
    ("auto", "tpu", 4, "tpu_overlap"), ("auto", "gpu", 8, "gpu_overlap"),
    ("none", "tpu", 4, "none"), ("tpu_overlap", "tpu", 1, "tpu_overlap")])
def test_the_set_that_is_chosen(requested, platform, num_devices, expected):
  options = {"none": {}} | {name: s.options for name, s in compiler_options.SETS.items()}
  assert compiler_options.choose(requested, platform, num_devices) == options[expected]


@pytest.mark.parametrize("name", list(compiler_options.SETS))
def test_a_set_for_another_platform_is_refused(name):
  config = config_lib.base()
  config.system.xla_options = name
  right = compiler_options.SETS[name].platform
  config_lib.validate(config, platform=right)
  config_lib.validate(config)  # Without a platform, the recipe is valid on any machine.
  for wrong in {"cpu", "gpu", "tpu"} - {right}:
    with pytest.raises(ConfigError, match=f"xla_options='{name}' is not for platform '{wrong}'"):
      config_lib.validate(config, platform=wrong)


def losses_of_two_steps() -> list[float]:
  config = tiny.make_config(mesh=(2, 1, 1), num_layers=1)
  with tiny.Setup(config) as setup:
    step, state, batch = setup.step(), setup.init(), setup.put(tiny.make_batch(config))
    state, first = step(state, batch)
    _, second = step(state, batch)
  return [float(sums["loss"][0]) for sums in (first, second)]


def test_the_compiler_of_the_step_gets_the_options(monkeypatch):
  """The CPU of the tests has no set of its own; it gets options that do not change the loss."""
  without = losses_of_two_steps()
  monkeypatch.setitem(compiler_options.AUTO, "cpu", ("none", "cpu_set"))
  tell = lambda **options: monkeypatch.setitem(compiler_options.SETS, "cpu_set",
                                               compiler_options.OptionSet("cpu", options))
  tell(xla_cpu_enable_fast_min_max=False)
  np.testing.assert_allclose(losses_of_two_steps(), without, rtol=1e-6)
  tell(xla_no_such_option=True)
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
    losses_of_two_steps()
