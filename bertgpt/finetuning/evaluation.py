"""Evaluation of a run on the evaluation sets of a task: predictions, their metrics, their files."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from bertgpt import files
from bertgpt.finetuning.tasks import rows as rows_lib
from bertgpt.finetuning.tasks.rows import Rows, Task
from bertgpt.finetuning.tuning import Tuning, put_batch

Evaluation = tuple[dict[str, dict[str, float]], dict[str, Any]]  # Metrics, outputs; both by set.


def evaluate(tuning: Tuning, params: Any, should_stop: Callable[[], bool], *,
             with_tests: bool) -> Evaluation | None:
  """Predicts the evaluation sets and scores those with labels.

  Args:
    tuning: the opened fine-tuning.
    params: parameters of the run, on the devices.
    should_stop: called once per batch, the same number of times by all processes; once it returns
      True, the evaluation ends.
    with_tests: whether to predict the sets without labels too.
  Returns:
    (official metrics by set, outputs by set); None if it was stopped.
  """
  sets = [s for s in tuning.task.evals if s.score or with_tests]
  outputs: dict[str, Any] = {}
  for s in sets:
    outputs[s.name] = predict(tuning, params, s.rows, should_stop)
    if outputs[s.name] is None:
      return None
  return {s.name: s.score(outputs[s.name]) for s in sets if s.score}, outputs


def predict(tuning: Tuning, params: Any, chosen: Rows,
            should_stop: Callable[[], bool] = lambda: False
            ) -> np.ndarray | list[np.ndarray] | None:
  """Returns the outputs for all rows, in order: [N], or a list of N arrays [..., length].

  Args:
    tuning: see `evaluate`.
    params: parameters of the run, on the devices.
    chosen: rows of a set, at least one.
    should_stop: see `evaluate`; once it returns True, the result is None.
  """
  outputs: list[Any] = [None] * len(chosen)
  pending = None
  size = tuning.config.eval.batch_size

  def collect(index, values):
    values = np.asarray(values)
    for row, i in enumerate(index):
      outputs[i] = values[row] if values.ndim == 1 else values[row, ..., :len(chosen.tokens[i])]

  for index in rows_lib.order_evaluation(chosen.lengths, size):
    if should_stop():
      return None
    batch = put_batch(tuning, chosen, index, size, tuning.eval_lengths)
    started = index, tuning.outputs.start(params, batch)
    if pending is not None:
      collect(*pending)  # While the devices compute the batch that was just started.
    pending = started
  collect(*pending)
  return np.array(outputs) if np.ndim(outputs[0]) == 0 else outputs


def write_predictions(task: Task, outputs: dict[str, Any], folder: pathlib.Path) -> None:
  """Writes the predictions of every evaluation set in the official format.

  Args:
    task: task with its rows.
    outputs: outputs by set, for all sets of the task.
    folder: folder that is made for them.
  """
  with files.publish_when_done(folder) as scratch:
    scratch.mkdir()
    for s in task.evals:
      s.write(outputs[s.name], scratch)
