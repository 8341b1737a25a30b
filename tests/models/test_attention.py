"""Every attention kernel against plain NumPy in float64; no sequence sees another."""

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
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from bertgpt import config as config_lib
from bertgpt.data.batches import formats
from bertgpt.devices import data_parallel, sharding
from bertgpt.models import attention
from bertgpt.models.attention import Visibility

ROWS, LENGTH, HEADS, WIDTH = 2, 128, 2, 64
KERNELS = ("xla", "splash")  # Kernels that run on a CPU; splash is interpreted.


def make_ids(length=LENGTH):
  """Returns rows with two or three sequences; the first has padding."""
  at = np.arange(length)
  first = np.where(at < length // 3, 1, np.where(at < length - 9, 2, 0))
  return np.stack([first, 1 + (at > 20) + (at > length // 2)]).astype(np.int32)


def make_inputs(dtype, length=LENGTH, rows=ROWS, heads=HEADS):
  """Returns query, key, value and the cotangent of the result."""
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=(rows, length, heads, WIDTH)), dtype) for _ in range(4)]


@functools.partial(jax.jit, static_argnames=("kernel", "causal", "window"))
def compute(q, k, v, g, ids, kernel, causal, lengths=None, window=None, is_global=None):
  """Returns the result and the gradients of query, key and value."""
  visibility = Visibility(ids, lengths, causal=causal, window=window, is_global=is_global)
  attend = functools.partial(attention.attend, visibility=visibility, kernel=kernel, dropout=0.0,
                             dropout_key=None)
  x, backward = jax.vjp(lambda *x: attend(*x).reshape(v.shape), q, k, v)
  return x, *backward(g)


def np_compute(q, k, v, g, ids, causal, window=LENGTH * 100):
  q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
  length, scale = q.shape[1], q.shape[-1] ** -0.5
  allowed = ids[:, :, None] == ids[:, None, :]
  if causal:
    allowed &= np.arange(length)[:, None] >= np.arange(length)
  allowed &= abs(np.arange(length)[:, None] - np.arange(length)) <= window
  p = np.exp(np.einsum("blnh,bsnh->bnls", q, k) * scale) * allowed[:, None]
  p /= p.sum(-1, keepdims=True)
  dp = np.einsum("blnh,bsnh->bnls", g, v)
  ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
  return (np.einsum("bnls,bsnh->blnh", p, v), np.einsum("bnls,bsnh->blnh", ds, k),
          np.einsum("bnls,blnh->bsnh", ds, q), np.einsum("bnls,blnh->bsnh", p, g))


def check_equal(found, expected, tolerance):
  for name, x, y in zip(("result", "dq", "dk", "dv"), found, expected, strict=True):
    np.testing.assert_allclose(np.asarray(x, np.float64), y, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_result_and_gradients_equal_numpy(kernel, causal, dtype, tolerance):
  inputs, ids = make_inputs(dtype), make_ids()
  found = compute(*inputs, ids, kernel, causal)
  assert {x.dtype for x in found} == {jnp.dtype(dtype)}
  check_equal(found, np_compute(*inputs, ids, causal), tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_splash_in_several_blocks_equals_numpy(causal):
  length = attention.SPLASH_BLOCK + 128
  inputs, ids = make_inputs("float32", length, heads=1), make_ids(length)
  check_equal(compute(*inputs, ids, "splash", causal), np_compute(*inputs, ids, causal), 1e-5)


@pytest.mark.parametrize("is_global", [None, False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_hides_far_keys_from_local_layers(kernel, causal, is_global):
  """A row has three blocks of splash attention, of which a local layer skips some."""
  length = 384
  inputs, ids = make_inputs("float32", length, heads=1), make_ids(length)
  flag = None if is_global is None else jnp.asarray(is_global)
  found = compute(*inputs, ids, kernel, causal, None, 9, flag)
  check_equal(found, np_compute(*inputs, ids, causal, *([] if is_global else [9])), 1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_sequence_sees_another(kernel, causal):
  """If one sequence changes, results and gradients of the others stay the same, bit for bit."""
  inputs, ids = make_inputs("bfloat16"), make_ids()
  changed = [jnp.where((ids == 2)[..., None, None], 9 - 5 * x, x) for x in inputs]
  pairs = zip(compute(*inputs, ids, kernel, causal), compute(*changed, ids, kernel, causal),
              strict=True)
  for before, after in pairs:
    np.testing.assert_array_equal(before[ids != 2], after[ids != 2])
    assert (before[ids == 2] != after[ids == 2]).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_device_attends_to_its_own_rows_and_heads(kernel):
  config = tiny.make_config(mesh=(2, 2, 2))
  inputs, ids = make_inputs("float32", rows=4), np.tile(make_ids(), (2, 1))
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    split = [jax.device_put(x, P(("data", "fsdp"), None, "tensor")) for x in inputs]
    found = compute(*split, jax.device_put(ids, P(("data", "fsdp"))), kernel, False)
  check_equal(found, np_compute(*inputs, ids, False), 1e-5)
  assert {x.sharding.shard_shape(x.shape) for x in found} == {(1, LENGTH, 1, WIDTH)}


@pytest.mark.parametrize("objective, layers, mesh", [
    ("causal", 1, (1, 1, 1)),
    pytest.param("mlm_nsp", 2, (2, 2, 2), marks=pytest.mark.slow)])
def test_whole_model_with_splash_equals_the_plain_one(objective, layers, mesh, monkeypatch):
  monkeypatch.setattr(tiny, "LENGTH", 128)  # Rows of a length that splash accepts.

  def run(kernel, mesh):
    config = tiny.make_config(objective, mesh=mesh, attention=kernel, num_layers=layers)
    with tiny.Setup(config) as setup:
      batch = setup.put(tiny.make_batch(config, rows=4))
      grads, (loss, _) = setup.gradients()(setup.init().params, batch, 3)
      return jax.device_get((loss, grads))

  loss, grads = run("splash", mesh)
  expected_loss, expected_grads = run("xla", (1, 1, 1))
  assert loss == pytest.approx(expected_loss, rel=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), grads,
               expected_grads)


# ------------------------------------------------ cuDNN's arguments, without cuDNN


@pytest.fixture
def use_cudnn(monkeypatch):
  """Makes every call of attention a cuDNN call, which XLA emulates on a CPU."""
  monkeypatch.setattr(attention.attention_kernels, "choose", lambda *args: ("cudnn", "a test"))


LENGTHS = np.array([LENGTH - 30, LENGTH])


def make_visibility(rows, causal):
  """Returns which token sees which, in rows of one sequence or of several."""
  if rows == "packed":
    return Visibility(make_ids(), causal=causal)
  ids = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.int32)
  return Visibility(ids, jnp.asarray(LENGTHS, jnp.int32), causal=causal)


def compute_in_replicas(q, k, v, g, visibility):
  """Returns what `compute` returns, from two replicas of one row each."""

  def attend(q, k, v, g, visibility):
    attend = functools.partial(attention.attend, visibility=visibility, kernel="cudnn",
                               dropout=0.0, dropout_key=None)
    x, backward = jax.vjp(lambda *x: attend(*x).reshape(v.shape), q, k, v)
    return x, *backward(g)

  split = lambda x: x[:, None]
  found = data_parallel.map_replicas(attend, *jax.tree.map(split, (q, k, v, g, visibility)))
  return jax.tree.map(lambda x: x[:, 0], found)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ["packed", "one sequence"])
@pytest.mark.parametrize("in_replicas", [False, True])
def test_arguments_of_cudnn_mean_what_they_should(use_cudnn, rows, causal, in_replicas):
  """Padding is not compared: in rows of one sequence, nothing reads it."""
  visibility = make_visibility(rows, causal)
  is_text = (np.asarray(visibility.sequence_ids_BL) > 0)[..., None, None]
  q, k, v, g = make_inputs("bfloat16")
  g = jnp.where(is_text, g, 0)
  if in_replicas:
    found = compute_in_replicas(q, k, v, g, visibility)
  else:
    found = compute(q, k, v, g, visibility.sequence_ids_BL, "cudnn", causal,
                    visibility.lengths_B)
  expected = np_compute(q, k, v, g, np.asarray(visibility.sequence_ids_BL), causal)
  check_equal([np.where(is_text, x, 0) for x in found],
              [np.where(is_text, x, 0) for x in expected], 4e-2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ["packed", "one sequence"])
def test_cudnn_shows_no_token_what_it_must_not_see(use_cudnn, rows, causal):
  """Changes in another sequence, in padding or in later tokens change no bit elsewhere."""
  visibility = make_visibility(rows, causal)
  ids = np.asarray(visibility.sequence_ids_BL)
  other = ids != 1
  if causal and rows == "one sequence":
    other |= np.arange(LENGTH) > 40
  run = lambda *x: compute(*x, visibility.sequence_ids_BL, "cudnn", causal, visibility.lengths_B)
  inputs = make_inputs("bfloat16")
  inputs[3] = jnp.where(other[..., None, None], 0, inputs[3])
  changed = [jnp.where(other[..., None, None], 9 - 5 * x, x) for x in inputs[:3]] + inputs[3:]
  for before, after in zip(run(*inputs), run(*changed), strict=True):
    np.testing.assert_array_equal(before[~other], after[~other])


@pytest.mark.parametrize("is_global", [None, False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ["packed", "one sequence"])
def test_windows_of_cudnn_mean_what_they_should(use_cudnn, rows, causal, is_global):
  """cuDNN gets a sliding window for causal rows of one sequence, and a mask for others."""
  visibility = make_visibility(rows, causal)
  is_text = (np.asarray(visibility.sequence_ids_BL) > 0)[..., None, None]
  q, k, v, g = make_inputs("bfloat16")
  g = jnp.where(is_text, g, 0)
  flag = None if is_global is None else jnp.asarray(is_global)
  found = compute(q, k, v, g, visibility.sequence_ids_BL, "cudnn", causal, visibility.lengths_B, 9,
                  flag)
  expected = np_compute(q, k, v, g, np.asarray(visibility.sequence_ids_BL), causal,
                        *([] if is_global else [9]))
  check_equal([np.where(is_text, x, 0) for x in found],
              [np.where(is_text, x, 0) for x in expected], 4e-2)


def test_an_empty_row_has_no_nan_with_cudnn(use_cudnn):
  """Rows that fill up a batch hold only padding."""
  visibility = Visibility(np.zeros((ROWS, LENGTH), np.int32), jnp.zeros(ROWS, jnp.int32))
  found = compute(*make_inputs("bfloat16"), visibility.sequence_ids_BL, "cudnn", False,
                  visibility.lengths_B)
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in found)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_training_in_pieces_with_cudnn_equals_the_plain_one(use_cudnn, objective, monkeypatch):
  """Both train in micro-batches on a mesh; `shard_map` calls cuDNN for each replica."""

  def run(mesh, pieces):
    config = tiny.make_config(objective, mesh=mesh, num_layers=1, dtype="bfloat16")
    with tiny.Setup(config) as setup:
      batch = tiny.make_batch(config, rows=8)
      if formats.has_one_sequence(config):
        at = np.arange(tiny.LENGTH)
        is_text = batch["sequence_ids"] > 0
        batch |= {"sequence_ids": is_text.astype(np.int32),
                  "positions": np.where(is_text, at, 0).astype(np.int32)}
      grads, (loss, _) = setup.gradients(pieces)(setup.init().params, setup.put(batch), 3)
      return jax.device_get((loss, grads))

  loss, grads = run((2, 2, 1), 2)
  monkeypatch.undo()
  expected_loss, expected_grads = run((1, 1, 1), 1)
  assert loss == pytest.approx(expected_loss, rel=1e-3)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-2), grads,
               expected_grads)


# ------------------------------------------------------------ visibility


def np_mask(visibility):
  """Returns the mask, computed for one query and one key at a time."""
  v = visibility
  rows, length = v.sequence_ids_BL.shape
  mask = np.zeros((rows, 1, length, length), bool)
  for b, q, k in np.ndindex(rows, length, length):
    mask[b, 0, q, k] = (
        v.sequence_ids_BL[b, q] == v.sequence_ids_BL[b, k]
        and (not v.causal or k <= q)
        and (v.window is None or abs(q - k) <= v.window))
  return mask


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_is_what_its_fields_say(causal, window):
  visibility = Visibility(make_ids(30), causal=causal, window=window)
  np.testing.assert_array_equal(visibility.mask(), np_mask(visibility))


# ---------------------------------------------------------- the plain kernel


def test_plain_products_of_bfloat16_stay_in_bfloat16():
  inputs = make_inputs("bfloat16")
  jaxpr = jax.make_jaxpr(lambda *x: compute(*x, make_ids(), "xla", False))(*inputs)
  dots = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
  assert len(dots) == 6
  assert {v.aval.dtype for e in dots for v in e.invars} == {jnp.dtype("bfloat16")}


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_plain_backward_pass_keeps_the_weights_once():
  q, k, v, _ = make_inputs("bfloat16")
  attend = functools.partial(attention.attend, visibility=Visibility(jnp.asarray(make_ids())),
                             kernel="xla", dropout=0.0, dropout_key=None)
  kept = {id(x): x for x in jax.tree.leaves(jax.vjp(attend, q, k, v)[1])
          if x.shape[-2:] == (LENGTH, LENGTH)}
  assert {x.dtype for x in kept.values()} == {jnp.dtype("bfloat16")}


def test_attention_dropout_drops_and_scales_weights():
  """With equal values, a result is the sum of the kept weights over 1 - rate: 1 on average."""
  q, k, v, _ = make_inputs("float32", heads=8)
  attend = functools.partial(attention.attend, q, k, jnp.ones_like(v), Visibility(make_ids()),
                             kernel="auto", dropout=0.25)
  np.testing.assert_allclose(attend(dropout_key=None), 1, atol=1e-5)
  dropped = attend(dropout_key=jax.random.key(0))
  assert dropped.std() > 0.05
  assert dropped.mean() == pytest.approx(1, abs=0.02)


# ------------------------------------------------------- kernels elsewhere


@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_is_lowered_for_cuda(causal):
  config = tiny.make_config(mesh=(2, 2, 2))
  mesh = AbstractMesh((2, 2, 2), config_lib.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
  shapes = [jax.ShapeDtypeStruct((8, 512, 4, WIDTH), "bfloat16")] * 4
  with sharding.use_mesh(mesh, config, platform="gpu"):
    try:
      traced = compute.trace(*shapes, jax.ShapeDtypeStruct((8, 512), "int32"), "auto", causal)
    except RuntimeError as e:  # Tracing asks for the version of cuDNN.
      pytest.skip(f"jax[cuda] is not installed: {e}")
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "fmhaScaleBiasSoftmax" in text and "fmhaScaleBiasSoftmaxBackward" in text
  assert ("CAUSAL" in text) == causal
  assert "tensor<2x512x2x64xbf16>" in text  # Rows and heads of one device.


V5E = """
import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
import test_attention as t
from bertgpt import config as config_lib
from bertgpt.devices import sharding

config = config_lib.base()
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = sharding.make_mesh(config, devices)
rows = NamedSharding(mesh, P(("data", "fsdp")))
x = jax.ShapeDtypeStruct((8, 512, 2, 64), "bfloat16", sharding=rows)
ids = jax.ShapeDtypeStruct((8, 512), "int32", sharding=rows)
with sharding.use_mesh(mesh, config):
  for causal in (False, True):
    program = t.compute.lower(x, x, x, x, ids, "auto", causal).compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 2
    assert program.output_shardings[0].is_equivalent_to(rows, 4), program.output_shardings
"""


@pytest.mark.parametrize("length, block", [(1024, 512), (2048, 512), (1536, 256)])
@pytest.mark.parametrize("behind, ahead", [(None, None), (None, 0), (128, 128), (128, 0), (600, 0)])
def test_the_name_of_a_splash_kernel_counts_the_blocks_that_it_visits(length, block, behind, ahead):
  """Against the elements of the masks that JAX makes."""
  mask = (splash_mask.LocalMask((length, length), (behind, ahead), 0) if behind else
          splash_mask.FullMask((length, length)) if ahead is None else
          splash_mask.CausalMask((length, length)))
  blocks = np.array([[mask[q:q + block, k:k + block].any() for k in range(0, length, block)]
                     for q in range(0, length, block)])
  name = attention.splash_name(length, block, behind or length,
                               length if ahead is None else ahead)
  assert name == f"splash_{blocks.sum()}_of_{blocks.size}_blocks"


@pytest.mark.libtpu
def test_splash_compiles_for_tpu_v5e():
  """Both passes compile with the kernel that 'auto' chooses; each chip has its own rows."""
  tests = pathlib.Path(__file__).parents[1]
  env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
      "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": os.pathsep.join(map(str, [tests / "models", tests / "helpers", tests.parent]))}
  result = subprocess.run([sys.executable, "-c", V5E], env=env, cwd=tests, check=False,
                          capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-2000:]
