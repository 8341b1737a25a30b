"""bertgpt.training.spikes: steps far above the running median are not applied."""

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt.training import spikes


def make_config(window=8, factor=3.0):
  config = tiny.make_config()
  config.train.update(spike_guard="skip", spike_window=window, spike_factor=factor)
  return config


class PlainGuard:
  """The guard in plain Python, from the lower median of the last `size` applied values."""

  def __init__(self, size, factor):
    self.size, self.factor, self.values = size, factor, []

  def applies(self, pair):
    kept = self.values[-self.size:]
    good = bool(np.isfinite(pair).all())
    if good and len(kept) >= max(1, self.size // 4):
      good = all(pair[i] <= self.factor * statistics.median_low([v[i] for v in kept])
                 for i in range(2))
    if good:
      self.values.append(pair)
    return good


@pytest.mark.parametrize("size, seed", [(8, 0), (8, 1), (5, 2), (1, 3), (32, 4)])
def test_the_guard_is_that_of_plain_python(size, seed):
  config, plain = make_config(size, 2.0), PlainGuard(size, 2.0)
  rng = np.random.default_rng(seed)
  pairs = rng.lognormal(0, 0.6, (200, 2)).astype(np.float32)
  pairs[rng.random((200, 2)) < 0.03] = np.nan
  pairs[rng.random((200, 2)) < 0.03] = np.inf

  judge = jax.jit(lambda guard, pair: spikes.judge(config, guard, 0, *pair))
  guard, found, expected = spikes.init_guard(config), [], []
  for pair in pairs:
    applies, guard = judge(guard, pair)
    found.append(bool(applies))
    expected.append(plain.applies(pair))
  assert found == expected and 0.05 < 1 - np.mean(found) < 0.9
  assert np.isfinite(guard["values"]).all()


def test_steps_without_a_gradient_leave_the_median_as_it_is():
  """Otherwise, every step after some batches without text would be a spike."""
  config = make_config(window=4)
  guard = spikes.init_guard(config)
  for values in [(5.0, 1.0)] * 4 + [(0.0, 0.0)] * 4:
    is_applied, guard = spikes.judge(config, guard, 0, *values)
    assert is_applied
  assert spikes.judge(config, guard, 0, 5.0, 1.0)[0]
  assert not spikes.judge(config, guard, 0, 16.0, 1.0)[0]


def test_a_spike_changes_nothing_but_the_counters_and_the_next_step_is_applied():
  """A change of the output bias makes the loss of a batch a hundred times as large."""
  with tiny.Setup(make_config()) as setup:
    state, step, batch = setup.init(), setup.step(), setup.put(tiny.make_batch(setup.config))
    for _ in range(4):
      state, _ = step(state, batch)
    good = state.params
    bad = {**good, "mlm": {**good["mlm"], "bias": good["mlm"]["bias"].at[::2].set(1e3)}}
    before = jax.device_get((bad, state.opt_state, state.spike_guard))
    state, metrics = step(jax.tree.map(jnp.copy, spikes_state(state, bad)), batch)
    assert metrics["bad_steps"][0] == 1 and np.isfinite(metrics["loss"][0])
    assert metrics["loss"][0] > 50
    jax.tree.map(np.testing.assert_array_equal, before,
                 jax.device_get((state.params, state.opt_state, state.spike_guard)))
    assert int(state.step) == 5


@pytest.mark.parametrize("skip_steps, starts", [
    ((), [3, 5]), (((4, 4),), [4, 5]), (((3, 6),), [6, 6]), (((2, 3), (6, 8)), [3, 8])])
def test_the_guard_restarts_in_every_phase(skip_steps, starts):
  config = make_config()
  first, = config.phases
  config.phases = tuple(config_lib.phase(**(first.to_dict() | {"steps": n})) for n in (3, 2, 9))
  config.train.skip_steps = skip_steps
  _, guard = spikes.judge(config, spikes.init_guard(config), 0, 1.0, 1.0)
  for step in range(10):
    _, after = spikes.judge(config, guard, step, 1.0, 1.0)
    assert int(after["count"]) == (1 if step in starts else 2)


def test_gradients_that_are_larger_in_the_next_phase_are_no_spikes():
  config = make_config()
  first, = config.phases
  config.phases = tuple(config_lib.phase(**(first.to_dict() | {"steps": 5})) for _ in range(2))
  with tiny.Setup(config) as setup:
    state, step, batch = setup.init(), setup.step(), setup.put(tiny.make_batch(setup.config))
    for i in range(6):
      if i == 5:  # As after a change of the batch.
        guard = state.spike_guard | {"values": state.spike_guard["values"] * 1e-3}
        state = dataclasses.replace(state, spike_guard=guard)
      state, metrics = step(state, batch)
    assert metrics["bad_steps"][0] == 0 and int(state.spike_guard["count"]) == 1


def spikes_state(state, params):
  return dataclasses.replace(state, params=params)


def test_without_a_guard_the_state_has_none():
  with tiny.Setup(tiny.make_config()) as setup:
    assert setup.abstract.spike_guard == ()
  for loss, norm in ((1.0, 1e9), (np.nan, 1.0), (1.0, np.inf)):
    assert spikes.judge(setup.config, (), 5, loss, norm) == (norm == 1e9, ())
