"""bertgpt.training.start: the state from which a run starts."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from program import flip_bit

from bertgpt.runs import checkpoint
from bertgpt.training import start
from bertgpt.training.steps import TrainState


def make_state(step, window=()):
  params = {"w": jnp.full(4, step, jnp.float32)}
  return TrainState(jnp.int32(step), params, (), jnp.int32(0), window)


def test_the_step_before_a_damaged_one_may_have_no_window(tmp_path):
  """The spike guard was switched on between steps 10 and 20."""
  window = {"values": jnp.ones((2, 8)), "count": jnp.int32(3)}
  states = {10: make_state(10), 20: make_state(20, window)}
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                        states[20])
  with contextlib.closing(checkpoint.Checkpoints(
      tmp_path, every_steps=10, every_minutes=0, keep=2)) as checkpoints:
    for step, state in states.items():
      checkpoints.save(step, state, {}, wait=True)
    for step in (20, 10):
      state, _ = checkpoints.restore_latest(wanted, start.with_saved_window)
      jax.tree.map(np.testing.assert_array_equal, state, states[step])
      flip_bit(tmp_path / "checkpoints" / str(step))
