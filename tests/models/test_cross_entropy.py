"""Chunked cross-entropy against a closed form in float64, on every mesh, and its memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt.devices import sharding
from bertgpt.models import cross_entropy
from bertgpt.models.cross_entropy import UNCHUNKED, Prediction

ROWS, LENGTH, WIDTH, VOCAB, TABLE_ROWS = 8, 12, 16, 250, 256
MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4))


def make_case(seed=0):
  """Returns prediction, targets and weights; some weights are 0, and their targets arbitrary."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  bias = np.where(np.arange(TABLE_ROWS) < VOCAB, draw(TABLE_ROWS), -1e9).astype(np.float32)
  table = draw(TABLE_ROWS, WIDTH)
  targets = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
  x = draw(ROWS, LENGTH, WIDTH)
  x[:, ::2] += table[targets[:, ::2]]  # So that some targets are the likeliest token.
  weights = rng.choice([0, 1, 1, 0.5], (ROWS, LENGTH)).astype(np.float32)
  targets[weights == 0] = TABLE_ROWS - 1
  return Prediction(x, table, bias), targets, weights


def closed_form(prediction, targets, weights, scale):
  """Returns loss, correct predictions, and `scale` times the gradients, in float64."""
  x, table, bias = (np.asarray(a, np.float64) for a in prediction[:3])
  logits = x @ table.T + bias
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  at = np.arange(TABLE_ROWS) == targets[..., None]
  loss = -(np.log(np.where(at, p, 0).sum(-1), where=weights > 0, out=np.zeros(p.shape[:-1]))
           * weights).sum()
  correct = ((logits.argmax(-1) == targets) * weights).sum()
  d = (p - at) * weights[..., None] * scale
  return (loss, correct), Prediction(d @ table, np.einsum("blv,bld->vd", d, x), d.sum((0, 1)))


def compute(prediction, targets, weights, chunk, scale=1.0, mesh=(1, 1, 1)):
  """Returns the values of `closed_form`, computed by `cross_entropy`."""
  config = tiny.make_config(mesh=mesh)

  def loss(prediction):
    sums = cross_entropy.score(prediction, targets, weights, chunk)
    return sums[0] * scale, sums

  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    grads, sums = jax.jit(jax.grad(loss, has_aux=True))(prediction)
    return jax.device_get((sums, grads))


def check(got, expected, tolerance):
  (sums, grads), (expected_sums, expected_grads) = got, expected
  np.testing.assert_allclose(sums, expected_sums, rtol=tolerance)
  for name in ("x", "table_VD", "bias_V"):
    wanted = getattr(expected_grads, name)
    np.testing.assert_allclose(np.asarray(getattr(grads, name), np.float64), wanted, rtol=0,
                               atol=tolerance * np.abs(wanted).max(), err_msg=name)


# For 96 positions: all at once, divisors, chunks with padding, more than 96, one at a time.
@pytest.mark.parametrize("chunk", [UNCHUNKED, 0, 96, 32, 36, 7, 1000, 1])
def test_sums_and_gradients_are_those_of_the_closed_form(chunk):
  case = make_case()
  expected = closed_form(*case, scale=0.37)
  assert 10 < expected[0][1] < case[2].sum() - 10, "some targets are the likeliest, some not"
  check(compute(*case, chunk, scale=0.37), expected, 2e-6)


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_every_mesh_gives_the_closed_form(mesh):
  case = make_case()
  check(compute(*case, 5, scale=0.37, mesh=mesh), closed_form(*case, scale=0.37), 2e-6)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 1, 4)], ids=str)
def test_one_pass_over_the_logits_gives_the_closed_form(mesh, monkeypatch):
  """On GPUs, logits are read once; ties and the maximum may be in any vocabulary shard."""
  monkeypatch.setattr(cross_entropy, "platform", lambda: "gpu")
  case = make_case()
  check(compute(*case, 32, scale=0.37, mesh=mesh), closed_form(*case, scale=0.37), 2e-6)
  (x, table, bias, _), targets, weights = case
  tied = Prediction(x * 0, table, np.where(np.arange(TABLE_ROWS) < VOCAB, 0, bias))
  loss, correct = compute(tied, targets, weights, 32, mesh=mesh)[0]
  assert loss == pytest.approx(np.log(VOCAB) * weights.sum(), rel=1e-5) and correct == 0


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_without_gradients_the_sums_are_the_same(mesh):
  (x, table, bias, _), targets, weights = case = make_case()
  config = tiny.make_config(mesh=mesh)
  apply = jax.jit(functools.partial(cross_entropy.score, chunk=5))
  with sharding.use_mesh(sharding.make_mesh(config, tiny.devices_of(config)), config):
    sums = apply(Prediction(x, table, bias), targets, weights)
    text = apply.lower(Prediction(x, table, bias), targets, weights).as_text()
  np.testing.assert_allclose(sums, closed_form(*case, scale=1)[0], rtol=2e-6)
  assert text.count("stablehlo.dot_general") == 1, "logits, and no matmul of a gradient"


@pytest.mark.parametrize("chunk", [UNCHUNKED, 32])
def test_bfloat16_products_differ_by_rounding(chunk):
  (x, table, bias, _), *rest = make_case()
  rounded = Prediction(jnp.asarray(x, jnp.bfloat16), table, bias)
  exact = Prediction(rounded.x, np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32), bias)
  sums, grads = compute(rounded, *rest, chunk)
  assert grads.x.dtype == jnp.bfloat16 and grads.table_VD.dtype == np.float32
  check((sums, grads), closed_form(exact, *rest, scale=1), 1e-2)
  np.testing.assert_allclose(sums, closed_form(exact, *rest, scale=1)[0], rtol=1e-5)


def test_rows_that_are_no_token_get_no_gradient():
  _, grads = compute(*make_case(), 32)
  assert np.abs(grads.table_VD[VOCAB:]).max() == 0 and np.abs(grads.bias_V[VOCAB:]).max() == 0
  assert np.abs(grads.table_VD[:VOCAB]).max(1).min() > 0


def test_positions_without_weight_get_no_gradient():
  prediction, targets, weights = make_case()
  _, grads = compute(prediction, targets, weights, 32)
  np.testing.assert_array_equal(np.abs(grads.x).max(-1) > 0, weights > 0)
  sums, grads = compute(prediction, targets, weights * 0, 32)
  assert sums == (0, 0)
  jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), grads)


def test_a_tie_is_not_correct():
  """Otherwise, a model with equal logits for all tokens would always be right."""
  logits, targets = np.zeros((1, 3, 5), np.float32), np.arange(3)[None]
  loss, correct = cross_entropy.score_logits(logits, targets, np.ones((1, 3), np.float32))
  assert loss == pytest.approx(3 * np.log(5)) and correct == 0


@pytest.mark.parametrize("positions, most, size", [
    (1024, 5000, 1024), (1000, 5000, 1000), (16384, 1334, 1024), (5120, 2193, 1280),
    (1000, 300, 250), (160, 100, 80), (3, 0, 1)])
def test_chunks_are_few_and_whole_tiles_where_that_divides(positions, most, size):
  assert cross_entropy.chunk_size(positions, most) == size


# ---------------------------------------------------- memory of the program


def compile_step(chunk, mesh=(1, 1, 1), objective="causal"):
  config = tiny.make_config(objective, mesh=mesh, num_layers=1)
  config.objective.loss_chunk = chunk
  with tiny.Setup(config) as setup:
    batch = setup.put(tiny.make_batch(config))
    return setup.step().lower(setup.abstract, batch).compile()


def largest_float(text):
  """Returns the number of elements of the largest float array in a program's text."""
  shapes = re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", text)
  return max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)


def test_no_buffer_of_the_step_has_the_size_of_the_logits():
  logits = tiny.ROWS * tiny.LENGTH * TABLE_ROWS
  assert largest_float(compile_step(UNCHUNKED).as_text()) >= logits
  chunk = 128
  others = tiny.ROWS * 4 * tiny.LENGTH**2  # Attention probabilities.
  assert others < logits
  assert largest_float(compile_step(chunk).as_text()) <= max(chunk * TABLE_ROWS, others)


def test_shards_are_not_summed_chunk_by_chunk():
  """The gradient of the table crosses the network once, after the loop over the chunks."""
  text = compile_step(8, mesh=(8, 1, 1)).as_text()
  table = rf"f32\[{TABLE_ROWS},{32}\]"
  lines = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
  assert any(re.search(table, line) for line in lines)
  assert not [line for line in lines if "shard_map/while" in line]
