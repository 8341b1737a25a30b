"""The train step: the model learns, and a step that is not finite changes nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType

from bertgpt import config as config_lib
from bertgpt.config import choices, families, recipes
from bertgpt.data.tokens.vocabulary import Vocabulary
from bertgpt.devices import sharding
from bertgpt.planning import aot
from bertgpt.training import evaluate, objectives, steps
from bertgpt.training.explain import explain

# The programs of the other recipes differ from these in the sizes of arrays, or hardly at all.
FAST = {"albert_base", "bert_base", "diffusion_mini", "electra_small", "elmo_original",
        "gpt2_small", "modernbert_base", "xlnet_base"}
NAMES = [name for name in recipes.names() if not name.startswith("finetune")]
assert set(NAMES) >= FAST
RECIPES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES]


def make_steps(setup, count):
  """Returns the state after N steps on one batch, and their losses."""
  state, step = setup.init(), setup.step()
  batch, losses = setup.put(tiny.make_batch(setup.config)), []
  for _ in range(count):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"][0]))
  return state, losses


@pytest.mark.parametrize("objective", [
    "mlm_nsp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("causal", "mlm"))])
def test_the_loss_of_one_batch_falls(objective):
  config = tiny.make_config(objective, dropout=0.1, attention_dropout=0.1)
  config.phases[0].learning_rate = 1e-3
  with tiny.Setup(config) as setup:
    state, losses = make_steps(setup, 40)
  assert int(state.step) == 40
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
  uniform = np.log(tiny.VOCAB) + (np.log(2) if objective == "mlm_nsp" else 0)
  assert losses[0] == pytest.approx(uniform, rel=0.03)


def test_first_losses_of_a_seed_are_those_on_record():
  """Any change to initial values, masks, loss or update changes these numbers."""
  config = tiny.make_config()
  with tiny.Setup(config) as setup:
    _, losses = make_steps(setup, 3)
  np.testing.assert_allclose(losses, GOLDEN, rtol=2e-5)


GOLDEN = (6.211855, 6.152495, 6.248095)


@pytest.mark.parametrize("micro_batches", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(micro_batches):
  config = tiny.make_config()
  with tiny.Setup(config) as setup:
    step, batch = setup.step(micro_batches), setup.put(tiny.make_batch(config))
    state, _ = step(setup.init(), batch)
    table = state.params["embeddings"]["token"]["embedding"]
    params = jax.tree.map(jnp.copy, state.params)
    params["embeddings"]["token"]["embedding"] = table.at[7].set(jnp.nan)
    spoiled = steps.TrainState(state.step, params, state.opt_state, state.bad_steps)
    before = jax.device_get(spoiled)
    for expected in (1, 2):
      spoiled, metrics = step(spoiled, batch)
      assert metrics["bad_steps"][0] == expected
    after = jax.device_get(spoiled)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state),
                 (before.params, before.opt_state))
    assert after.step == before.step + 2
    healed = {**after.params, "embeddings": before.params["embeddings"]}
    healed["embeddings"]["token"]["embedding"] = np.nan_to_num(table)
    healed = steps.TrainState(after.step, healed, after.opt_state, after.bad_steps)
    state, metrics = step(healed, batch)
    assert state.bad_steps == 0 and np.isfinite(metrics["loss"][0])


@pytest.mark.slow
def test_frozen_layers_have_no_backward_pass_and_no_part_in_the_norm():
  programs, norms = [], []
  for freeze in ("", "^(embeddings|encoder)/"):
    config = tiny.make_config(scan_unroll=1)
    config.optimizer.freeze = freeze
    with tiny.Setup(config) as setup:
      state, batch = setup.init(), setup.put(tiny.make_batch(config))
      step = setup.step(micro_batches=2)
      programs.append(step.lower(state, batch).compile())
      norms.append(float(step(state, batch)[1]["grad_norm"][0]))
  # The layers are loops, whose bodies count once: one forward, one backward.
  loops = [program.as_text().count(" while(") for program in programs]
  flops = [program.cost_analysis()["flops"] for program in programs]
  assert loops[1] < loops[0]
  assert flops[1] < 0.7 * flops[0]
  assert norms[1] < norms[0]


def test_the_same_step_gives_the_same_bits():
  config = tiny.make_config(dropout=0.1, attention_dropout=0.1)
  with tiny.Setup(config) as setup:
    step, batch, state = setup.step(4), setup.put(tiny.make_batch(config)), setup.init()
    results = [jax.device_get(step(jax.tree.map(jnp.copy, state), batch)) for _ in range(2)]
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("objective", ["mlm_nsp", "causal"])
def test_packed_rows_have_the_loss_of_their_sequences_apart(objective):
  config = tiny.make_config(objective)
  batch = tiny.make_batch(config, rows=8)
  if objective == "mlm_nsp":
    mlm_nsp = objectives.make_objective(config, tiny.make_vocabulary())
    batch = jax.device_get(jax.jit(mlm_nsp.corrupt)(batch, jax.random.key(0), np.arange(8)))
  with tiny.Setup(config) as setup:
    params = setup.init().params
    evaluate = jax.jit(lambda b: setup.objective.compute_sums(
        objectives.BoundModel(setup.model, params), b)[0])
    packed, apart = evaluate(batch), evaluate(unpack(batch))
  for name in packed:
    np.testing.assert_allclose(packed[name], apart[name], rtol=1e-5)


@pytest.mark.parametrize("objective", [
    pytest.param(name, marks=() if name == "rtd" else pytest.mark.slow)
    for name in choices.OBJECTIVES])
def test_rows_with_nothing_to_predict_have_finite_gradients(objective):
  """A batch of padding adds nothing, and rows of one or two tokens are never NaN."""
  config = tiny.make_config(objective, num_layers=1)
  config.objective.update(memory=8, permutation_block=16)
  with tiny.Setup(config) as setup:
    params, objective = setup.init().params, setup.objective
    carry = objectives.make_zero_carry(objective, 4)

    def compute(params, batch):
      batch = objective.corrupt(batch, jax.random.key(0), jnp.arange(4))
      model = objectives.BoundModel(setup.model, params, carry=carry)
      sums, _ = objective.compute_sums(model, batch)
      return objectives.total_loss(sums, objective.weights(batch))

    gradients = jax.jit(jax.value_and_grad(compute))
    none, short = (gradients(params, cut_rows(config, lengths)) for lengths in (
        [0, 0, 0, 0], [0, 1, 2, tiny.LENGTH]))
  assert not any(np.any(x) for x in jax.tree.leaves(none))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(short)) and short[0] > 1


def cut_rows(config, lengths):
  """Returns rows of these numbers of tokens, followed by padding."""
  lengths = np.array(lengths)[:, None]
  batch, is_token = tiny.make_batch(config, rows=4), np.arange(tiny.LENGTH) < lengths
  for name, x in batch.items():
    if x.shape == is_token.shape:
      batch[name] = x * is_token
    elif name.endswith("_weights"):
      batch[name] = x * (batch[name.replace("weights", "positions")] < lengths)
  return jax.tree.map(jnp.asarray, batch)


def test_a_phase_has_its_own_masks_and_positions():
  """A phase has the same loss as a run that has the phase's fields in its whole config."""
  modern = {**families.FAMILIES["modernbert"].presets["base"], **tiny.SIZE, "window": 4}

  def run(config, index):
    with tiny.Setup(config) as setup:
      at = steps.at_phase(setup.training, index) if index else setup.training
      compute = jax.jit(steps.make_gradients(at))
      (_, loss, sums), _ = compute(setup.init().params, tiny.make_batch(config, rows=8), 3, {})
    return float(loss), float(sums["mlm_loss"][1])

  config = tiny.make_config("mlm", **modern)
  config.objective.mask_prob = 0.3
  p = config.phases[0]
  config.phases = (p, p.copy_and_resolve_references())
  config.phases[1].update(mask_prob=0.15, rope_theta=100.0, rope_theta_local=7.0)
  same = tiny.make_config("mlm", **{**modern, "rope_theta": 100.0, "rope_theta_local": 7.0})
  same.objective.mask_prob = 0.15
  first, second = run(config, 0), run(config, 1)
  assert second == run(same, 0)
  assert first[0] != second[0] and first[1] == pytest.approx(2 * second[1], rel=0.15)
  config.phases = config.phases[1:]
  assert second == run(config, 0)


def with_other_phase(config, fields):
  """Returns the config with a second phase, which differs from the first in some fields."""
  first = config.phases[0]
  second = first.copy_and_resolve_references()
  for name in fields:
    others = [value for value in config_lib.PHASE_CHOICES.get(name, ()) if value != first[name]]
    second[name] = others[0] if others else first[name] + type(first[name])(1)
  config.phases = (first, second)
  return config


@pytest.mark.parametrize("in_evaluation, listed", [
    (False, steps.NOT_IN_PROGRAM), (True, steps.NOT_IN_EVALUATION)])
def test_every_field_of_a_phase_is_in_the_key_or_is_listed(in_evaluation, listed):
  for field in config_lib.phase():
    config = with_other_phase(tiny.make_config("mlm"), [field])
    keys = {steps.program_key(config, i, in_evaluation) for i in (0, 1)}
    assert len(keys) == (1 if field in listed else 2), field


def test_phases_that_differ_in_every_listed_field_have_the_same_program():
  def lower(config, in_evaluation):
    with tiny.Setup(config) as setup:
      batch = tiny.make_batch(config)
      for i in (0, 1):
        phase = steps.at_phase(setup.training, i, in_evaluation)
        if in_evaluation:
          yield jax.jit(evaluate.make_eval_step(phase)).lower(
              setup.abstract.params, batch, np.arange(tiny.ROWS), ()).as_text()
        else:
          yield steps.jit_train_step(phase, setup.abstract).lower(setup.abstract, batch).as_text()

  for in_evaluation, listed in ((False, steps.NOT_IN_PROGRAM), (True, steps.NOT_IN_EVALUATION)):
    first, second = lower(with_other_phase(tiny.make_config("mlm"), listed), in_evaluation)
    assert first == second


def test_a_phase_that_names_the_value_of_the_run_shares_its_program():
  config = tiny.make_config("mlm")
  config.phases = (config.phases[0], config.phases[0].copy_and_resolve_references())
  config.phases[1].mask_prob = config.objective.mask_prob
  assert steps.program_key(config, 0) == steps.program_key(config, 1)


def test_an_evaluation_may_have_its_own_share_of_masks():
  config = tiny.make_config("mlm")
  config.phases[0].max_predictions = 9
  config.eval.mask_prob = 0.1
  with tiny.Setup(config) as setup:
    for in_evaluation, slots in ((False, 9), (True, 3)):
      objective = steps.at_phase(setup.training, 0, in_evaluation).objective
      batch = jax.jit(objective.corrupt)(tiny.make_batch(config), jax.random.key(0),
                                         np.arange(tiny.ROWS))
      assert batch["predict_weights"].shape == (tiny.ROWS, slots)


def unpack(batch):
  """Returns every sequence in a row of its own, with its tokens moved to the front."""
  rows = []
  for row in range(len(batch["tokens"])):
    for sequence in (1, 2):
      where = np.flatnonzero(batch["sequence_ids"][row] == sequence)
      move = lambda x: np.pad(x[row][where], (0, tiny.LENGTH - len(where)))  # noqa: B023
      new = {name: move(batch[name]) for name in
             ("tokens", "positions", "segment_ids", "targets", "loss_weights") if name in batch}
      new["sequence_ids"] = (np.arange(tiny.LENGTH) < len(where)).astype(np.int32)
      if "predict_positions" in batch:
        inside = np.isin(batch["predict_positions"][row], where)
        new["predict_positions"] = np.where(inside, batch["predict_positions"][row] - where[0], 0)
        new["predict_targets"] = batch["predict_targets"][row]
        new["predict_weights"] = batch["predict_weights"][row] * inside
        new["nsp_positions"] = np.zeros(1, np.int32)
        new |= {name: batch[name][row][[sequence - 1]] for name in ("nsp_labels", "nsp_weights")}
      rows.append(new)
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


# ------------------------------------------------------- other platforms


@pytest.mark.parametrize("platform, lowered", [
    ("tpu", "tpu"), pytest.param("gpu", "cuda", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_lowers_for_tpu_and_gpu(recipe, platform, lowered):
  """The step lowers for 64 x 4 devices, without a device: on TPUs with the kernel of 'auto'.

  On GPUs, attention is plain, because tracing cuDNN's kernel needs an installed cuDNN (see
  `test_attention`). Batches are rounded up to a multiple of 64, because some recipes are for fewer
  devices.
  """
  config = recipes.load(recipes.find(recipe))
  config.model.attention = "auto" if platform == "tpu" else "xla"
  config.model.vocab_size = min(config.tokenizer.vocab_size or 50257, 60000)
  heads = {"num_heads", *({"generator_num_heads"} & families.find(config).reads)}
  if any(config.model[name] % 4 for name in heads):  # GPT-2 XL has 25, ELECTRA-small's generator 1.
    config.mesh.axes.heads = ()
  vocabulary = Vocabulary(config.model.vocab_size, 4, (0, 2, 3),
                          *(np.zeros(config.model.vocab_size, bool) for _ in range(2)))
  mesh = AbstractMesh((64, 1, 4), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
  with sharding.use_mesh(mesh, config, platform):
    kernels = [line for line in explain(config) if "attention by" in line]
    kernels = kernels or ["no attention"] * len(config.phases)
    setup = steps.make_setup(config, mesh, vocabulary)
    state = steps.make_abstract_state(setup)
    done = set()
    for i, (phase, kernel) in enumerate(zip(config.phases, kernels, strict=True)):
      program = (phase.seq_len, phase.mask_prob, phase.rope_theta, phase.micro_batches > 1)
      if program in done:  # Only the number of rows differs.
        continue
      done.add(program)
      multiple = 64 * phase.micro_batches
      phase.batch_size = -(-phase.batch_size // multiple) * multiple
      batch = aot.abstract_batch(config, phase, mesh)
      step = jax.jit(steps.make_train_step(steps.at_phase(setup, i)))
      text = step.trace(state, batch).lower(lowering_platforms=(lowered,)).as_text()
      assert "sharding" in text
      is_fused = "attention by" in kernel and "by xla" not in kernel
      assert ("tpu_custom_call" in text) == is_fused


@pytest.mark.parametrize("objective, fields", [
    ("mlm_nsp", {}), ("mlm_sop", {"layer_groups": 2}), ("plm", {"position": "relative"})])
@pytest.mark.parametrize("platform, expected", [("gpu", {"1"}), ("cpu", {"2", "4"})])
def test_on_a_gpu_initial_values_are_made_in_a_loop(monkeypatch, objective, fields, platform,
                                                    expected):
  """Only there: the compiler takes most of a minute for the generators of 12 layers."""
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  with tiny.Setup(tiny.make_config(objective, num_layers=4, scan_unroll=0, **fields)) as setup:
    text = str(jax.make_jaxpr(lambda: steps.init_state(setup.training))())
    found = set(re.findall(r"unroll=(\d+)", text))
  assert found and found <= expected, found
