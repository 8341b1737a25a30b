"""Held-out metrics: every row of the validation split is counted exactly once."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import ConfigDict, choices, families, resuming
from bertgpt.config.overrides import override
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import EVAL_SEED
from bertgpt.data.corpus.corpus import Corpus, describe_unknown, open_corpus, sum_lengths
from bertgpt.devices import peers, process, sharding, watchdog
from bertgpt.errors import ConfigError, DataError
from bertgpt.runs import corpora
from bertgpt.runs import trained as trained_lib
from bertgpt.training import metrics, objectives, steps
from bertgpt.training.objectives import BoundModel
from bertgpt.training.steps import Setup, make_setup

# Fields that may differ from the run, besides those of `resuming.RESUMABLE`: they select the text
# and the dtype. All others determine the model, or the meaning of its scores. `tokenizer.path` may
# differ, because the fingerprints of the tokenizers are compared.
MAY_DIFFER = (*corpora.TEXT_FIELDS, "tokenizer.path", "model.dtype")


class Evaluator(NamedTuple):
  """A held-out set and the jitted steps that score a batch of it.

  Attributes:
    setup: constants of the training.
    corpus: the held-out documents.
    programs: `steps.program_key` -> the jitted result of `make_eval_step`, made when it is needed.
  """

  setup: Setup
  corpus: Corpus
  programs: dict[str, Callable]

  def find_program(self, phase_index: int) -> Callable:
    """Returns the jitted step for the model and the objective of a phase."""
    key = steps.program_key(self.setup.config, phase_index, in_evaluation=True)
    if key not in self.programs:
      setup = steps.at_phase(self.setup, phase_index, in_evaluation=True)
      self.programs[key] = jax.jit(make_eval_step(setup))
    return self.programs[key]


def make_evaluator(setup: Setup, corpus: Corpus) -> Evaluator:
  """Returns the evaluator of a held-out corpus.

  Args:
    setup: constants of the training.
    corpus: the held-out documents.
  """
  return Evaluator(setup, corpus, {})


def conditions(config: ConfigDict, phase_index: int) -> dict[str, Any]:
  """Returns what decides the held-out rows and masks: scores are comparable if it is equal.

  Args:
    config: a whole config.
    phase_index: index of the phase that is evaluated.
  Returns:
    Name -> JSON value.
  """
  config, rows_by = config_lib.at_phase(config, phase_index, True), config.eval.rows_by
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
    model = BoundModel(setup.model, params, {}, carry)
    return objectives.compute_sums_and_carry(objective, model, batch)

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
    'lm_perplexity', 'bits_per_byte'. Losses are in nats. None if it was stopped.
  Raises:
    DataError: the set has no text, or none of its tokens is predicted.
  """
  (config, mesh, *_), corpus = evaluator.setup, evaluator.corpus
  batch_size = config.eval.batch_size
  running, pending = metrics.RunningSums(), None
  step = evaluator.find_program(phase_index)
  with (sharding.use_mesh(mesh, config), watchdog.restored(),
        trained_lib.matmul_precision(config)):
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
        peers.compile_together("the evaluation", config.system, step, params, batch, row_ids, carry)
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
  if objective.counts_bytes:
    means["bits_per_byte"] = bits_per_byte(means[objective.loss], corpus)
  return means


def make_carry(evaluator: Evaluator, layout: jax.sharding.NamedSharding) -> Any:
  """Returns the carry with which an evaluation begins, on the devices; () if there is none.

  Args:
    evaluator: evaluator of a set.
    layout: layout of the arrays of a batch.
  """
  config, objective = evaluator.setup.config, evaluator.setup.objective
  make = functools.partial(objectives.make_zero_carry, objective, config.eval.batch_size)
  return jax.jit(make, out_shardings=layout)() if objective.carry else ()


def bits_per_byte(nats_per_token: float, corpus: Corpus) -> float:
  """Returns the loss per UTF-8 byte of text, in bits, which is comparable between tokenizers.

  The end-of-document token that closes every document is predicted too and counts.

  Args:
    nats_per_token: mean loss.
    corpus: the documents that were scored.
  """
  tokens = sum_lengths(corpus.document_lengths) + len(corpus.document_lengths)
  return nats_per_token * tokens / corpus.num_bytes / float(jnp.log(2.0))


def evaluate_workdir(path: pathlib.Path, overrides: Sequence[str] = (),
                     dtype: str = trained_lib.SCORING_DTYPE) -> dict[str, float]:
  """Scores the newest checkpoint of a run on the validation split.

  Rows and masks are those of the phase that the checkpoint comes from. They are those of the last
  phase if the weights were imported, or if `eval.rows_by` is 'phase'. The training itself evaluates
  in `model.dtype`, so its last scores are those of this function with the same dtype, except with
  `model.matmul=fp8`.

  Args:
    path: workdir of the run.
    overrides: '--config.FIELD=VALUE' arguments on top of the run's config.
    dtype: type of activations and matmuls; '': that of the training. `overrides` may change it.
  Returns:
    Metric -> value, as `evaluate_corpus` returns it.
  Raises:
    ConfigError: `path` holds no run, an override is wrong or would change the model or the meaning
      of the scores, or the corpus was made with another tokenizer.
    DataError: no checkpoint is usable, or the corpus is damaged.
  """
  peers.check_agreement({"command": "evaluate", "--workdir": str(path), "--dtype": dtype,
                         "config fields": list(overrides)})
  trained = trained_lib.load_trained(path, dtype=dtype)
  trained_lib.check_same_step(path, trained)
  if trained.fresh:
    process.say_once(f"note: {path}: random weights in what the imported model lacks: "
                     f"{', '.join(families.HEADS[head] for head in trained.fresh)}")
  config = override(trained.config, overrides)
  phase_index = _find_phase(trained, config)
  check_same_model(trained.config, config, phase_index)
  check_text_is_read(trained.config, config)
  if not config.tokenizer.path and not config.data.corpus and _other_text(trained.config, config):
    config.tokenizer.path = str(path / "tokenizer")  # One trained on other text is another one.
  checked = config.copy_and_resolve_references()  # The batches of the training are not made here.
  checked.phases = tuple(p.copy_and_resolve_references() for p in config.phases)
  for p in checked.phases:
    p.update(batch_size=config.eval.batch_size, micro_batches=1)
  config_lib.validate(checked, jax.device_count(), jax.default_backend())
  resumes = config.data.language == trained.config.data.language
  identity = trained.corpus if corpora.is_same_text(trained.config, config) else ""
  held_out = open_corpus(corpora.find_corpus(config, resumes=resumes, identity=identity),
                         "validation")
  process.say_once(describe_unknown(held_out.manifest))
  if held_out.tokenizer.fingerprint() != trained.tokenizer.fingerprint():
    raise ConfigError(f"--workdir {path}: the corpus was prepared with another tokenizer. "
                      f"Add --config.tokenizer.path={path}/tokenizer")
  if held_out.identity != trained.corpus:
    process.say_once(f"note: {held_out.path} is not the corpus of this run; the run may have been "
                     "trained on its documents")
  mesh = sharding.make_mesh(config)
  evaluator = make_evaluator(make_setup(config, mesh, held_out.vocabulary), held_out)
  params = jax.device_put(trained.params, sharding.shard_state(
      trained.params, trained.params, mesh, config, models.axes_of(config)))
  weights = f"step {trained.step}" if trained.step else "imported weights"
  num_rows = loader.count_eval_rows(held_out, config, phase_index)
  process.say_once(f"note: {weights}, {num_rows:,} rows of {config.phases[phase_index].seq_len} "
                   f"tokens from {len(held_out):,} held-out documents, computed in "
                   f"{config.model.dtype}")
  return evaluate_corpus(evaluator, params, phase_index) or {}  # Nothing stops it.


def _find_phase(trained: trained_lib.Trained, config: ConfigDict) -> int:
  """Returns the index of the phase whose rows and masks a checkpoint is evaluated with."""
  last_step = config_lib.total_steps(config)
  step = trained.step if trained.step and config.eval.rows_by == "length" else last_step
  return config_lib.phase_at(config, min(step, last_step) - 1)[0]


def check_text_is_read(trained: ConfigDict, config: ConfigDict) -> None:
  """Refuses another text if a prepared corpus replaces it.

  Args:
    trained: config of the run.
    config: config of the evaluation.
  Raises:
    ConfigError: there are such fields; the message has one line per field.
  """
  if config.data.corpus and (fields := _other_text(trained, config)):
    raise ConfigError("\n".join(
        f"--config.{field}: data.corpus={config.data.corpus!r} replaces this field. Add "
        "--config.data.corpus=''" for field in fields))


def _other_text(trained, config):
  """Returns the fields by which a config selects another text than the run's."""
  old, new = dict(config_lib.leaves(trained)), dict(config_lib.leaves(config))
  return [field for field in corpora.TEXT_FIELDS if old[field] != new[field]]


def check_same_model(trained: ConfigDict, config: ConfigDict, phase_index: int) -> None:
  """Checks that a config evaluates the model of a run, with the objective of the run.

  The phase that is evaluated may have rows of another length.

  Args:
    trained: config of the run.
    config: config of the evaluation.
    phase_index: index of this phase.
  Raises:
    ConfigError: fields outside `MAY_DIFFER` differ; the message has one line per field.
  """
  rows = f"phases[{phase_index}].seq_len"
  if lines := resuming.differences(trained, config, (*MAY_DIFFER, rows)):
    raise ConfigError("\n".join(
        f"--config.{line}: evaluate scores the run as it was trained. Leave the field out"
        for line in lines))
