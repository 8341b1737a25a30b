"""A run is saved when it is due, but not with steps that were not applied."""

import numpy as np
import pytest

from bertgpt import config as config_lib
from bertgpt.errors import DivergedError
from bertgpt.training.saving import SavePolicy
from bertgpt.training.step_log import StepLog


@pytest.fixture
def log(tmp_path):
  config = config_lib.base()
  config.train.max_bad_steps = 3
  config.log.update(every_steps=100, tensorboard=False)
  log = StepLog(config, tmp_path, first_step=0)
  yield log
  log.close()


def add(log, step, bad_steps=0):
  """Adds a step of which `bad_steps` in a row were not applied, this one included."""
  values = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 8,
            "bad_steps": bad_steps}
  log.add(step, {name: (np.float32(value), np.float32(1)) for name, value in values.items()})


def test_a_save_waits_for_a_step_that_is_applied(log):
  saving, saved = SavePolicy(log), []
  for step, bad_steps in enumerate((0, 1, 2, 0, 0), start=1):
    add(log, step, bad_steps)
    if saving.should_save(is_due=step == 2, is_last=False, is_stopping=False):
      saved.append(step)
  assert saved == [4], "step 2 was due, but not applied"


@pytest.mark.parametrize("fields", [{"is_last": True}, {"is_stopping": True}])
def test_the_end_and_a_signal_save_any_state(log, fields):
  """The parameters are those of the last step that was applied."""
  saving = SavePolicy(log)
  add(log, 1, bad_steps=1)
  assert saving.should_save(**{"is_due": False, "is_last": False, "is_stopping": False} | fields)
  assert not saving.is_postponed


def test_a_run_that_has_diverged_is_not_saved(log):
  add(log, 1, bad_steps=3)
  with pytest.raises(DivergedError, match="step 1: 3 consecutive steps were not applied"):
    SavePolicy(log).should_save(is_due=False, is_last=True, is_stopping=False)
