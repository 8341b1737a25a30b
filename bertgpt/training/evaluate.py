"""Held-out metrics: every row of the validation split is counted exactly once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt.config import ConfigDict, choices
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import EVAL_SEED
from bertgpt.data.corpus.corpus import Corpus, sum_lengths
from bertgpt.devices import barrier, sharding, watchdog
from bertgpt.errors import DataError
from bertgpt.models import precision
from bertgpt.training import metrics, objectives, steps
from bertgpt.training.objectives import BoundModel
from bertgpt.training.steps import Setup


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """A held-out set and the jitted steps that score a batch of it.

  Attributes:
    setup: constants of the training.
    corpus: the held-out documents.
    programs: `steps.program_key` -> the jitted result of `make_eval_step`, made when it is needed.
    others: name -> evaluator of another corpus that is scored too, with the same programs.
  """

  setup: Setup
  corpus: Corpus
  programs: dict[str, Callable] = dataclasses.field(default_factory=dict)
  others: dict[str, "Evaluator"] = dataclasses.field(default_factory=dict)

  def find_program(self, phase_index: int) -> Callable:
    """Returns the jitted step for the model and the objective of a phase."""
    key = steps.program_key(self.setup.config, phase_index, in_evaluation=True)
    if key not in self.programs:
      setup = steps.at_phase(self.setup, phase_index, in_evaluation=True)
      self.programs[key] = jax.jit(make_eval_step(setup))
    return self.programs[key]


def conditions(config: ConfigDict, phase_index: int) -> dict[str, Any]:
  """Returns what decides the held-out rows and masks: scores are comparable if it is equal.

  Args:
    config: a whole config.
    phase_index: index of the phase that is evaluated.
  Returns:
    Name -> JSON value.
  """
  config, rows_by = config_lib.config_of_phase(config, phase_index, True), config.eval.rows_by
  p = config.phases[0]
  found = {"seq_len": p.seq_len, "mask_prob": config.objective.mask_prob,
           "max_predictions": p.max_predictions, "max_rows": config.eval.max_rows,
           "phase": phase_index if rows_by == "phase" else 0}
  if choices.OBJECTIVES[config.objective.name].continues_rows:  # Each row of a batch is a stream.
    found["batch_size"] = config.eval.batch_size
  return found


def make_eval_step(setup: Setup) -> Callable:
  """Returns the function (params, batch, row_ids_B, carry) -> (sums, carry).

  The masks of a row depend only on its index. The carry is that of `Objective.carry`.

  Args:
    setup: constants of the training.
  """
  objective = setup.objective

  def eval_step(params, batch, row_ids_B, carry):
    key = jax.random.key(EVAL_SEED)
    batch = objective.corrupt(batch, key, row_ids_B)
    return objective.compute_sums(BoundModel(setup.model, params, carry=carry), batch)

  return eval_step


def evaluate_corpus(evaluator: Evaluator, params: dict, phase_index: int,
                    should_stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
  """Returns the mean of every metric over the whole set.

  The result does not depend on the batch size, the mesh or the number of hosts: rows that
  pad the last batch have weight 0, and sums are added in double precision. An objective with a
  carry is the exception: it starts from zeros, with one stream per row of a batch, so the result
  depends on the batch size. Matmuls are computed in `model.dtype`, see `matmul_precision`.

  Args:
    evaluator: evaluator of the set.
    params: float32 arrays on the mesh.
    phase_index: index of the phase whose row length, masks and model are used.
    should_stop: called before every batch, the same number of times in all processes of a run; once
      it returns True, the evaluation ends without a result.
  Returns:
    Metric -> value: 'mlm_loss', 'mlm_accuracy', 'mlm_perplexity', 'nsp_loss', ... or 'lm_loss',
    'lm_perplexity', 'bits_per_byte'. Losses are in nats. None if it was stopped. If much of the
    text is unknown to the tokenizer, there is no 'bits_per_byte': an unknown token is much likelier
    than the text for which it stands.
  Raises:
    DataError: the set has no text, or none of its tokens is predicted.
  """
  config, mesh, corpus = evaluator.setup.config, evaluator.setup.mesh, evaluator.corpus
  batch_size = config.eval.batch_size
  running, pending = metrics.RunningSums(), None
  step = evaluator.find_program(phase_index)
  with (sharding.use_mesh(mesh, config), watchdog.restored(),
        precision.matmul_precision(config)):
    layout = sharding.batch_sharding(mesh, config)
    rows = sharding.local_rows(layout, batch_size)
    carry = make_carry(evaluator, layout)
    for i, local in enumerate(loader.make_eval_batches(corpus, config, phase_index, rows)):
      if should_stop():
        return None
      watchdog.arm_for(config.system, compiles=i == 0)
      batch = sharding.make_global_batch(local, layout, batch_size)
      row_ids = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.int32)
      if i == 0:
        barrier.compile_together("the evaluation", config.system, step, params, batch, row_ids,
                                 carry)
      sums, carry = step(params, batch, row_ids, carry)
      if pending is not None:
        running.add(jax.device_get(pending))  # Batch i - 1, while batch i runs.
      pending = sums
    running.add(jax.device_get(pending))
  objective = choices.OBJECTIVES[config.objective.name]
  means = metrics.with_perplexity(running.means(), objective.loss)
  if objective.loss not in means:
    raise DataError(f"{corpus.path}: the masks of the evaluation predict no token of the "
                    f"{corpus.split} split, so there is no held-out loss. Raise eval.max_rows or "
                    "eval.mask_prob, or hold out more text")
  if objective.counts_bytes and not corpus.has_much_unknown:
    means["bits_per_byte"] = bits_per_byte(means[objective.loss], corpus)
  return means


def make_carry(evaluator: Evaluator, layout: jax.sharding.NamedSharding) -> objectives.Carry:
  """Returns the carry with which an evaluation begins, on the devices.

  Args:
    evaluator: evaluator of a set.
    layout: layout of the arrays of a batch.
  """
  config, objective = evaluator.setup.config, evaluator.setup.objective
  make = functools.partial(objectives.make_zero_carry, objective, config.eval.batch_size)
  return jax.jit(make, out_shardings=layout)()


def bits_per_byte(nats_per_token: float, corpus: Corpus) -> float:
  """Returns the loss per UTF-8 byte of text, in bits.

  It is comparable between tokenizers that lose the same of a text, see `lost.describe_lost`. The
  end-of-document token that closes every document is predicted too and counts.

  Args:
    nats_per_token: mean loss.
    corpus: the documents that were scored.
  """
  tokens = sum_lengths(corpus.document_lengths) + len(corpus.document_lengths)
  return nats_per_token * tokens / corpus.num_bytes / float(jnp.log(2.0))
