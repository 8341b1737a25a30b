"""Permutation LM: the order against a copy of the published mask, spans, visibility, memory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt.config import unread
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import sharding
from bertgpt.models import Inputs
from bertgpt.training import objectives, steps
from bertgpt.training.objectives import plm, spans

CLS, SEP, MASK, PAD = 2, 3, 4, 0
VOCAB, LENGTH, ROWS = 1000, 128, 500


def make_vocabulary():
  continues = np.arange(VOCAB) % 3 == 0  # A third of the tokens continue a word.
  continues[:5] = False
  return Vocabulary(VOCAB, MASK, (PAD, CLS, SEP, MASK), continues, np.zeros(VOCAB, bool))


def make_batch(rows=ROWS, seed=0):
  """Returns rows text [SEP] text [SEP] [CLS] of every length, with padding."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(8, LENGTH + 1, rows)
  at = np.arange(LENGTH)
  is_text = at < lengths[:, None]
  tokens = np.where(is_text, rng.integers(5, VOCAB, (rows, LENGTH)), PAD)
  tokens[np.arange(rows), lengths // 2] = tokens[np.arange(rows), lengths - 2] = SEP
  tokens[np.arange(rows), lengths - 1] = CLS
  return {"tokens": tokens.astype(np.int32), "sequence_ids": is_text.astype(np.int32)}, lengths


def corrupt(batch, seed=0, row_ids=None, **objective):
  config = config_lib.base()
  config.objective.update({"name": "plm", "mask_prob": 1 / 6, "whole_words": True, "ngram": 5,
                           "permutation_block": 64, **objective})
  config.phases = (config_lib.phase(seq_len=LENGTH),)
  function = jax.jit(objectives.make_objective(config, make_vocabulary()).corrupt)
  row_ids = np.arange(len(batch["tokens"])) if row_ids is None else row_ids
  return jax.device_get(function(batch, jax.random.key(seed), row_ids))


def test_the_rate_of_the_whole_config_may_be_0():
  """Every phase then has its own, which is in the config of the phase."""
  config = config_lib.base()
  config.objective.update(name="plm", mask_prob=0.0)
  config.phases = (config_lib.phase(seq_len=LENGTH, mask_prob=0.25),)
  objectives.make_objective(config, make_vocabulary())


@pytest.mark.parametrize("rate", [1e-10, 5e-324])
def test_a_tiny_rate_predicts_at_most_a_token_of_a_row(rate):
  batch, _ = make_batch()
  assert corrupt(batch, mask_prob=rate)["predict_weights"].sum(1).max() <= 1


def targets_of(drawn):
  """Returns which tokens are predicted, bool [B, L]."""
  is_target = np.zeros(drawn["tokens"].shape, bool)
  rows, slots = np.nonzero(drawn["predict_weights"])
  is_target[rows, drawn["predict_positions"][rows, slots]] = True
  return is_target


# ------------------------------------------------------------------- order


def published_perm_mask(tokens, is_masked, index):
  """Returns data_utils.py's `_local_perm` (zihangdai/xlnet, 2019) in NumPy: 1 cannot attend.

  Args:
    tokens: ids, int [L].
    is_masked: bool [L], the tokens that are predicted.
    index: the random permutation, which the published function draws itself.
  """
  is_functional = (tokens == SEP) | (tokens == CLS)
  is_context = ~is_masked & ~is_functional
  rev_index = np.where(is_context, -1, index)
  is_target = ~is_context & ~is_functional
  self_rev_index = np.where(is_target, rev_index, rev_index + 1)
  return (self_rev_index[:, None] <= rev_index[None]) & ~is_context


@pytest.mark.parametrize("block", [64, 0])
def test_the_order_hides_what_the_published_mask_hides(block):
  """Each half has its own permutation; the second half sees the first, but not vice versa."""
  batch, lengths = make_batch()
  drawn = corrupt(batch, permutation_block=block)
  size = block or LENGTH
  for row in np.flatnonzero(lengths == lengths.max())[:3].tolist() + list(range(5)):
    tokens, order = drawn["tokens"][row], drawn["order"][row]
    is_masked = targets_of(drawn)[row]
    expected = np.tri(LENGTH // size, k=-1, dtype=bool).repeat(size, 0).repeat(size, 1)
    for first in range(0, LENGTH, size):
      part = slice(first, first + size)
      # The published permutation covers all tokens of a block, but only some indices matter.
      index = np.argsort(np.argsort(order[part], kind="stable"))
      expected[part, part] = ~published_perm_mask(tokens[part], is_masked[part], index)
    sees_as_target = order[:, None] > order
    sees = order[:, None] >= order
    at = np.arange(lengths[row])
    found = np.where(is_masked[:, None], sees_as_target, sees)[np.ix_(at, at)]
    np.testing.assert_array_equal(found, expected[np.ix_(at, at)])


def test_all_orders_are_equally_likely():
  keys = jax.random.split(jax.random.key(0), 6000)
  is_moved = jnp.broadcast_to(jnp.array([1, 0, 1, 0, 1, 0, 1, 1], bool), (6000, 8))
  order = np.asarray(plm.draw_order(keys, is_moved, 6))
  counts = {tuple(p): 0 for p in itertools.permutations(range(3))}
  for row in order:
    counts[tuple(np.argsort(np.argsort(row[[0, 2, 4]])))] += 1
  assert all(abs(count - 1000) < 4 * np.sqrt(6000 * 5 / 36) for count in counts.values())
  assert np.all(order[:, [1, 3, 5]] == 0) and np.all(order[:, [0, 2, 4]] > 0)
  assert np.all(order[:, 6:] > order[:, :6].max(1, keepdims=True))
  assert abs((order[:, 6] < order[:, 7]).mean() - 0.5) < 4 * np.sqrt(0.25 / 6000)


def test_a_row_depends_only_on_the_key_and_its_number():
  batch, _ = make_batch(8)
  whole, part = corrupt(batch), corrupt({name: x[2:5] for name, x in batch.items()},
                                        row_ids=np.arange(2, 5))
  for name in ("order", "predict_positions", "predict_weights"):
    np.testing.assert_array_equal(part[name], whole[name][2:5])
  other = corrupt(batch, seed=1)
  assert (other["order"] != whole["order"]).any(1).all()


# ------------------------------------------------------------------- spans


@pytest.mark.parametrize("words", [{}, {"whole_words": False}, {"ngram": 1}], ids=str)
def test_the_number_of_targets_is_exact_and_no_special_token_is_one(words):
  batch, lengths = make_batch()
  drawn = corrupt(batch, **words)
  is_target = targets_of(drawn)
  np.testing.assert_array_equal(is_target.sum(1), np.clip(np.round(lengths / 6), 1, 21))
  assert np.array_equal(is_target.sum(1), drawn["predict_weights"].sum(1))  # No position twice.
  assert np.all(drawn["tokens"][is_target] >= 5) and np.all(batch["sequence_ids"][is_target] == 1)
  np.testing.assert_array_equal(drawn["tokens"], batch["tokens"])
  np.testing.assert_array_equal(
      drawn["predict_targets"],
      np.take_along_axis(batch["tokens"], drawn["predict_positions"], axis=1))


def first_spans(continues, rows=4000, longest=5, context=6):
  """Returns (first position, tokens) of the first span of every row, int [rows, 2]."""
  keys = jax.random.split(jax.random.key(1), rows)
  is_candidate = jnp.ones((rows, LENGTH), bool)
  count = jnp.full(rows, 40)
  order, found = jax.jit(functools.partial(spans.choose_spans, longest=longest, context=context))(
      keys, is_candidate, jnp.broadcast_to(continues, is_candidate.shape), count)
  assert np.all(found == 40)
  order = np.asarray(order)
  jumps = np.diff(order, axis=1) != 1
  return np.stack([order[:, 0], jumps.argmax(1) + 1], axis=1)


def test_lengths_of_spans_are_likely_as_their_inverse():
  """Words have two tokens; a span begins uniformly in a context of 6 tokens per word."""
  first, size = first_spans(jnp.arange(LENGTH) % 2 == 1).T
  assert np.all(first % 2 == 0) and np.all(size % 2 == 0)
  shares = 1 / np.arange(1, 6)
  shares /= shares.sum()
  for n, share in enumerate(shares, 1):
    is_n = size == 2 * n
    assert abs(is_n.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(size))
    # The first word that begins at or after 0, ..., 6 n - 1.
    places = 2 * np.ceil(np.arange(6 * n) / 2)
    assert set(first[is_n].tolist()) == set(places.tolist())
    assert abs(first[is_n].mean() - places.mean()) < 4 * places.std() / np.sqrt(is_n.sum())


def test_no_part_of_a_row_is_predicted_much_more_often():
  batch, _ = make_batch(2000)
  batch["sequence_ids"] = np.ones_like(batch["sequence_ids"])
  batch["tokens"] = np.random.default_rng(2).integers(5, VOCAB, batch["tokens"].shape,
                                                      dtype=np.int32)
  shares = targets_of(corrupt(batch)).mean(0).reshape(8, -1).mean(1)
  assert shares.min() > 0.8 * shares.mean() and shares.max() < 1.3 * shares.mean()


# ------------------------------------------------------------------- model


@pytest.mark.parametrize("block", [0, 16])
def test_a_prediction_depends_on_exactly_the_tokens_before_it(block):
  """Each token is replaced in turn: exactly the predictions that see it change."""
  config = tiny.make_config("plm", init_std=0.3)
  config.objective.update(permutation_block=block, ngram=3, whole_words=True)
  rng = np.random.default_rng(0)
  at = np.arange(tiny.LENGTH)
  batch = {"tokens": rng.integers(5, tiny.VOCAB, (1, tiny.LENGTH)), "positions": at[None],
           "sequence_ids": (at < 30)[None], "segment_ids": (at > 12)[None]}
  batch = {name: np.asarray(x, np.int32) for name, x in batch.items()}
  batch["tokens"][:, [12, 28]], batch["tokens"][:, 29] = tiny.SEP, tiny.CLS
  with tiny.Setup(config) as setup:
    params = setup.init().params
    drawn = jax.jit(setup.objective.corrupt)(batch, jax.random.key(3), np.arange(1))
    inputs = Inputs.of(drawn)
    changed = np.repeat(np.asarray(drawn["tokens"]), tiny.LENGTH, axis=0)
    changed[at, at] = (changed[at, at] + 7) % tiny.VOCAB
    logits = jax.jit(lambda tokens: jax.vmap(lambda row: setup.model.apply(
        {"params": params}, inputs._replace(tokens_BL=row[None]))[0])(tokens))
    before, after = jnp.split(logits(np.concatenate([drawn["tokens"], changed])), [1])
  differs = np.asarray(jnp.abs(after - before).max(-1) > 0)  # [replaced token, slot]
  order, slots = np.asarray(drawn["order"][0]), np.asarray(drawn["predict_positions"][0])
  real = np.asarray(drawn["predict_weights"][0]) > 0
  expected = (order[:, None] < order[slots]) & (at < 30)[:, None]
  assert real.sum() == 8 and len(set(order[slots[real]])) == 8
  np.testing.assert_array_equal(differs[:, real], expected[:, real])


def test_a_target_that_sees_nothing_is_predicted_from_nothing():
  config = tiny.make_config("plm")
  tokens = np.full((2, 8), 9, np.int32)
  tokens[1, 0] = 10
  ones = np.ones_like(tokens)
  first = np.zeros((2, 1), np.int32)
  inputs = Inputs(tokens, np.where(np.arange(8) < 1, 1, 2 * ones), ones, 0 * ones, first)
  with tiny.Setup(config) as setup:
    logits = tiny.apply(setup.model, setup.init().params, inputs)
  np.testing.assert_array_equal(logits[0], logits[1])
  assert np.isfinite(logits).all()


# ------------------------------------------------------------------- memory


def make_memory_config(**options):
  config = tiny.make_config("plm_memory", init_std=0.1, **options)
  config.objective.update(permutation_block=8, memory=12)
  return config


def score(setup, params, batch, carry):
  """Returns the loss of a corrupted batch, and the new carry."""
  bound = objectives.BoundModel(setup.model, params, carry=carry)
  sums, carry = setup.objective.compute_sums(bound, batch)
  return sums["plm_loss"][0] / sums["plm_loss"][1], carry


@pytest.mark.slow
def test_an_empty_memory_changes_nothing():
  """Values in places that hold no token are not seen."""
  losses = []
  for name in ("plm", "plm_memory"):
    config = make_memory_config()
    config.objective.name = name
    with tiny.Setup(config) as setup:
      params = setup.init().params
      batch = setup.objective.corrupt(tiny.make_batch(config, rows=4), jax.random.key(0),
                                      np.arange(4))
      if name == "plm":
        sums, _ = setup.objective.compute_sums(objectives.BoundModel(setup.model, params), batch)
        losses.append(sums["plm_loss"][0] / sums["plm_loss"][1])
        continue
      empty = objectives.make_zero_carry(setup.objective, 4)
      filled = empty | {"memory": empty["memory"] + 3}
      assert not empty["is_memory"].any()
      losses += [score(setup, params, batch, carry)[0] for carry in (
          empty, filled, filled | {"is_memory": ~empty["is_memory"]})]
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
  assert losses[1] == losses[2] and abs(losses[3] - losses[1]) > 1e-3


def test_the_memory_is_the_last_tokens_before_the_row():
  """The memory of the first layer is their embeddings; padding leaves a place empty."""
  config = make_memory_config()
  with tiny.Setup(config) as setup:
    params, carry = setup.init().params, objectives.make_zero_carry(setup.objective, 4)
    corrupt, run = jax.jit(setup.objective.corrupt), jax.jit(functools.partial(score, setup))
    tokens, is_text = [], []
    for seed in range(3):
      batch = tiny.make_batch(config, seed=seed, rows=4)
      batch["sequence_ids"][0, 5:] = 0
      batch = corrupt(batch, jax.random.key(seed), np.arange(4))
      _, carry = run(params, batch, carry)
      tokens.append(batch["tokens"][:, :8])
      is_text.append(batch["sequence_ids"][:, :8] > 0)
      filled = np.concatenate(is_text, 1)[:, -12:]
      assert np.array_equal(carry["is_memory"][:, -filled.shape[1]:], filled)
      assert not carry["is_memory"][:, :-filled.shape[1]].any()
  expected = params["embeddings"]["token"]["embedding"][np.concatenate(tokens, 1)[:, -12:]]
  np.testing.assert_allclose(carry["memory"][:, 0], expected, rtol=0, atol=1e-6)
  assert carry["is_memory"].sum(1).tolist() == [6, 12, 12, 12]


@pytest.mark.slow
def test_no_gradient_passes_through_the_memory():
  config = make_memory_config()
  with tiny.Setup(config) as setup:
    params = setup.init().params
    batch = setup.objective.corrupt(tiny.make_batch(config, rows=4), jax.random.key(0),
                                    np.arange(4))
    _, carry = score(setup, params, batch, objectives.make_zero_carry(setup.objective, 4))
    run = lambda params, memory: score(setup, params, batch, carry | {"memory": memory})
    into = jax.grad(lambda memory: run(params, memory)[0])(carry["memory"])
    out_of = jax.grad(lambda params: run(params, carry["memory"])[1]["memory"].sum())(params)
    moved, _ = run(params, carry["memory"] + jnp.arange(32.0))
    assert abs(moved - run(params, carry["memory"])[0]) > 1e-3
  assert not any(x.any() for x in jax.tree.leaves((into, out_of)))


@functools.cache
def compute_step(mesh, micro_batches, remat="none", unroll=1):
  """Returns gradients, loss, sums and carry of a step whose memory is partly filled."""
  config = make_memory_config(mesh=mesh, remat=remat, scan_unroll=unroll)
  with tiny.Setup(config) as setup:
    state, rng = setup.init(), np.random.default_rng(1)
    layout = sharding.batch_sharding(setup.mesh, config)
    carry = {"memory": rng.normal(size=state.carry["memory"].shape).astype(np.float32),
             "is_memory": rng.random(state.carry["is_memory"].shape) < 0.7}
    compute = jax.jit(steps.make_gradients(setup.split(micro_batches)))
    return jax.device_get(compute(state.params, setup.put(tiny.make_batch(config)), 3,
                                  jax.device_put(carry, layout)))


@pytest.mark.parametrize("layout", [
    ((2, 2, 2), 4, "none", 1),
    *(pytest.param(layout, marks=pytest.mark.slow) for layout in (
        ((1, 1, 1), 4), ((8, 1, 1), 1, "full", 0), ((1, 8, 1), 2, "dots", 1),
        ((1, 1, 4), 4, "products", 0), ((2, 2, 2), 1, "full", 1)))], ids=str)
def test_a_step_with_memory_does_not_depend_on_the_layout(layout):
  (grads, loss, sums), carry = compute_step(*layout)
  (expected_grads, expected_loss, expected_sums), expected_carry = compute_step((1, 1, 1), 1)
  assert loss == pytest.approx(expected_loss, rel=1e-5)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  jax.tree.map(functools.partial(close, rtol=1e-4), sums, expected_sums)
  jax.tree.map(functools.partial(close, rtol=0), grads, expected_grads)
  close(carry["memory"], expected_carry["memory"], rtol=0)
  assert np.array_equal(carry["is_memory"], expected_carry["is_memory"])


@pytest.mark.parametrize("fields, line", [
    ({"objective.permutation_block": 29}, "set it between 1 and phases[0].seq_len - 4 = 28"),
    ({"objective.permutation_block": 0}, "set it between 1 and phases[0].seq_len - 4 = 28"),
    ({"objective.memory": 0}, "objective.memory=0: must be at least 1"),
    ({"model.family": "bert", "model.position": "learned"}, "does not train model.family='bert'"),
    ({"data.packing": False}, "data.packing=False: "),
    ({"data.isolate_documents": True}, "data.isolate_documents=True: "),
    ({"objective.name": "plm"}, "objective.memory=12: "),
    ({"objective.mask_rule": "bernoulli"}, "objective.mask_rule='bernoulli': ")], ids=str)
def test_what_does_not_fit_a_memory_is_refused_in_one_line(fields, line):
  config = make_memory_config()
  assert not config_lib.find_problems(config)
  others = unread.find_problems(config)  # Fields that tiny models of other families read.
  config.update_from_flattened_dict(fields)
  lines = config_lib.find_problems(config) or set(unread.find_problems(config)).difference(others)
  assert len(lines) == 1 and line in [*lines][0], lines


def test_phases_with_memory_have_rows_for_the_same_streams():
  config = make_memory_config()
  config.phases = (config.phases[0], config_lib.phase(seq_len=16, batch_size=8))
  (line,) = config_lib.find_problems(config)
  assert line.startswith("phases[].batch_size: with objective plm_memory")
