"""bertgpt.models.float8: rounding and matmuls against ml_dtypes and NumPy, and short trainings."""

import re
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from fake_slice import on_fake_devices
from jax.sharding import SingleDeviceSharding

from bertgpt.config import finetuning
from bertgpt.devices import hardware
from bertgpt.errors import ConfigError
from bertgpt.finetuning import tuning
from bertgpt.models import float8, layers
from bertgpt.planning import hlo, hlo_costs, plan, topologies
from bertgpt.runs import trained

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def np_round(x, dtype):
  """Returns x, scaled and rounded to `dtype` by NumPy and ml_dtypes, as float64."""
  x = np.asarray(x, np.float64)
  scale = 2.0 ** np.ceil(np.log2(np.abs(x).max() / float(ml_dtypes.finfo(dtype).max)))
  return (x / scale).astype(dtype).astype(np.float64) * scale


def make_inputs(dtype="float32", sizes=(48, 32, 64)):
  rng = np.random.default_rng(0)
  b, i, o = sizes
  return [jnp.asarray(factor * rng.normal(size=shape), dtype)
          for factor, shape in ((3, (b, i)), (0.02, (i, o)), (1e-4, (b, o)))]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("factor", [1.0, 3e-5, 700.0])
def test_arrays_are_rounded_by_their_largest_magnitude(factor, dtype):
  x = jnp.asarray(factor * np.random.default_rng(1).normal(size=(40, 30)), jnp.float32)
  rounded, scale = float8.quantize(x, dtype)
  assert rounded.dtype == dtype and np.log2(float(scale)) % 1 == 0
  found = np.asarray(rounded, np.float64) * float(scale)
  np.testing.assert_array_equal(found, np_round(x, dtype))
  bits = {E4M3: 4, E5M2: 3}[dtype]  # Significant ones.
  normal = np.abs(x) > np.abs(x).max() / 100
  assert (np.abs(found - x) <= np.abs(x) * 2.0**-bits)[normal].all()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_largest_magnitude_and_zeros_stay_finite(dtype):
  most = float(ml_dtypes.finfo(dtype).max)
  for values in ([most, -1], [-most * 1.001, 1], [0, 0], [1e-30, -1e-36]):
    rounded, scale = float8.quantize(jnp.asarray(values, jnp.float32), dtype)
    assert np.isfinite(np.asarray(rounded, np.float32) * float(scale)).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so(bad):
  """So the step is not applied, as in every other precision."""
  x, kernel, _ = make_inputs()
  assert not np.isfinite(np.asarray(float8.multiply(x.at[3, 5].set(bad), kernel))).all()


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_products_and_gradients_are_those_of_rounded_factors(dtype, tolerance):
  x, kernel, g = make_inputs(dtype)
  y, backward = jax.vjp(float8.multiply, x, kernel)
  found = (y, *backward(g))
  x, kernel, g = np_round(x, E4M3), np_round(kernel, E4M3), np_round(g, E5M2)
  for name, a, b in zip(("y", "dx", "dkernel"), found, (x @ kernel, g @ kernel.T, x.T @ g),
                        strict=True):
    assert a.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0,
                               atol=tolerance * np.abs(b).max(), err_msg=name)


def test_the_backward_pass_keeps_one_byte_per_feature():
  x, kernel, _ = make_inputs("bfloat16")
  _, (kept, _) = float8._multiply_forward(x, kernel)
  assert kept[0].nbytes == x.size


def train(steps, **model):
  """Returns the losses of the first training steps, on random rows that repeat."""
  config = tiny.make_config("causal", dtype="bfloat16", **model)
  config.phases[0].update(steps=steps, warmup_steps=0)
  with tiny.Setup(config) as setup:
    step, state = setup.step(), setup.init()
    batches = [setup.put(tiny.make_batch(config, seed)) for seed in range(4)]
    losses = []
    for i in range(steps):
      state, sums = step(state, batches[i % len(batches)])
      losses.append(float(sums["loss"][0]))
  return losses


@pytest.mark.parametrize("steps, layers", [(8, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_a_training_loses_at_most_a_hundredth(steps, layers):
  expected, found = (np.array(train(steps, num_layers=layers, matmul=matmul))
                     for matmul in ("bf16", "fp8"))
  assert (expected != found).any()
  last = slice(-8, None)
  assert abs(found[last].mean() / expected[last].mean() - 1) < 0.01
  assert expected[-1] < expected[0]


# -------------------------------------------------------------- compiled


def compile_product(name, **options):
  """Returns the text of a matmul and its gradients, compiled for one device of a machine."""
  topology = topologies.open_topology(name)
  sharding = SingleDeviceSharding(topology.devices[0])
  x, kernel, y = (jax.ShapeDtypeStruct(shape, "bfloat16", sharding=sharding)
                  for shape in ((512, 256), (256, 1024), (512, 1024)))

  def compute(x, kernel, g):
    y, backward = jax.vjp(float8.multiply, x, kernel)
    return y, *backward(g)

  options = topologies.COMPILER_OPTIONS[topology.platform] | options
  return jax.jit(compute).lower(x, kernel, y).compile(options).as_text()


def fp8_products(text):
  """Returns the float8 matmuls of a program."""
  module = hlo.parse(text)
  return [part for execution in hlo.executions(module) for part in execution.instruction.parts()
          if (product := hlo_costs.product_of(part)) and product.is_fp8]


@pytest.mark.cuda
def test_hopper_multiplies_in_float8_with_cublas():
  """The three calls are the forward matmul and both gradients; scaling is part of them."""
  text = compile_product("h100:1", xla_gpu_enable_triton_gemm=False)
  assert len(re.findall(r'custom_call_target="__cublas\$lt\$matmul\$f8"', text)) == 3
  assert len(fp8_products(text)) == 3


@pytest.mark.cuda
@pytest.mark.parametrize("name, number", [("h100:1", 3), ("b200:1", 3), ("a100:1", 0)])
def test_products_of_triton(name, number):
  """XLA's own kernels multiply float8 too, but not on Ampere, which has none."""
  assert len(fp8_products(compile_product(name))) == number


@pytest.mark.slow
@pytest.mark.libtpu
def test_ironwood_multiplies_float8_faster():
  """By the compiler's estimates for a large matmul, v6e is as fast in bfloat16."""
  cycles = {}
  for name in ("tpu7x:1x1x1", "v6e:1x1"):
    sharding = SingleDeviceSharding(topologies.open_topology(name).devices[0])
    for dtype in ("bfloat16", "float8_e4m3fn"):
      x = jax.ShapeDtypeStruct((4096, 4096), dtype, sharding=sharding)
      product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.bfloat16)).lower(x)
      found = re.findall(r'"estimated_cycles":"(\d+)"', product.compile().as_text())
      cycles[name, dtype] = max(map(int, found))
  assert cycles["tpu7x:1x1x1", "bfloat16"] > 1.5 * cycles["tpu7x:1x1x1", "float8_e4m3fn"]
  assert cycles["v6e:1x1", "bfloat16"] < 1.1 * cycles["v6e:1x1", "float8_e4m3fn"]


def test_a_chip_without_float8_is_refused():
  with pytest.raises(ConfigError, match=r"^model.matmul='fp8': --topology=fake has no float8 "
                                        r"matmuls; b200, h200, h100, tpu7x, v6e have"):
    plan.check(tiny.make_config(matmul="fp8"), on_fake_devices(1))
  for kind in ("NVIDIA A100-SXM4-80GB", "TPU v5 lite"):
    with pytest.raises(ConfigError, match=kind):
      hardware.check_matmul("fp8", kind, hardware.find_chip(kind))
    hardware.check_matmul("bf16", kind, hardware.find_chip(kind))
  for kind in ("cpu", "NVIDIA H100 80GB HBM3", "TPU7x"):
    hardware.check_matmul("fp8", kind, hardware.find_chip(kind))


def test_a_chip_without_float8_needs_a_dtype_for_fine_tuning(monkeypatch):
  """The test's devices count as a chip without float8."""
  monkeypatch.setitem(hardware.CHIPS, "cpu", hardware.CHIPS["a100"]._replace(device_kinds=("cpu",)))
  vocabulary = types.SimpleNamespace(vocab_size=64)
  pretrained = trained.make_trained(tiny.make_config(matmul="fp8"), {}, vocabulary, 0, "", dtype="")
  config = finetuning.base()
  config.task.max_length = 16
  with pytest.raises(ConfigError, match=r"^model.matmul='fp8'.*Set dtype='bfloat16'$"):
    tuning.check_run(config, pretrained)
  config.dtype = "float32"
  tuning.check_run(config, pretrained)


@pytest.mark.parametrize("inputs, outputs, is_fp8", [
    (32, 48, True), (24, 32, False), (32, 24, False)])
def test_both_sides_of_the_weights_are_multiples_of_16(inputs, outputs, is_fp8):
  dense = layers.make_dense(tiny.make_config(matmul="fp8").model, outputs, "dense")
  x = jnp.ones((4, inputs), jnp.bfloat16)
  text = jax.jit(lambda x: dense.init_with_output(jax.random.key(0), x)[0]).lower(x).as_text()
  assert ("f8E4M3FN" in text) == is_fp8


def test_small_output_layers_and_scores_stay_in_their_dtype():
  """The next-sentence head has two classes. Trained models compute scores in float32."""
  config = tiny.make_config("mlm_nsp", matmul="fp8", num_layers=1)
  with tiny.Setup(config) as setup:
    text = setup.gradients().lower(setup.init().params, setup.put(tiny.make_batch(config)), 0)
    assert "x2xf8" not in text.as_text() and "f8E4M3FN" in text.as_text()
  used = trained.make_trained(config, {}, None, 0, "")
  assert used.config.model.matmul == "bf16" and config.model.matmul == "fp8"
