"""A finished run, as its report needs it."""

import pathlib
from typing import Any, NamedTuple

import jax

from bertgpt.data.corpus.corpus import Corpus
from bertgpt.devices import gather, timeline
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained
from bertgpt.training.open_run import Run


class Finished(NamedTuple):
  """A finished run, with everything that its report needs.

  Attributes:
    path: folder of the run, with its curves.
    trained: model with its final parameters, NumPy arrays on the host; in processes other than 0,
      None instead of every array.
    train_set: documents of the training.
    held_out: documents of the evaluation.
    scores: held-out metric -> value, at the end.
  """

  path: pathlib.Path
  trained: Trained
  train_set: Corpus
  held_out: Corpus
  scores: dict[str, float]


@timeline.during("report")
def make_finished(run: Run, step: int, params: Any, scores: dict[str, float]) -> Finished:
  """Gathers the parameters in process 0. All processes call this together.

  Args:
    run: the opened run.
    step: last step of the run.
    params: parameters after this step, on the devices.
    scores: held-out metric -> value after this step.
  """
  params = jax.tree.map(gather.to_first_host, params)
  trained = trained_lib.make_trained(run.config, params, run.corpus.tokenizer, step,
                                     run.corpus.identity, workdir=run.path)
  return Finished(run.path, trained, run.corpus, run.evaluator.corpus, scores)
