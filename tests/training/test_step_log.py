"""bertgpt.training.step_log: a step that was not applied is counted, not averaged."""

import json

import numpy as np
import pytest
import tiny

from bertgpt.training import step_log


def test_a_skipped_step_is_counted_and_does_not_spoil_the_mean_around_it(tmp_path):
  config = tiny.make_config()
  config.log.every_steps, config.log.tensorboard = 3, False
  log = step_log.StepLog(config, tmp_path, 0)
  for step, loss in enumerate((2.0, np.nan, 4.0, 5.0), 1):
    log.add(step, {"loss": (loss, 1), "grad_norm": (loss, 1), "learning_rate": (0.1, 1),
                   "tokens": (100, 1), "bad_steps": (int(np.isnan(loss)), 1)})
  log.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  scalars = json.loads(line, parse_constant=pytest.fail)
  assert (scalars["step"], scalars["train/loss"], scalars["train/skipped_steps"]) == (3, 3.0, 1)
