"""bertgpt.training.init_from: what must fit, and what is said about the rest."""

import jax
import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.errors import ConfigError
from bertgpt.training import init_from


def test_parameters_of_another_model_with_the_same_shapes_are_named():
  """Dropout and initial values belong to the training, not to the model."""
  old, new = config_lib.base(), config_lib.base()
  new.model.update(num_heads=8, activation="silu", dropout=0.3, init_std=0.5, dtype="float32")
  assert init_from.describe_differences(old, new) == [
      "model.activation is 'silu' here. The parameters were trained with 'gelu_tanh'",
      "model.num_heads is 8 here. The parameters were trained with 12"]


def test_the_rotary_base_of_a_run_is_that_of_its_phase():
  config = config_lib.base()
  config.model.update(position="rope", rope_theta=160_000.0)
  config.phases = tuple(config_lib.phase(**{**config.phases[0], "steps": 10, "rope_theta": base})
                        for base in (10_000.0, 0.0))
  new = config_lib.with_model_at(config, 0)
  of_step = lambda step: init_from.describe_differences(config_lib.with_model_at(config, step), new)
  assert of_step(10) == []
  assert of_step(20) == [
      "model.rope_theta is 10000.0 here. The parameters were trained with 160000.0"]


def test_a_model_of_another_size_is_named_by_its_fields():
  """The first array says where it was seen, and the fields say what to do."""
  old, new = config_lib.base(), config_lib.base()
  old.model.update(num_layers=3, dropout=0.1)
  new.model.update(num_layers=2, dropout=0.2)
  new.objective.name, new.init_from = "mlm", "runs/a"
  abstract = {"a": jax.ShapeDtypeStruct((2, 8), np.float32),
              "b": jax.ShapeDtypeStruct((4,), np.float32)}
  init_from.check_shapes(new, abstract, old, {"a": (2, 8), "b": (4,), "nsp/bias": (2,)})
  with pytest.raises(ConfigError) as e:
    init_from.check_shapes(new, abstract, old, {"a": (3, 8)})
  assert str(e.value) == (
      "init_from=runs/a: its parameters do not fit this model (a: (3, 8), needs (2, 8), and 1 "
      "more). Use another run, or set the fields as in that run\n"
      "  model.num_layers=3, not 2\n"
      "  objective.name='mlm_nsp', not 'mlm'")


def test_parameters_without_a_place_are_named():
  found = ["embeddings/token/embedding", "embeddings/segment/embedding", "nsp/bias", "nsp/kernel",
           "pooler/kernel"]
  assert init_from.describe_unused(found, found) == ""
  assert init_from.describe_unused(found[:1], found).endswith(
      "lacks them: embeddings/segment/embedding, next-sentence head, pooler")
