"""bertgpt.compiler_options: the compilers know every option, and the step of training uses them."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from bertgpt import compiler_options
from bertgpt import config as config_lib
from bertgpt.errors import ConfigError

# Data parallel, with one gradient to sum over the devices.
COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bertgpt import topologies
topology = topologies.open_topology(sys.argv[1])
mesh = Mesh(np.array(topology.devices), "data")
array = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32,
                                                  sharding=NamedSharding(mesh, P(*axes)))
step = jax.jit(lambda w, x: w - jax.grad(lambda w: jnp.tanh(x @ w).mean())(w)).lower(
    array((256, 256)), array((64, 256), "data"))
for options in json.loads(sys.argv[2]):
  try:
    step.compile(compiler_options=options)
    print("accepted")
  except jax.errors.JaxRuntimeError as e:
    print(str(e).splitlines()[0])
"""


def compile_with(topology: str, sets: list[dict]) -> list[str]:
  """What the compiler answers to every set of options."""
  result = subprocess.run([sys.executable, "-c", COMPILE, topology, json.dumps(sets)],
                          capture_output=True, text=True, check=False,
                          cwd=pathlib.Path(__file__).parents[1],
                          env={**os.environ, "XLA_FLAGS": ""})
  assert result.returncode == 0, result.stderr
  return result.stdout.splitlines()


@pytest.mark.parametrize("platform, topology, package", [
    ("tpu", "v5e:2x2", "libtpu"), ("gpu", "h100:8", "jax_cuda12_plugin")])
def test_the_compiler_accepts_every_option(platform, topology, package):
  if importlib.util.find_spec(package) is None:
    pytest.skip(f"the compiler of {platform} is not installed: {package}")
  always = {"xla_gpu_autotune_level": 0} if platform == "gpu" else {}
  sets = [always | s.options for s in compiler_options.SETS.values() if s.platform == platform]
  *answers, answer = compile_with(topology, [*sets, {f"xla_{platform}_no_such_option": True}])
  assert answers and set(answers) == {"accepted"}
  assert "No such compile option" in answer  # So the compiler does look at them.


@pytest.mark.parametrize("name", [n for n, s in compiler_options.SETS.items()
                                  if s.platform == "gpu"])
def test_options_for_gpus_are_known_to_the_xla_of_this_jax(name):
  """One table has those of all platforms; a flag that is not in it ends the process."""
  flags = [f"--{option}={str(value).lower()}" for option, value in
           compiler_options.SETS[name].options.items()]
  assert start_jax(*flags) == 0
  assert start_jax(*flags, "--xla_gpu_no_such_option=true") != 0


def start_jax(*flags: str) -> int:
  return subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], capture_output=True,
                        check=False, env={**os.environ, "XLA_FLAGS": " ".join(flags)}).returncode


@pytest.mark.parametrize("requested, platform, num_devices, expected", [
    ("auto", "cpu", 8, "none"), ("auto", "tpu", 1, "none"), ("auto", "gpu", 1, "none"),
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
  config_lib.validate(config)  # A recipe is looked at on any machine.
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
  """On the CPU of the tests, which has no set of its own; what it is told changes no loss."""
  without = losses_of_two_steps()
  monkeypatch.setitem(compiler_options.AUTO, "cpu", "cpu_set")
  tell = lambda **options: monkeypatch.setitem(compiler_options.SETS, "cpu_set",
                                               compiler_options.OptionSet("cpu", options))
  tell(xla_cpu_enable_fast_min_max=False)
  np.testing.assert_allclose(losses_of_two_steps(), without, rtol=1e-6)
  tell(xla_no_such_option=True)
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
    losses_of_two_steps()
