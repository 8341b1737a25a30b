"""bertgpt.training.initial_state: the state from which a run starts."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from program import flip_bit

from bertgpt.runs import checkpoint
from bertgpt.training import initial_state
from bertgpt.training.steps import TrainState


def make_guard():
  return {"values": jnp.ones((2, 8)), "count": jnp.int32(3)}


def make_state(step, spike_guard=()):
  params = {"w": jnp.full(4, step, jnp.float32)}
  return TrainState(jnp.int32(step), params, (), jnp.int32(0), spike_guard)


def make_abstract(state):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)


def open_checkpoints(path):
  return contextlib.closing(checkpoint.Checkpoints(path, every_steps=10, every_minutes=0, keep=2))


def test_the_step_before_a_damaged_one_may_have_no_guard(tmp_path):
  """The spike guard was switched on between steps 10 and 20."""
  states = {10: make_state(10), 20: make_state(20, make_guard())}
  with open_checkpoints(tmp_path) as checkpoints:
    for step, state in states.items():
      checkpoints.save(step, state, {}, wait=True)
    for step in (20, 10):
      state, _ = checkpoints.restore_latest(make_abstract(states[20]),
                                            initial_state.with_saved_guard)
      jax.tree.map(np.testing.assert_array_equal, state, states[step])
      flip_bit(tmp_path / "checkpoints" / str(step))


def test_a_checkpoint_of_an_earlier_version_has_a_guard(tmp_path):
  """Its train state had the guard in a field named `window`; both directions still work."""
  state = make_state(10, make_guard())
  former = {"step": state.step, "params": state.params, "opt_state": (),
            "bad_steps": state.bad_steps, "window": make_guard(), "carry": ()}
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(10, former, {}, wait=True)
    found, _ = checkpoints.restore_latest(make_abstract(state), initial_state.with_saved_guard)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    checkpoints.save(20, state, {}, wait=True)
  old, new = (checkpoint.read_manifest(tmp_path / "checkpoints" / step)["leaves"]
              for step in ("10", "20"))
  assert old == new
