"""The carry in the train state, which every row hands to the same row of the next step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt.devices import sharding
from bertgpt.runs import checkpoint
from bertgpt.training import objectives, steps

STEPS = 3


def add_carry(setup):
  """Gives an objective a carry: sums of the rows' tokens, and features of their first ones.

  A row whose tokens have a large sum weighs more in the next step.
  """
  plain = setup.objective

  def compute_sums(model, batch):
    total_B, first_B23 = model.carry["total"], model.carry["first"]
    scale_B = 1 + total_B / 1e4 + first_B23.sum((1, 2)) / 1e3
    weighed = batch | {"loss_weights": batch["loss_weights"] * scale_B[:, None]}
    carry = {"total": total_B + batch["tokens"].sum(1),
             "first": batch["tokens"][:, :6].reshape(-1, 2, 3).astype(jnp.float32) / 3}
    return plain.compute_sums(model, weighed)[0], carry

  return setup._replace(objective=plain._replace(compute_sums=compute_sums, carry={
      "total": ((), np.int32), "first": ((2, 3), np.float32)}))


class Carrying(tiny.Setup):
  """A tiny GPT whose objective has a carry."""

  def __init__(self, mesh=(1, 1, 1)):
    super().__init__(tiny.make_config("causal", mesh=mesh))
    self.training = add_carry(self.training)
    self.objective = self.training.objective

  def run(self, state, numbers, micro_batches=1):
    """Returns the state after these steps, and their losses."""
    step, losses = self.step(micro_batches), []
    for number in numbers:
      state, metrics = step(state, self.put(tiny.make_batch(self.config, seed=number)))
      losses.append(float(metrics["loss"][0]))
    return state, losses


@pytest.fixture(scope="module")
def alone():
  with Carrying() as setup:
    state, losses = setup.run(setup.init(), range(STEPS))
    return jax.device_get(state), losses


@pytest.mark.parametrize("mesh, micro_batches", [
    ((2, 2, 2), 4), *(pytest.param(*layout, marks=pytest.mark.slow) for layout in (
        ((1, 1, 1), 4), ((8, 1, 1), 1), ((1, 8, 1), 2)))], ids=str)
def test_a_row_meets_its_own_carry_in_every_layout(alone, mesh, micro_batches):
  with Carrying(mesh) as setup:
    state, losses = setup.run(setup.init(), range(STEPS), micro_batches)
    layout = sharding.batch_sharding(setup.mesh, setup.config)
    assert all(x.sharding.is_equivalent_to(layout, x.ndim) for x in state.carry.values())
  tokens = [tiny.make_batch(setup.config, seed=number)["tokens"] for number in range(STEPS)]
  np.testing.assert_array_equal(state.carry["total"], np.sum(tokens, (0, 2)))
  np.testing.assert_allclose(state.carry["first"], tokens[-1][:, :6].reshape(-1, 2, 3) / 3,
                             rtol=1e-6)
  np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5),
               jax.device_get(state.params), alone[0].params)


def test_the_loss_depends_on_the_carry(alone):
  """Otherwise, the test above would prove little."""
  with Carrying() as setup:
    state = setup.init()
    _, (loss, *_) = setup.run(dataclasses.replace(
        state, carry=jax.tree.map(jnp.ones_like, state.carry)), [0])
  assert loss == pytest.approx(alone[1][0] * (1 + 1e-4 + 6e-3), rel=1e-5)


def test_a_restored_run_goes_on_with_the_same_bits(alone, tmp_path):
  with Carrying() as setup:
    state, _ = setup.run(setup.init(), range(2))
    with checkpoint.Checkpoints(tmp_path, every_steps=1, every_minutes=0, keep=1) as checkpoints:
      checkpoints.save(2, state, {}, wait=True)
      restored, _ = checkpoints.restore_latest(setup.abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    restored, losses = setup.run(restored, [2])
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), alone[0])
  with Carrying((2, 2, 2)) as setup:  # On this mesh, other devices hold the rows.
    with checkpoint.Checkpoints(tmp_path, every_steps=1, every_minutes=0, keep=1) as checkpoints:
      elsewhere, _ = checkpoints.restore_latest(setup.abstract)
    _, found = setup.run(elsewhere, [2], micro_batches=2)
  np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_a_step_that_is_not_applied_hands_on_nothing():
  with Carrying() as setup:
    state, _ = setup.run(setup.init(), [0])
    table = state.params["embeddings"]["token"]["embedding"]
    table = table.at[7].set(jnp.nan)  # Some row has token 7.
    params = {**state.params, "embeddings": {**state.params["embeddings"],
                                             "token": {"embedding": table}}}
    before = jax.device_get(state.carry)
    state, _ = setup.run(dataclasses.replace(state, params=params), [1])
    assert int(state.bad_steps) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.carry), before)


def test_an_objective_without_a_carry_adds_nothing_to_the_state():
  with tiny.Setup(tiny.make_config("causal")) as setup:
    assert not jax.tree.leaves(setup.abstract.carry)
    _, carry = jax.eval_shape(
        steps.make_gradients(setup.split(4)), setup.abstract.params,
        tiny.make_batch(setup.config), 0, setup.abstract.carry)
  assert not jax.tree.leaves(carry)
  assert objectives.make_zero_carry(setup.objective, 4) == {}
