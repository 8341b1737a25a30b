"""bertgpt.models.flash_attention against the plain path: results, gradients, dropout masks.

The kernels for TPUs and GPUs run in Pallas' interpreter.
"""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from bertgpt.devices import data_parallel, sharding
from bertgpt.models import attention, flash_attention, flash_gpu, flash_tpu
from bertgpt.models.attention import Visibility

WORDS = np.array([3, 77], np.uint32)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(params=[flash_tpu, flash_gpu], ids=["tpu", "gpu"])
def kernels(request, monkeypatch):
  """Runs the kernels of one platform in the interpreter."""
  monkeypatch.setitem(flash_attention.KERNELS, "cpu", request.param)
  compute.clear_cache()
  yield request.param
  compute.clear_cache()


def make_ids(rows, length):
  """Returns rows with one to three sequences; the first row has padding."""
  at = np.arange(length)
  padded = np.where(at < length // 3, 1, np.where(at < length - 9, 2, 0))
  packed = 1 + (at > 20) + (at > length // 2)
  return np.stack([(padded, packed, np.ones(length))[row % 3] for row in range(rows)]).astype(int)


def make_inputs(rows, length, heads, width, dtype="float32"):
  """Returns query, key, value and the cotangent of the result, [B, L, N, H]."""
  rng = np.random.default_rng(length + width)
  return [jnp.asarray(rng.normal(size=(rows, length, heads, width)), dtype) for _ in range(4)]


@functools.partial(jax.jit, static_argnames=("kernel", "causal", "window", "rate"))
def compute(q, k, v, g, ids, kernel, causal=False, window=None, rate=0.0, words=WORDS):
  """Returns the result and the gradients of query, key and value."""
  visibility = Visibility(jnp.asarray(ids, jnp.int32), causal=causal, window=window)
  attend = functools.partial(attention.attend, visibility=visibility, kernel=kernel, dropout=rate,
                             dropout_key=jnp.asarray(words))
  x, backward = jax.vjp(attend, q, k, v)
  return x, *backward(g.reshape(x.shape))


def check_equal(found, expected, tolerance):
  for name, x, y in zip(("result", "dq", "dk", "dv"), found, expected, strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=0, atol=tolerance,
                               err_msg=name)


@pytest.mark.parametrize("shape, causal, window, rate", [
    ((2, 77, 3, 32), True, 5, 0.1),                    # Padded; heads that do not fill 128 lanes.
    ((2, 640, 1, 64), True, None, 0.1),                # Several tiles.
    ((1, 640, 1, 64), False, 130, 0.1),                # Some pairs of tiles are left out.
    slow((3, 128, 4, 64), False, None, 0.1),           # Two chunks of two heads.
    slow((2, 128, 2, 128), True, None, 0.3),           # A head per chunk.
    slow((1, 100, 3, 64), False, 7, 0.1),              # Padded in both directions.
    slow((2, 640, 2, 32), False, None, 0.1),
    slow((1, 640, 1, 64), True, 130, 0.0),
])
def test_result_and_gradients_equal_the_plain_ones(kernels, shape, causal, window, rate):
  inputs, ids = make_inputs(*shape), make_ids(*shape[:2])
  found, plain = (compute(*inputs, ids, kernel, causal, window, rate)
                  for kernel in ("flash", "xla"))
  check_equal(found, plain, 1e-5)


@pytest.mark.parametrize("rate", [slow(0.0), 0.1])
def test_bfloat16_is_as_exact_as_the_plain_path(kernels, rate):
  """Both paths in bfloat16 are compared with the plain path in float32."""
  inputs, ids = make_inputs(2, 128, 2, 64, "bfloat16"), make_ids(2, 128)
  exact = compute(*(x.astype(jnp.float32) for x in inputs), ids, "xla", rate=rate)
  found, plain = (compute(*inputs, ids, kernel, rate=rate) for kernel in ("flash", "xla"))
  for x, y, z in zip(found, plain, exact, strict=True):
    assert x.dtype == jnp.bfloat16
    error, plain_error = (np.abs(np.asarray(a, float) - z).max() for a in (x, y))
    assert error < 1.5 * plain_error


@pytest.mark.parametrize("length, heads, width", [
    (128, 2, 64), slow(100, 3, 32), slow(640, 1, 128)])
def test_the_same_weights_are_dropped_bit_for_bit(kernels, length, heads, width):
  """With rows of the unit matrix as values, results show the weights of a few keys at a time."""
  q, k, _, g = make_inputs(1, length, heads, width)
  ids = np.ones((1, length))
  for first in range(0, length, width):
    v = np.zeros((length, width))
    keys = np.arange(first, min(first + width, length))
    v[keys, keys - first] = 1
    v = jnp.asarray(np.broadcast_to(v[None, :, None], q.shape), jnp.float32)
    found, plain = (compute(q, k, v, g, ids, kernel, rate=0.3)[0] for kernel in ("flash", "xla"))
    np.testing.assert_array_equal(found == 0, plain == 0)
    shown = np.asarray(plain).reshape(length, heads, width)[:, :, :len(keys)]
    assert 0.2 < (shown == 0).mean() < 0.4


@pytest.mark.parametrize("causal, window", [
    (True, 9), slow(False, None), slow(True, None), slow(False, 9)])
def test_a_hidden_token_changes_nothing(kernels, causal, window):
  """If a token changes, only tokens that see it, or that it sees, change by a bit."""
  inputs, ids = make_inputs(1, 128, 2, 64), make_ids(2, 128)[1:]
  token = 40
  changed = [x.at[:, token].set(9 - 5 * x[:, token]) for x in inputs]
  run = functools.partial(compute, ids=ids, kernel="flash", causal=causal, window=window, rate=0.1)
  before, after = run(*inputs), run(*changed)
  mask = np.asarray(Visibility(jnp.asarray(ids), causal=causal, window=window).mask())[0, 0]
  sees, is_seen = mask[:, token], mask[token]
  # A query that sees the token changes the gradients of all keys that it sees.
  shares = mask[sees].any(0) | is_seen
  for name, x, y, may_change in zip(("result", "dq", "dk", "dv"), before, after,
                                    (sees, sees, shares, shares), strict=True):
    np.testing.assert_array_equal(x[0, ~may_change], y[0, ~may_change], name)
    assert (x[0, token] != y[0, token]).any()
    assert not may_change.all()


def test_an_empty_row_has_no_nan(kernels):
  """Rows that fill up a batch hold only padding."""
  found = compute(*make_inputs(1, 128, 2, 64, "bfloat16"), np.zeros((1, 128)), "flash", rate=0.1)
  assert all(np.isfinite(np.asarray(x, float)).all() for x in found)


def test_no_array_of_queries_and_keys_is_kept():
  q, k, v, _ = make_inputs(1, 640, 1, 64)
  attend = functools.partial(attention.attend, visibility=Visibility(jnp.ones((1, 640), int)),
                             kernel="flash", dropout=0.1, dropout_key=jnp.asarray(WORDS))
  kept = jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(attend, *x)[1], q, k, v))
  assert len(kept) >= 5 and max(x.size for x in kept) == q.size


def test_a_row_may_have_more_weights_than_numbers_of_32_bits():
  """Indices of the dropout mask wrap around in the plain path, too."""
  x = jax.ShapeDtypeStruct((1, 16_384, 16, 64), "bfloat16")
  attend = functools.partial(flash_attention.attend, causal=True, window=None, rate=0.1)
  found = jax.eval_shape(lambda q, ids, key_data: attend(q, q, q, ids, key_data=key_data), x,
                         jax.ShapeDtypeStruct((1, 16_384), "int32"), WORDS)
  assert found.shape == (1, 16_384, 16 * 64)


@pytest.mark.parametrize("mesh", [(2, 2, 2), slow((1, 2, 4))])
def test_every_device_drops_what_one_device_does(mesh):
  config = tiny.make_config(mesh=mesh)
  inputs, ids = make_inputs(4, 128, 4, 32), make_ids(4, 128)
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    split = [jax.device_put(x, P(("data", "fsdp"), None, "tensor")) for x in inputs]
    found = compute(*split, jax.device_put(ids, P(("data", "fsdp"))), "flash", rate=0.3)
    text = compute.lower(*split, ids, "flash", rate=0.3).compile().as_text()
  check_equal(found, compute(*inputs, ids, "xla", rate=0.3), 1e-5)
  assert "all-gather" not in text


def test_a_micro_batch_drops_what_the_whole_batch_does():
  """It holds every second row."""
  inputs, ids = make_inputs(4, 128, 2, 64), make_ids(4, 128)
  whole = compute(*inputs, ids, "flash", rate=0.3)
  for first in range(2):
    rows = slice(first, None, 2)
    compute.clear_cache()  # The program of the other micro-batch has the same arguments.
    with data_parallel.use_micro_batch(first, 2):
      part = compute(*(x[rows] for x in inputs), ids[rows], "flash", rate=0.3)
    check_equal(part, [x[rows] for x in whole], 1e-5)
  compute.clear_cache()


@pytest.mark.parametrize("objective, mesh, pieces", [
    slow("mlm_nsp", (1, 1, 1), 1),
    slow("causal", (2, 2, 2), 2),
    slow("mlm_nsp", (2, 2, 2), 2),
    slow("mlm_nsp", (4, 1, 2), 1),
    slow("causal", (1, 4, 2), 4)])
@pytest.mark.parametrize("kernels", [flash_tpu, slow(flash_gpu)], indirect=True)
def test_training_equals_that_with_the_plain_path(kernels, objective, mesh, pieces):
  """Runs have both kinds of dropout, on meshes and in micro-batches."""

  def run(kernel, mesh):
    config = tiny.make_config(objective, mesh=mesh, attention=kernel, num_layers=1, dropout=0.1,
                              attention_dropout=0.2)
    with tiny.Setup(config) as setup:
      batch = setup.put(tiny.make_batch(config, rows=8))
      grads, (loss, _) = setup.gradients(pieces)(setup.init().params, batch, 3)
      return jax.device_get((loss, grads))

  loss, grads = run("flash", mesh)
  expected_loss, expected_grads = run("xla", (1, 1, 1))
  assert loss == pytest.approx(expected_loss, rel=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), grads,
               expected_grads)


# --------------------------------------------------------- compiled for a TPU

TPU = """
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import test_flash_attention as t
from bertgpt import config as config_lib
from bertgpt.devices import sharding
from bertgpt.planning import topologies

config = config_lib.base()
devices = topologies.open_topology("KIND:2x2").devices
mesh = sharding.make_mesh(config, devices)
rows = NamedSharding(mesh, P(("data", "fsdp")))
with sharding.use_mesh(mesh, config):
  for length, heads, width, causal, window, rate, dtype in (
      (128, 12, 64, False, None, 0.1, "bfloat16"), (1024, 2, 64, True, 200, 0.1, "bfloat16"),
      (555, 3, 64, False, None, 0.0, "bfloat16"),
      # The longest rows that attention_kernels.py allows.
      (8192, 1, 128, False, None, 0.1, "bfloat16"), (4096, 1, 128, False, None, 0.1, "float32"),
      (4096, 1, 64, False, None, 0.1, "float32")):
    x = jax.ShapeDtypeStruct((8, length, heads, width), dtype, sharding=rows)
    ids = jax.ShapeDtypeStruct((8, length), "int32", sharding=rows)
    program = t.compute.lower(x, x, x, x, ids, "flash", causal, window, rate).compile()
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert f"{length},{length}]" not in text
    assert program.output_shardings[1].is_equivalent_to(rows, 4), program.output_shardings
"""


@pytest.mark.libtpu
@pytest.mark.parametrize("kind", ["v5e", "v6e"])
def test_it_compiles_for_tpus(kind):
  """Both passes compile, for rows of one tile or several; each chip has its own rows."""
  tests = pathlib.Path(__file__).parents[1]
  env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join(map(str, [tests / "models", tests / "helpers", tests.parent]))}
  result = subprocess.run([sys.executable, "-c", TPU.replace("KIND", kind)], env=env, cwd=tests,
                          check=False, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-2000:]
