"""bertgpt.planning.search: variants are valid, train alike, and are ranked by what they need."""

import importlib.util

import jax
import pytest
import tiny
from fake_slice import on_fake_devices

from bertgpt import config as config_lib
from bertgpt.config import attention_kernels, layer_loop, recipes
from bertgpt.config.overrides import override
from bertgpt.devices import hardware
from bertgpt.planning import aot, plan, search, topologies


def make_config(**model):
  config = tiny.make_config(mesh=(-1, 1, 1), **model)
  config.eval.batch_size = 32
  return config


def make_step(config):
  return aot.CompiledStep(config, 0, aot.StateBytes(4e6, 8e6), 1e12, None, None, None)


def test_variants_train_the_same_on_the_same_machine():
  config = make_config()
  found = list(search.make_variants(config, 0, 8, "tpu"))
  fields = {override.split("=")[0].removeprefix("--config.")
            for overrides, _ in found for override in overrides}
  assert fields == {"phases[0].micro_batches", "model.remat", "model.scan_unroll", "mesh.fsdp",
                    "mesh.tensor", "objective.loss_chunk"}  # Splash needs rows of 128 tokens.
  assert len({overrides for overrides, _ in found}) == len(found) > 20
  for _, variant in found:
    assert config_lib.find_problems(variant, 8) == []
    assert variant != config
  for overrides, variant in found[::50]:  # The overrides that it prints make the same config.
    assert override(config, overrides) == variant


def test_a_mesh_of_another_size_is_given_up():
  """A variant with a larger fsdp axis must drop the recipe's data=8."""
  config = make_config()
  config.mesh.data = 8
  for overrides, variant in search.make_variants(config, 0, 8, "tpu"):
    assert ("--config.mesh.data=-1" in overrides) == (variant.mesh.fsdp * variant.mesh.tensor > 1)


@pytest.mark.parametrize("change", ["model.remat=full", "phases[0].micro_batches=128"])
def test_variants_may_keep_any_value_of_the_config(change):
  """64 micro-batches and mesh.tensor=8 are more than the search tries of itself."""
  config = make_config(num_layers=1, num_heads=8)
  config.mesh.tensor = 8
  config.phases[0].update(batch_size=4096, micro_batches=64)
  assert any(overrides == (f"--config.{change}",)
             for overrides, _ in search.make_variants(config, 0, 8, "tpu"))


def paper(length=128, **model):
  """Returns the config of BERT-base with one phase of 256 rows."""
  config = recipes.load("configs/bert_base.py")
  config.phases = config.phases[:1]
  config.phases[0].seq_len = length
  config.model.update(model)
  return config


@pytest.mark.parametrize("platform, config, kernels", [
    ("gpu", paper(attention_dropout=0.0), {"xla", "cudnn"}),
    ("tpu", paper(512, attention_dropout=0.0), {"xla", "splash"}),
    ("tpu", paper(512, attention_dropout=0.0, attention="splash"), {"xla", "splash"}),
    ("tpu", paper(attention_dropout=0.0), {"xla", "splash"})])
def test_every_kernel_that_can_run_is_tried_once(platform, config, kernels):
  names = search.program_choices(config, 0, platform)["model.attention"]
  layer = search.attention_layer(config, 0, platform)
  chosen = [attention_kernels.choose(name, layer)[0] for name in names]
  assert kernels <= set(chosen) and len(chosen) == len(set(chosen))
  assert config.model.attention in names or chosen.count(
      attention_kernels.choose(config.model.attention, layer)[0]) == 1


@pytest.mark.parametrize("platform, loops", [("tpu", {1, 2, 12}), ("gpu", {1, 2, 12})])
def test_every_loop_is_tried_once(platform, loops):
  values = search.program_choices(paper(), 0, platform)["model.scan_unroll"]
  chosen = [layer_loop.choose(value, platform, 12)[0] for value in values]
  assert set(chosen) == loops and len(chosen) == len(loops)
  assert layer_loop.AUTO in values


def test_every_kind_of_program_is_compiled_before_a_second_layout_of_one():
  config = paper(attention_dropout=0.0)
  config.mesh.data = 1
  step = aot.CompiledStep(config, 0, aot.StateBytes(4e8, 8e8), 2e13, None, None, None)
  topology = topologies.Topology("h200:1", "gpu", hardware.CHIPS["h200"], (), 1, [None])
  chosen = search.choose_variants(step, topology)
  kinds = [tuple(filter(search.is_program_choice, overrides)) for overrides, _ in chosen]
  assert len(set(kinds)) == len(kinds) == search.MAX_COMPILATIONS


@pytest.mark.parametrize("kind, platform", [("h200:1", "gpu"), ("v5p:1x1x1", "tpu")])
def test_a_variant_does_not_change_remat_besides_something_else_without_need(kind, platform):
  """The formula finds `none` and `products` equally fast; the one that is better is the default."""
  config = paper()
  step = aot.CompiledStep(config, 0, aot.StateBytes(4e8, 8e8), 2e13, None, None, None)
  topology = topologies.Topology(kind, platform, hardware.CHIPS[kind.split(":")[0]], (), 1, [None])
  chosen = [overrides for overrides, _ in search.choose_variants(step, topology)]
  assert len(chosen) == search.MAX_COMPILATIONS
  assert all(len(overrides) == 1 for overrides in chosen if "model.remat" in " ".join(overrides))


@pytest.mark.parametrize("lower, higher", [
    (["phases[0].micro_batches=2"], []), (["model.remat=dots"], []),
    (["model.remat=full"], ["model.remat=dots"]), (["mesh.fsdp=8"], []), (["mesh.tensor=2"], [])])
def test_estimates_of_memory_fall(lower, higher):
  config, topology = make_config(), on_fake_devices()
  low, high = (search.estimate_bytes(override(config, [f"--config.{o}" for o in overrides]),
                                     0, aot.StateBytes(4e6, 8e6), topology)
               for overrides in (lower, higher))
  assert low < high


@pytest.mark.parametrize("optimizer_bytes", [2e9, 1e6])
def test_gradients_are_as_large_as_the_parameters(optimizer_bytes):
  """Whatever the optimizer keeps: Adafactor keeps nearly nothing, AdamW twice the parameters."""
  estimates = [search.estimate_bytes(make_config(), 0, state, on_fake_devices(1)) for state in (
      aot.StateBytes(0, 0), aot.StateBytes(1e9, optimizer_bytes))]
  assert estimates[1] - estimates[0] == pytest.approx(2e9 + optimizer_bytes)


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "products"])
def test_the_estimate_is_of_the_size_of_the_program(remat):
  """The estimate is within a factor of two of the compiled step, if activations dominate."""
  config = tiny.make_config(mesh=(1, 1, 1), remat=remat, width=64, mlp_dim=256, num_layers=3,
                            dtype="bfloat16", dropout=0.1, attention_dropout=0.1)
  config.phases[0].batch_size = 256
  topology = on_fake_devices(1)
  step = aot.compile_step(aot.lower_step(config, 0, topology), "tpu")
  estimate = search.estimate_bytes(config, 0, step.state_bytes, topology)
  assert 0.5 < estimate / step.memory.total < 2


def test_chunks_of_logits_are_those_of_the_platform():
  """Chunks of logits, and of their gradients, have 2**28 bytes on CPUs, and 2**30 elsewhere."""
  config = paper(attention="xla", remat="none", vocab_size=50304)
  config.phases[0].update(batch_size=4096, micro_batches=1, max_predictions=100)
  topology = on_fake_devices(1)
  cpu, tpu = (search.estimate_bytes(config, 0, aot.StateBytes(0, 0),
                                    topology._replace(platform=platform))
              for platform in ("cpu", "tpu"))
  assert tpu - cpu == 2 * (2**30 - 2**28)


def test_what_cannot_fit_is_not_compiled():
  config = make_config()
  topology = on_fake_devices()
  roomy = search.choose_variants(make_step(config), topology)
  assert len(roomy) == search.MAX_COMPILATIONS
  chip = topology.chip._replace(usable_hbm=0)
  assert search.choose_variants(make_step(config), topology._replace(chip=chip)) == []


def test_the_formula_is_corrected_by_the_step_that_does_not_fit():
  """If it needs four times the estimate, only variants of a quarter of it are tried."""
  step, topology = make_step(make_config()), on_fake_devices()
  estimate = lambda config: search.estimate_bytes(config, 0, step.state_bytes, topology)
  limit = estimate(step.config)
  topology = topology._replace(chip=topology.chip._replace(usable_hbm=limit))
  assert max(estimate(config) for _, config in search.choose_variants(step, topology)) > limit / 4
  step = step._replace(overflow=aot.Overflow(4 * limit, limit, []))
  assert max(estimate(config) for _, config in search.choose_variants(step, topology)) < limit / 4


def test_parameters_stay_in_a_slice():
  """A mesh that splits them over the network between slices is an error: `sharding.make_mesh`."""
  topology = on_fake_devices(num_slices=4)
  chosen = search.choose_variants(make_step(make_config(num_layers=1)), topology)
  assert len(chosen) == search.MAX_COMPILATIONS
  model = [variant.mesh.fsdp * variant.mesh.tensor for _, variant in chosen]
  assert max(model) == 2


def test_chunks_that_no_device_fills_are_not_tried():
  """Of 8,192 predictions, each of 8 chips has 1,024: chunks of 1,024 and 4,096 are all of them."""
  config = make_config(num_layers=1)
  config.phases[0].batch_size = 1024
  chunks = lambda chips: {
      variant.objective.loss_chunk for _, variant in search.make_variants(config, 0, chips, "tpu")
      if variant.phases[0].micro_batches == variant.mesh.tensor == 1}
  assert chunks(1) == {0, -1, 1024, 4096} and chunks(8) == {0, -1}


def test_a_search_without_a_variant_that_fits_says_so():
  step = make_step(make_config())._replace(overflow=aot.Overflow(2e10, 1e10, []))
  topology = on_fake_devices()
  ranked = search.search(step, topology._replace(chip=topology.chip._replace(usable_hbm=0)))
  text = plan.show_search(ranked, step)
  assert "does not fit" in text and "no variant that this machine can run" in text


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
