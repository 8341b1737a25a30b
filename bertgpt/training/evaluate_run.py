"""Scores of the newest checkpoint of a run on its validation split, or on another text."""

import math
import pathlib
from collections.abc import Sequence

import jax

from bertgpt import config as config_lib
from bertgpt import models
from bertgpt.config import ConfigDict, choices, families, resuming
from bertgpt.config.overrides import override
from bertgpt.data.batches import loader
from bertgpt.data.corpus.corpus import Corpus, describe_unknown, open_corpus
from bertgpt.data.tokens import lost
from bertgpt.devices import agreement, cluster, sharding
from bertgpt.errors import ConfigError
from bertgpt.runs import corpora
from bertgpt.runs import trained as trained_lib
from bertgpt.training import evaluate
from bertgpt.training.steps import make_setup

# Fields that may differ from the run, besides those of `resuming.RESUMABLE`: they select the text
# and the dtype. All others determine the model, or the meaning of its scores. `tokenizer.path` may
# differ, because the fingerprints of the tokenizers are compared.
MAY_DIFFER = (*corpora.TEXT_FIELDS, "tokenizer.path", "model.dtype")
# Fields about which the folder of an imported model says nothing.
MASKING = ("objective.mask_prob", "objective.replace_with_mask", "objective.replace_with_random",
           "objective.whole_words", "objective.ngram", "objective.mask_rule")


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
    Metric -> value, as `evaluate.evaluate_corpus` returns it.
  Raises:
    ConfigError: `path` holds no run, an override is wrong or would change the model or the meaning
      of the scores, or the corpus was made with another tokenizer.
    DataError: no checkpoint is usable, or the corpus is damaged.
  """
  agreement.check({"command": "evaluate", "--workdir": str(path), "--dtype": dtype,
                   "config fields": list(overrides)})
  trained = trained_lib.load_trained(path, dtype=dtype)
  trained_lib.check_same_step(path, trained)
  if trained.fresh:
    cluster.say_once(f"note: {path}: random weights in what the imported model lacks: "
                     f"{', '.join(families.HEADS[head] for head in trained.fresh)}")
  config = override(trained.config, overrides)
  phase_index = _find_phase(trained, config)
  check_same_model(trained.config, config, phase_index, MASKING if not trained.step else ())
  keep_masked_share(trained.config, config, phase_index)
  check_text_is_read(trained.config, config)
  if (config.tokenizer.path == trained.config.tokenizer.path and not config.data.corpus
      and _other_text(trained.config, config)):
    # A newly trained one would differ, and the one that the run began with may be gone.
    config.tokenizer.path = str(path / "tokenizer")
  if config.mesh == trained.config.mesh:
    fit_mesh(config, jax.device_count())
  checked = config.copy_and_resolve_references()  # The batches of the training are not made here.
  checked.phases = tuple(p.copy_and_resolve_references() for p in config.phases)
  for p in checked.phases:
    p.update(batch_size=config.eval.batch_size, micro_batches=1, mixture="")
  checked.data.corpora, checked.eval.corpora = "", False
  config_lib.validate(checked, jax.device_count(), jax.default_backend())
  held_out = open_held_out(path, trained, config)
  mesh = sharding.make_mesh(config)
  evaluator = evaluate.Evaluator(make_setup(config, mesh, held_out.vocabulary), held_out)
  params = jax.device_put(trained.params, sharding.shard_state(
      trained.params, trained.params, mesh, config, models.axes_of(config)))
  weights = f"step {trained.step}" if trained.step else "imported weights"
  num_rows = loader.count_eval_rows(held_out, config, phase_index)
  cluster.say_once(f"note: {weights}, {num_rows:,} rows of {config.phases[phase_index].seq_len} "
                   f"tokens from {len(held_out):,} held-out documents, computed in "
                   f"{config.model.dtype}")
  if choices.OBJECTIVES[config.objective.name].counts_bytes and not held_out.has_much_unknown:
    cluster.say_once("note: bits_per_byte is "
                     f"{lost.describe_lost(held_out.tokenizer, is_prepared=True)}")
  return evaluate.evaluate_corpus(evaluator, params, phase_index) or {}  # It is never None.


def fit_mesh(config: ConfigDict, num_devices: int) -> None:
  """Replaces the mesh of the training if the devices are too few or too many for it.

  The parameters of a run that sharded them are sharded over as many devices as possible, because
  they may not fit into one.

  Args:
    config: config of the evaluation; changed in place.
    num_devices: number of devices.
  """
  mesh = config.mesh
  sharded = mesh.fsdp * mesh.tensor
  if num_devices % sharded == 0 and mesh.data in (-1, num_devices // sharded):
    return
  former = f"mesh.data={mesh.data}, mesh.fsdp={mesh.fsdp}, mesh.tensor={mesh.tensor}"
  mesh.update(data=-1, tensor=1,
              fsdp=math.gcd(num_devices, config.model.width) if sharded > 1 else 1)
  cluster.say_once(f"note: the mesh of the training ({former}) does not fit the devices here "
                   f"({num_devices}). Using mesh.fsdp={mesh.fsdp} and the rest for mesh.data")


def open_held_out(path: pathlib.Path, trained: trained_lib.Trained, config: ConfigDict) -> Corpus:
  """Opens the validation split, and notes if the training may have used it.

  Args:
    path: workdir of the run.
    trained: the model of the run.
    config: config of the evaluation.
  Raises:
    ConfigError: the corpus was made with another tokenizer.
    DataError: the corpus is damaged.
  """
  resumes = config.data.language == trained.config.data.language
  identity = trained.corpus_identity if corpora.is_same_text(trained.config, config) else ""
  held_out = open_corpus(corpora.find_corpus(config, resumes=resumes, identity=identity,
                                             workdir=path), "validation")
  cluster.say_once(describe_unknown(held_out.manifest))
  if held_out.tokenizer.fingerprint() != trained.tokenizer.fingerprint():
    remedy = ("Leave data.corpus out and name its data.source, which is then prepared with the "
              "tokenizer of the run" if config.data.corpus else
              f"Add --config.tokenizer.path={path}/tokenizer")
    raise ConfigError(f"--workdir {path}: the corpus was prepared with another tokenizer. {remedy}")
  if held_out.identity != trained.corpus_identity:
    cluster.say_once(f"note: {held_out.path} is not the corpus of this run; the run may have been "
                     "trained on its documents")
  return held_out


def _find_phase(trained: trained_lib.Trained, config: ConfigDict) -> int:
  """Returns the index of the phase whose rows and masks a checkpoint is evaluated with."""
  last_step = config_lib.total_steps(config)
  step = trained.step if trained.step and config.eval.rows_by == "length" else last_step
  return config_lib.find_phase(config, min(step, last_step) - 1)[0]


def check_text_is_read(trained: ConfigDict, config: ConfigDict) -> None:
  """Refuses fields that choose a text if `data.corpus` replaces them.

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


def keep_masked_share(trained: ConfigDict, config: ConfigDict, phase_index: int) -> None:
  """Gives rows of another length than the run's as large a share of predicted tokens at most.

  Args:
    trained: config of the run.
    config: config of the evaluation, which is changed.
    phase_index: index of the phase that is evaluated.
  """
  ours, theirs = config.phases[phase_index], trained.phases[phase_index]
  if theirs.max_predictions and ours.seq_len != theirs.seq_len:
    ours.max_predictions = max(1, round(theirs.max_predictions * ours.seq_len / theirs.seq_len))


def check_same_model(trained: ConfigDict, config: ConfigDict, phase_index: int,
                     unknown: Sequence[str] = ()) -> None:
  """Checks that a config evaluates the model of a run, with the objective of the run.

  The phase that is evaluated may have rows of another length.

  Args:
    trained: config of the run.
    config: config of the evaluation.
    phase_index: index of this phase.
    unknown: fields whose values in the training are not known.
  Raises:
    ConfigError: other fields outside `MAY_DIFFER` differ; the message has one line per field.
  """
  rows = f"phases[{phase_index}].seq_len"
  if lines := resuming.differences(trained, config, (*MAY_DIFFER, *unknown, rows)):
    raise ConfigError("\n".join(
        f"--config.{line}: evaluate scores the run as it was trained. Leave the field out"
        for line in lines))
