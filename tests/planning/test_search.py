"""bertgpt.planning.search: variants are valid, train the same, and are chosen by what they need."""

import importlib.util

import jax
import pytest
import tiny
from fake_slice import on_fake_devices

from bertgpt import config as config_lib
from bertgpt.config import recipes
from bertgpt.planning import aot, search, topologies


def make_config():
  config = tiny.make_config(mesh=(-1, 1, 1))
  config.eval.batch_size = 32
  return config


def make_step(config):
  return aot.CompiledStep(config, 0, aot.StateBytes(4e6, 8e6), 1e12, None, None, None)


def test_variants_train_the_same_on_the_same_machine():
  config = make_config()
  found = list(search.make_variants(config, 0, 8))
  fields = {override.split("=")[0].removeprefix("--config.")
            for overrides, _ in found for override in overrides}
  assert fields == {"phases[0].micro_batches", "model.remat", "model.scan_unroll", "mesh.fsdp",
                    "mesh.tensor"}
  assert len({overrides for overrides, _ in found}) == len(found) > 20
  for _, variant in found:
    assert config_lib.find_problems(variant, 8) == []
    assert variant != config
  for overrides, variant in found[::20]:  # The overrides that it prints make the same config.
    assert recipes.override(config, overrides) == variant


def test_a_mesh_of_another_size_is_given_up():
  """A recipe that sets data=8 has to give it up when fsdp grows."""
  config = make_config()
  config.mesh.data = 8
  for overrides, variant in search.make_variants(config, 0, 8):
    assert ("--config.mesh.data=-1" in overrides) == (variant.mesh.fsdp * variant.mesh.tensor > 1)


@pytest.mark.parametrize("lower, higher", [
    (["phases[0].micro_batches=2"], []), (["model.remat=dots"], []),
    (["model.remat=full"], ["model.remat=dots"]), (["mesh.fsdp=8"], []), (["mesh.tensor=2"], [])])
def test_estimates_of_memory_fall(lower, higher):
  config, topology = make_config(), on_fake_devices()
  low, high = (search.estimate_bytes(recipes.override(config, [f"--config.{o}" for o in overrides]),
                                     0, 12e6, topology) for overrides in (lower, higher))
  assert low < high


def test_the_estimate_is_of_the_size_of_the_program():
  """Within a factor of two of what is compiled, for a step in which activations dominate."""
  config = tiny.make_config(mesh=(1, 1, 1), width=64, mlp_dim=256, num_layers=3,
                            dtype="bfloat16", dropout=0.1, attention_dropout=0.1)
  config.phases[0].batch_size = 256
  topology = on_fake_devices(1)
  step = aot.compile_step(aot.lower_step(config, 0, topology), "tpu")
  estimate = search.estimate_bytes(config, 0, sum(step.state_bytes), topology)
  assert 0.5 < estimate / step.memory.total < 2


def test_what_cannot_fit_is_not_compiled():
  config = make_config()
  topology = on_fake_devices()
  roomy = search.choose_variants(make_step(config), topology)
  assert len(roomy) == search.MAX_COMPILATIONS
  chip = topology.chip._replace(usable_hbm=0)
  assert search.choose_variants(make_step(config), topology._replace(chip=chip)) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                    reason="the TPU compiler is not installed: pip install jax[tpu]")
def test_a_search_ranks_what_it_compiled():
  config = make_config()
  topology = topologies.open_topology("v5e:2x2")
  (phase,) = aot.make_plan(config, topology, [0])
  ranked = search.search(phase.step, topology)
  assert len(ranked) == 1 + search.MAX_COMPILATIONS
  assert () in [r.overrides for r in ranked]
  times = [r.plan.step_seconds for r in ranked if r.plan.fits]
  assert times == sorted(times)
  assert jax.default_backend() == "cpu"
