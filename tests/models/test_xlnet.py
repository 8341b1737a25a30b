"""XLNet: published sizes, `transformers` as the oracle, and visibility by gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from differences import check_close, check_gradients

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import families, recipes
from bertgpt.hub import conversion
from bertgpt.models import Inputs, relative_attention
from bertgpt.planning import aot, topologies, vocabulary_size
from bertgpt.training import objectives

LENGTH, ROWS, TARGETS, MEMORY = 16, 4, 5, 7


@pytest.mark.parametrize("name, size", [("base", 116_750_336), ("large", 360_300_800)])
def test_sizes_are_the_published_ones(name, size):
  """The published vocabulary has 32,000 pieces, a multiple of 128."""
  config = config_lib.base()
  config.model.update(families.FAMILIES["xlnet"].presets[name], vocab_size=32_000)
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  init = models.make_model(config).init
  params = jax.eval_shape(init, jax.random.key(0), Inputs(*[ids] * 5))["params"]
  assert sum(x.size for x in jax.tree.leaves(params)) == size


def make_inputs(seed=0, memory=0, layers=2, width=32):
  """Returns rows of one sequence, padding and a prediction order."""
  rng = np.random.default_rng(seed)
  at, length = np.arange(LENGTH), rng.integers(10, LENGTH + 1, (ROWS, 1))
  targets = rng.permuted(np.repeat(np.arange(10)[None], ROWS, 0), axis=1)[:, :TARGETS]
  order = np.zeros((ROWS, LENGTH), np.int32)
  np.put_along_axis(order, targets, rng.permuted(np.repeat(
      np.arange(1, TARGETS + 1)[None], ROWS, 0), axis=1), axis=1)
  past = rng.normal(size=(layers, ROWS, memory, width)).astype(np.float32) if memory else None
  array = lambda x: np.asarray(x, np.int32)
  return Inputs(array(rng.integers(5, tiny.VOCAB, (ROWS, LENGTH))), array(at < length),
                array(np.broadcast_to(at, (ROWS, LENGTH))),
                array(np.where(at < length - 1, at > 7, 2)), array(targets),
                order_BL=order, memory_YBMD=past)


@pytest.fixture(scope="module")
def small():
  """Returns (config, parameters) of a model without parameters of 0 or 1."""
  config = tiny.make_config("plm")
  return config, tiny.random_params(models.make_model(config), make_inputs(), std=0.05)


# ------------------------------------------------------------------- NumPy


@pytest.mark.parametrize("length, keys", [(5, 5), (5, 8), (1, 3)])
def test_shift_finds_the_column_of_the_distance(length, keys):
  """If column r holds the distance S - r, the entry of query l and key s is S - L + l - s."""
  distances = np.arange(keys, -length, -1)
  x = np.broadcast_to(distances, (2, 3, length, length + keys))
  expected = keys - length + np.arange(length)[:, None] - np.arange(keys)
  found = relative_attention.shift(jnp.asarray(x))
  assert np.array_equal(found, np.broadcast_to(expected, (2, 3, length, keys)))


def test_sinusoids_are_those_of_the_paper():
  found = relative_attention.make_sinusoids(3, 4, 6)
  for row, distance in enumerate([4, 3, 2, 1, 0, -1, -2]):
    angles = [distance / 10_000 ** (2 * i / 6) for i in range(3)]
    np.testing.assert_allclose(found[row], [*np.sin(angles), *np.cos(angles)], atol=1e-6)


@pytest.mark.parametrize("memory", [0, 3])
def test_who_sees_whom_follows_from_the_order(memory):
  """The oracle applies the definition to one pair of tokens at a time."""
  inputs = make_inputs()
  is_memory = (np.arange(ROWS)[:, None] + np.arange(memory)) % 3 > 0
  sight = relative_attention.see(inputs.sequence_ids_BL, inputs.segment_ids_BL, inputs.order_BL,
                                 inputs.predict_positions_BK, jnp.asarray(is_memory))
  for b in range(ROWS):
    ids, segments, order, targets = (np.asarray(x[b]) for x in (
        inputs.sequence_ids_BL, inputs.segment_ids_BL, inputs.order_BL,
        inputs.predict_positions_BK))
    for t, i in enumerate([*range(LENGTH), *targets]):
      assert np.array_equal(sight.mask_BTS[b, t, :memory], is_memory[b])
      assert np.array_equal(sight.is_same_BTS[b, t, :memory], [segments[i] == 0] * memory)
      for j in range(LENGTH):
        is_before = order[j] < order[i] or (t < LENGTH and order[j] == order[i])
        assert sight.mask_BTS[b, t, memory + j] == (is_before and ids[i] == ids[j])
        assert sight.is_same_BTS[b, t, memory + j] == (segments[i] == segments[j])


# ------------------------------------------------------------ transformers


def run_theirs(config, params, inputs, needs_grad=False, memory_length=6):
  """Returns (outputs, model) of XLNetLMHeadModel with the same parameters."""
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  hf_config = conversion.to_hugging_face_config(config)
  cls = transformers.XLNetLMHeadModel
  theirs = cls(cls.config_class(**hf_config | {"mem_len": memory_length, "reuse_len": 8})).eval()
  missing, unknown = theirs.load_state_dict(
      {name: torch.tensor(x) for name, x in conversion.to_hugging_face(params, config).items()},
      strict=False)
  assert not unknown and set(missing) <= {"lm_loss.weight"}
  theirs.tie_weights()
  tensor = lambda x: torch.tensor(np.asarray(x))
  order, targets = np.asarray(inputs.order_BL), np.asarray(inputs.predict_positions_BK)
  memory = inputs.memory_YBMD
  sees = order[:, :, None] > order[:, None]  # `transformers` adds the token itself.
  is_visible = (order == 0)[:, None]
  with torch.set_grad_enabled(needs_grad):
    output = theirs(
        input_ids=tensor(inputs.tokens_BL).long(), token_type_ids=tensor(inputs.segment_ids_BL),
        attention_mask=tensor(inputs.sequence_ids_BL).float(),
        perm_mask=tensor(~(sees | is_visible)).float(),
        target_mapping=tensor(np.eye(LENGTH)[targets]).float(), use_mems=True,
        mems=None if memory is None else [tensor(x.swapaxes(0, 1)) for x in memory])
  return output, theirs


@pytest.mark.hf
@pytest.mark.parametrize("memory", [0, MEMORY])
def test_logits_and_memory_are_those_of_transformers(small, memory):
  config, params = small
  inputs = make_inputs(seed=3, memory=memory)
  output, _ = run_theirs(config, params, inputs)
  prediction, found = jax.jit(lambda params, inputs: models.make_model(config).apply(
      {"params": params}, inputs, 8, 6, method="predict_and_remember"))(params, inputs)
  check_close("logits", prediction.logits()[..., :tiny.VOCAB], output.logits.numpy())
  for ours, theirs in zip(found, output.mems, strict=True):
    check_close("memory", ours.swapaxes(0, 1), theirs.numpy())


@pytest.mark.hf
@pytest.mark.parametrize("memory", [0, MEMORY])
def test_gradients_are_those_of_transformers(small, memory):
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  config, params = small
  inputs = make_inputs(seed=4, memory=memory)
  goal = np.random.default_rng(0).integers(5, tiny.VOCAB, (ROWS, TARGETS))
  output, theirs = run_theirs(config, params, inputs, needs_grad=True)
  loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1),
                                           torch.tensor(goal.ravel()))
  loss.backward()

  def our_loss(params, inputs):
    logits = models.make_model(config).apply({"params": params}, inputs)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), goal[..., None], 2).mean()

  value, grads = jax.jit(jax.value_and_grad(our_loss))(params, inputs)
  check_close("loss", value, loss.item())
  check_gradients(conversion.to_hugging_face(grads, config), gradients_of(theirs))


def gradients_of(theirs):
  return {name: p.grad.numpy() for name, p in theirs.named_parameters()}


@pytest.mark.hf
def test_rows_that_are_continued_are_those_of_transformers(small):
  """Runs three steps: both sides pass on their own memory, ours in the carry of the train state.

  It holds 0, 8 and 12 tokens, of at most 12. Theirs is detached from the graph of the last step.
  """
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  config, params = small
  config = config.copy_and_resolve_references()
  config.objective.update(name="plm_memory", memory=12, permutation_block=8)
  model = models.make_model(config)
  objective = objectives.make_objective(config, tiny.make_vocabulary())
  carry, past = objectives.make_zero_carry(objective, ROWS), None
  for seed in range(3):
    inputs = make_inputs(seed)
    goal = np.random.default_rng(seed).integers(5, tiny.VOCAB, (ROWS, TARGETS))
    output, theirs = run_theirs(config, params, inputs._replace(memory_YBMD=past), True, 12)
    loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1),
                                             torch.tensor(goal.ravel()))
    loss.backward()
    past = np.stack([x.numpy().swapaxes(0, 1) for x in output.mems])
    batch = {"tokens": inputs.tokens_BL, "sequence_ids": inputs.sequence_ids_BL,
             "positions": inputs.positions_BL, "segment_ids": inputs.segment_ids_BL,
             "order": inputs.order_BL, "predict_positions": inputs.predict_positions_BK,
             "predict_targets": goal, "predict_weights": np.ones((ROWS, TARGETS), np.float32)}

    def our_loss(params, batch, carry):
      bound = objectives.BoundModel(model, params, carry=carry)
      sums, carry = objective.compute_sums(bound, batch)
      return sums["plm_loss"][0] / sums["plm_loss"][1], carry

    logits = tiny.apply(model, params, Inputs.of(batch)._replace(
        memory_YBMD=jnp.moveaxis(carry["memory"], 1, 0), is_memory_BM=carry["is_memory"]))
    check_close("logits", logits[..., :tiny.VOCAB], output.logits.detach().numpy())
    (value, carry), grads = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(
        params, batch, carry)
    check_close("loss", value, loss.item())
    check_gradients(conversion.to_hugging_face(grads, config), gradients_of(theirs))
    assert carry["is_memory"].sum(1).tolist() == [past.shape[2]] * ROWS
    check_close("memory", jnp.moveaxis(carry["memory"], 1, 0)[:, :, -past.shape[2]:], past)
  assert past.shape[2] == 12


@pytest.mark.hf
def test_features_of_tokens_are_those_of_transformers(small):
  config, params = small
  inputs = make_inputs(seed=5)._replace(order_BL=None, predict_positions_BK=None)
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  _, theirs = run_theirs(config, params, make_inputs(seed=5))
  tensor = lambda x: torch.tensor(np.asarray(x))
  with torch.no_grad():
    expected = theirs.transformer(
        input_ids=tensor(inputs.tokens_BL).long(), token_type_ids=tensor(inputs.segment_ids_BL),
        attention_mask=tensor(inputs.sequence_ids_BL).float()).last_hidden_state.numpy()
  found = tiny.apply(models.make_model(config), params, inputs, method="features")
  is_text = inputs.sequence_ids_BL > 0
  check_close("features", found[is_text], expected[is_text])


@pytest.mark.slow
@pytest.mark.libtpu
@pytest.mark.parametrize("variant", ["", ":memory"])
@pytest.mark.parametrize("machine, mesh, micro_batches", [
    ("v5e:1x1", (1, 1, 1), 1), ("v5e:2x2", (1, 2, 2), 2)])
def test_the_recipe_compiles_for_tpus(machine, mesh, micro_batches, variant):
  """Two layers of XLNet-base in bfloat16 with dropout."""
  config = recipes.load(f"configs/xlnet_base.py{variant}")
  config.model.num_layers = 2
  config.phases[0].update(batch_size=16, micro_batches=micro_batches)
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
  config = vocabulary_size.find(config).set_in(config)
  topology = topologies.open_topology(machine)
  (phase,) = aot.make_plan(config, topology, [0])
  assert phase.fits and 0 < phase.mfu < 1
