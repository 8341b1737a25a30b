"""bertgpt.config.derived: steps, shapes of rows, and the model of a phase follow from a config."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import derived
from bertgpt.config.overrides import override


def test_every_step_belongs_to_one_phase():
  config = config_lib.base()
  config.phases = tuple(config_lib.phase(steps=n) for n in (3, 1, 2))
  assert config_lib.total_steps(config) == 6
  assert [config_lib.find_phase(config, step) for step in range(6)] == [
      (0, 0), (0, 0), (0, 0), (1, 3), (2, 4), (2, 4)]
  with pytest.raises(IndexError):
    config_lib.find_phase(config, 6)


def test_steps_that_are_left_out_are_counted_in_their_phase():
  config = config_lib.base()
  config.phases = tuple(config_lib.phase(steps=n) for n in (10, 10, 5))
  config.train.skip_steps = ((3, 4), (9, 12))
  assert [derived.count_left_out(config, i) for i in range(3)] == [4, 2, 0]


def test_static_shapes_of_a_row():
  config = config_lib.base()
  assert config_lib.max_predictions(config, config_lib.phase(seq_len=128)) == 19
  assert config_lib.max_predictions(config, config_lib.phase(max_predictions=20)) == 20
  assert config_lib.max_sequences(config, 128) == 4
  config.data.packing = False
  assert config_lib.max_sequences(config, 128) == 1


def test_a_row_has_at_most_as_many_sequences_as_tokens():
  config = override(config_lib.base(), ["--config.data.max_sequences=1000000"])
  assert config_lib.max_sequences(config, 128) == 128


def test_a_trained_model_is_that_of_the_phase_of_its_step():
  config = config_lib.base()
  config.phases = (config_lib.phase(steps=5), config_lib.phase(steps=5, rope_theta=160_000.0))
  for step, theta in ((0, 10_000.0), (5, 10_000.0), (6, 160_000.0), (10, 160_000.0)):
    found = config_lib.with_model_at(config, step)
    assert found.model.rope_theta == theta
    assert all(p.rope_theta == 0 for p in found.phases)
  assert config.phases[1].rope_theta == 160_000.0  # The config itself is as it was.


@pytest.mark.parametrize("size, padded", [(1, 128), (128, 128), (30_522, 30_592), (50_257, 50_304)])
def test_vocabulary_is_padded_to_whole_lanes(size, padded):
  assert config_lib.padded_vocab_size(size) == padded
