"""bertgpt.planning.topologies: names of machines, and errors for machines that do not exist."""

import itertools
import os
import pathlib
import re
import subprocess
import sys
from collections import Counter

import jax
import pytest
import tiny
from jax.sharding import SingleDeviceSharding

from bertgpt.devices import hardware, sharding
from bertgpt.errors import ConfigError
from bertgpt.planning import collectives, roofline, topologies
from bertgpt.planning.collectives import Place
from bertgpt.training.explain import explain


@pytest.mark.libtpu
@pytest.mark.parametrize("name, chips, num_slices", [
    ("v5e:1x1", 1, 1), ("v5e:2x4", 8, 1), ("v5e:16x16", 256, 1), ("v5p:4x4x4", 64, 1),
    ("v6e:16x16", 256, 1), ("v4:2x2x2", 8, 1), ("v5e:4x4:2", 32, 2)])
def test_every_chip_is_one_device_with_its_own_place(name, chips, num_slices):
  topology = topologies.open_topology(name)
  places = {topology.place(device) for device in topology.devices}
  assert len(topology.devices) == len(places) == chips
  assert {place.slice_index for place in places} == set(range(num_slices)) == set(
      range(topology.num_slices))
  assert all(at < side for place in places
             for at, side in zip(place.coords, topology.torus, strict=True))


@pytest.mark.libtpu
@pytest.mark.parametrize("name", ["v4:4x4x8", "v5p:4x4x4", "v5p:2x4x4", "v5p:4x4x12", "v6e:4x4",
                                  "tpu7x:4x4x4", "v5e:4x4:2", "v6e:4x4:2", "v4:4x4x4:2"])
def test_parameters_may_be_split_over_any_share_of_a_slice(name):
  """Also over a share that is not a product of whole sides, which JAX refuses unless told."""
  topology, config = topologies.open_topology(name), tiny.make_config()
  for fsdp, tensor in itertools.product((1, 2, 4, 8, 16), (1, 2, 4, 8)):
    if topology.devices_per_model % (fsdp * tensor):
      continue
    config.mesh.fsdp, config.mesh.tensor = fsdp, tensor
    mesh = sharding.make_mesh(config, topology.devices)
    assert mesh.devices.shape[1:] == (fsdp, tensor)
    assert set(mesh.devices.flat) == set(topology.devices)
    for replica in mesh.devices.reshape(-1, fsdp * tensor):
      assert len({topology.place(device).slice_index for device in replica}) == 1


@pytest.mark.cuda
@pytest.mark.parametrize("name, gpus, nodes", [("h100:8", 8, 1), ("h200:2x8", 16, 2),
                                               ("a100:1", 1, 1), ("b200:2x4", 8, 2)])
def test_gpus_know_their_node(name, gpus, nodes):
  topology = topologies.open_topology(name)
  assert len(topology.devices) == gpus and topology.num_slices == nodes
  assert {topology.place(d) for d in topology.devices} == {Place(i, ()) for i in range(nodes)}


@pytest.mark.cuda
@pytest.mark.parametrize("capability, kernel", [((7, 5), "xla"), ((8, 0), "flash")])
def test_a_gpu_without_triton_is_not_given_flash(capability, kernel, monkeypatch):
  gpu = topologies._GPUS["a100"]._replace(compute_capability=capability)
  monkeypatch.setitem(topologies._GPUS, "a100", gpu)
  config = tiny.make_config(width=128, num_heads=2, dtype="bfloat16", attention_dropout=0.1)
  config.phases[0].seq_len = 128
  devices = topologies.open_topology("a100:1").devices
  with sharding.use_mesh(sharding.make_mesh(config, devices), config):
    assert f"attention by {kernel}: " in explain(config)[0]


@pytest.mark.libtpu
def test_a_chip_of_tpu7x_is_two_devices():
  topology = topologies.open_topology("tpu7x:2x2x1")
  places = Counter(topology.place(device) for device in topology.devices)
  assert len(places) == 4 and set(places.values()) == {2}


def compile_product(name):
  """Returns the topology, and the text of a bfloat16 matmul compiled for its first device."""
  topology = topologies.open_topology(name)
  x = jax.ShapeDtypeStruct((512, 512), "bfloat16",
                           sharding=SingleDeviceSharding(topology.devices[0]))
  options = topologies.COMPILER_OPTIONS[topology.platform]
  return topology, jax.jit(lambda x: x @ x).lower(x).compile(options).as_text()


def check_product(name):
  """Checks the FLOPs of the compiled text, and that its roofline takes time."""
  topology, text = compile_product(name)
  network = collectives.Network(topology.chip, [Place(0, ())], topology.torus, {})
  roof = roofline.analyze(text, network)
  assert roof.matmul_flops == 2 * 512**3 and roof.seconds > 0
  assert (roof.compiler_seconds > 0) == (topology.platform == "tpu")


@pytest.mark.libtpu
@pytest.mark.parametrize("name", ["v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "tpu7x:1x1x1"])
def test_every_tpu_is_compiled_for(name):
  check_product(name)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["a100:1", "h100:1", "h200:1", "b200:1"])
def test_every_gpu_is_compiled_for(name):
  check_product(name)


@pytest.mark.libtpu
def test_the_compilers_limits_are_in_the_table():
  """libtpu's error for a program that is far too large shows the usable memory."""
  for name in ("v5e:1x1", "tpu7x:1x1x1"):
    topology = topologies.open_topology(name)
    x = jax.ShapeDtypeStruct((300, 2**30), "bfloat16",
                             sharding=SingleDeviceSharding(topology.devices[0]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
      jax.jit(lambda x: x + 1).lower(x).compile()
    (limit,) = re.findall(r"available HBM \(([\d.]+)G\)", str(error.value))
    # Versions of the compiler differ by 0.01.
    assert float(limit) == pytest.approx(topology.chip.usable_hbm / 2**30, abs=0.02)


@pytest.mark.parametrize("name, fragment", [
    ("", "'' is none of"), ("tpu:4x4", "'tpu' is none of"), ("v5e", "'' is not a shape"),
    ("v5e:4xy", "'4xy' is not a shape"), ("v5e:4x4:2:3", "is not a shape"),
    ("v5e:3x3", "a slice of v5e has two sides"), ("v5e:4", "two sides"),
    ("v5e:4x4x4", "two sides"), ("v5p:4x4", "three sides"), ("v4:3x4x4", "multiple of 4"),
    ("v5e:16x1", "4x4, 4x8, 8x8, 8x16 or 16x16"), ("v5e:1x2", "two sides: 1x1, 2x2"),
    ("v6e:2x16", "two sides: 1x1"), ("v5p:1x1x2", "2x2x4 or 2x4x4, or each side a multiple of 4"),
    ("v4:4x4x1", "three sides: 1x1x1"),
    ("tpu7x:2x2", "three sides"), ("v5e:0x1", "at least 1"),
    ("v5e:2x2:99999999", "has 399,999,996 chips or GPUs. Plan for 100,000 at most"),
    ("h100:20000x8", "at most"), ("v5e:4x4:0", "at least 1"),
    ("h100:9", "up to 8 GPUs"), ("h100:2x2x8", "up to 8 GPUs"), ("h100:8:2", "up to 8 GPUs")])
def test_what_is_no_machine_is_one_line(name, fragment):
  with pytest.raises(ConfigError) as error:
    topologies.open_topology(name)
  assert str(error.value).startswith(f"--topology={name}: ") and fragment in str(error.value)
  assert "\n" not in str(error.value)


def test_a_gpu_that_the_compiler_does_not_know_is_named(monkeypatch):
  own = hardware.CHIPS["h100"]._replace(efficiency=hardware.TPU)  # Shares that were measured on it.
  monkeypatch.setitem(hardware.CHIPS, "l40s", own)
  with pytest.raises(ConfigError, match="l40s:8: there is no description of this GPU"):
    topologies.open_topology("l40s:8")


@pytest.mark.parametrize("name, package, remedy", [
    ("v5e:2x2", "libtpu", "make install-plan, or pip install -e '.[plan]'"),
    ("h100:8", "jax_plugins.xla_cuda12", "make install-gpu, or pip install -e '.[cuda]'")])
def test_a_compiler_that_is_missing_is_named(name, package, remedy):
  script = ("import sys\n"
            "sys.modules[sys.argv[1]] = None  # import raises ImportError\n"
            "from bertgpt import cli\n"
            "sys.exit(cli.main(['plan', '--config=configs/bert_tiny.py', sys.argv[2]]))")
  # libtpu, once imported, leaves its path in the environment.
  env = {key: value for key, value in os.environ.items() if key != "TPU_LIBRARY_PATH"}
  result = subprocess.run([sys.executable, "-c", script, package, f"--topology={name}"],
                          capture_output=True, text=True, check=False, env=env,
                          cwd=pathlib.Path(__file__).parents[2])
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1].endswith(remedy)
  assert "Traceback" not in result.stderr
