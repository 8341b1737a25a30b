"""A trained model, opened from the directory of its run."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bertgpt import config as config_lib
from bertgpt import console, models
from bertgpt.config import CHOICES, ConfigDict, choices, families, with_model_at
from bertgpt.config.stored import from_json
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import agreement, cluster
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.models import Module
from bertgpt.runs import checkpoint, manifest, step_folders
from bertgpt.runs import workdir as workdir_lib

UNTRAINED = "The position embeddings beyond that length are untrained"
SCORING_DTYPE = "float32"  # bfloat16 is off by up to 0.3 nats per token, which flips comparisons.


class Trained(NamedTuple):
  """A trained model, ready for use.

  Attributes:
    config: resolved config of the run; `model.dtype` is the dtype in which the model is used, which
      may differ from that of the training.
    model: model that the config describes; after fine-tuning, the model without the task's head.
    params: float32 arrays, as in `TrainState.params`; after fine-tuning, the parameters of a model
      from `models.heads`.
    tokenizer: tokenizer of the model.
    step: step of the checkpoint; 0 for an imported model.
    corpus_identity: identity of the pretraining corpus; '' if it is unknown.
    task: description of the fine-tuning run, written by `finetuning.train_run.save_weights`; None
      after pretraining.
    workdir: folder that the model was loaded from; None if there is none.
    fresh: heads with random weights, keys of `families.HEADS`: the model was imported without them.
    stored: config of the run as stored in its checkpoint; None: the model comes from no run.
    bos_id: token that an imported decoder expects before a text; -1: none.
    beginning_id: token that begins a document of an imported decoder; -1: the end of the one
      before does.
  """

  config: ConfigDict
  model: Module
  params: dict[str, Any]
  tokenizer: tokenizers.Tokenizer
  step: int
  corpus_identity: str
  task: dict[str, Any] | None = None
  workdir: pathlib.Path | None = None
  fresh: tuple[str, ...] = ()
  stored: ConfigDict | None = None
  bos_id: int = -1
  beginning_id: int = -1

  @property
  def start_id(self) -> int:
    """Token before the first token of a text, for a decoder; -1: there is none.

    Unless a token begins a text or a document, it is the end of another document.
    """
    return next((i for i in (self.bos_id, self.beginning_id) if i >= 0), self.tokenizer.eod_id)

  def can(self, ability: str) -> bool:
    """Returns whether the model has an ability, by its family or its objective.

    Args:
      ability: one of `families.ABILITIES`.
    """
    return (families.find(self.config).can(ability)
            or ability in choices.OBJECTIVES[self.config.objective.name].abilities)


def note_dtype(config: ConfigDict) -> None:
  """Prints on stderr which dtype a model computed in.

  Args:
    config: config of the model.
  """
  console.say(f"note: computed in {config.model.dtype}")


def longest_row(trained: Trained) -> int:
  """Returns the number of tokens of the longest rows that a model was trained on, up to its step.

  An imported model is assumed to be trained on all of its positions.
  """
  if not trained.step:
    return trained.config.model.max_positions
  step = min(trained.step, config_lib.total_steps(trained.config))
  last, _ = config_lib.find_phase(trained.config, step - 1)
  return max(phase.seq_len for phase in trained.config.phases[:last + 1])


def note_former_rows(trained: Trained, flag: str) -> None:
  """Prints a note on stderr if a default follows the rows of a run that continued another one.

  The rows of the run that `init_from` names may have been longer, and may not be known anymore.

  Args:
    trained: the model.
    flag: flag that replaces the default, with its largest value.
  """
  if trained.config.init_from and longest_row(trained) < trained.config.model.max_positions:
    console.say(f"note: the rows of this training have at most {longest_row(trained)} tokens, but "
                f"those of init_from={trained.config.init_from} may have been longer. {flag} uses "
                "all positions of the model")


def count_untrained(trained: Trained, rows: Sequence[Any]) -> int:
  """Returns how many rows have positions with a vector of their own that training never used.

  Args:
    trained: the model.
    rows: tokens of each row.
  """
  if "position" not in trained.params.get("embeddings", {}):
    return 0
  if trained.task or trained.config.init_from:  # The pretrained run may have had longer rows.
    return 0
  longest = longest_row(trained)
  return sum(len(row) > longest for row in rows)


def note_untrained(trained: Trained, count: int, num_rows: int) -> None:
  """Prints a note on stderr if rows are longer than those of the training.

  Args:
    trained: the model.
    count: result of `count_untrained`.
    num_rows: all rows.
  """
  if count:
    console.say(f"note: {describe_untrained(trained, count, num_rows)}")


def describe_untrained(trained: Trained, count: int, num_rows: int) -> str:
  """Returns a line about rows that are longer than those of the training.

  Args:
    trained, count, num_rows: see `note_untrained`.
  """
  return (f"{count} of {num_rows} texts have more tokens than the rows of the training "
          f"({longest_row(trained)}). {UNTRAINED}")


def require(trained: Trained, ability: str, purpose: str, advice: str) -> None:
  """Checks that the family of a model has an ability.

  Args:
    trained: model.
    ability: one of `families.ABILITIES`.
    purpose: verb phrase for the ability, such as 'continue a text'.
    advice: beginning of a sentence that says what to do instead.
  Raises:
    ConfigError: the family lacks the ability, or the model lacks the head that it needs.
  """
  if trained.can(ability):
    require_head(trained, ability)
    return
  raise unable(trained, [ability], f"cannot {purpose}", advice)


def unable(trained: Trained, abilities: Collection[str], what: str, advice: str) -> ConfigError:
  """Returns the error about a model that lacks abilities.

  Args:
    trained: model.
    abilities: a family with any of these is good enough.
    what: what follows the name of the family, such as 'cannot fill masks'.
    advice: what else to do.
  """
  place = "the model is" if trained.workdir is None else f"--workdir {trained.workdir}: holds"
  able = [family.title for family in families.FAMILIES.values() if any(map(family.can, abilities))]
  return ConfigError(f"{place} {families.find(trained.config).title}, which {what}. {advice}, or "
                     f"give the --workdir of {' or '.join(able)}")


def require_head(trained: Trained, ability: str) -> None:
  """Checks that a model has the trained head that an ability of its family needs.

  Args:
    trained: model.
    ability: one of `families.ABILITIES`.
  Raises:
    ConfigError: the head has random weights.
  """
  needed = families.HEADS_OF_ABILITY.get(ability, ())
  if head := next((head for head in needed if head in trained.fresh), ""):
    place = "the model" if trained.workdir is None else f"--workdir {trained.workdir}: its model"
    name = families.HEADS[head]
    raise ConfigError(f"{place} came without a {name}, and random weights give no useful answer. "
                      f"Give a model that has a {name}, or train this one further with `bertgpt "
                      "train`")


def load_trained(workdir: pathlib.Path, flag: str = "--workdir",
                 dtype: str = SCORING_DTYPE) -> Trained:
  """Opens the newest good checkpoint of a pretrained or imported run.

  Args:
    workdir: folder of the run.
    flag: flag that named the workdir, for messages.
    dtype: see `make_trained`.
  Raises:
    ConfigError: `workdir` holds no such run, or the dtype is unknown.
    DeviceError: the devices cannot be opened.
    DataError: no checkpoint is usable, or the tokenizer is not that of the checkpoint.
  """
  trained = load_any(workdir, flag, dtype)
  _refuse_tuned(workdir, flag, trained.task)
  return trained


def check_pretrained(workdir: pathlib.Path, flag: str = "--workdir") -> dict[str, Any]:
  """Returns the manifest of the newest checkpoint of a pretrained or imported run. Reads no arrays.

  Args:
    workdir: folder of the run.
    flag: flag that named the workdir, for messages.
  Raises:
    ConfigError: `workdir` holds no such run.
    DataError: no checkpoint is usable.
  """
  workdir_lib.read_config(workdir, flag)
  root = step_folders.checkpoints_path(workdir)
  steps = checkpoint.committed_steps(workdir)
  if not steps:
    raise step_folders.none_usable(root, step_folders.find_steps(root))
  newest = manifest.read_manifest(root / str(steps[-1]))
  _refuse_tuned(workdir, flag, newest["metadata"].get("task"))
  return newest


def _refuse_tuned(workdir: pathlib.Path, flag: str, task: Mapping[str, Any] | None) -> None:
  if task:
    raise ConfigError(f"{flag} {workdir}: holds a model fine-tuned on {task['name']}. Use it with "
                      "`bertgpt predict` or `bertgpt export`, or give the --workdir of a `bertgpt "
                      "train`")


def check_same_step(workdir: pathlib.Path, trained: Trained) -> None:
  """Checks that all processes have read the same checkpoint of a run, which may still be trained.

  Args:
    workdir: folder of the run.
    trained: what this process has read.
  Raises:
    StorageError: process 0 has read another one.
  """
  if (first := agreement.broadcast_text(str(trained.step))) != str(trained.step):
    raise StorageError(f"{workdir}: a checkpoint was saved while the newest one was read: process "
                       f"0 has step {first}, this one {trained.step}. Run the same command again")


def load_any(workdir: pathlib.Path, flag: str = "--workdir",
             dtype: str = SCORING_DTYPE) -> Trained:
  """Opens the newest good checkpoint of any run, including a fine-tuning run.

  Args:
    workdir: folder of the run.
    flag: flag that named the workdir, for messages.
    dtype: see `make_trained`.
  Raises:
    ConfigError: `workdir` holds no run, or the dtype is unknown.
    DeviceError: the devices cannot be opened.
    DataError: no checkpoint is usable, or the tokenizer is not that of the checkpoint.
  """
  workdir_lib.read_config(workdir, flag)
  cluster.count_devices()
  params, metadata = checkpoint.restore_params(workdir)
  config = from_json(metadata["config"])
  tokenizer = tokenizers.load_tokenizer(workdir / "tokenizer", is_saved=True)
  if tokenizer.fingerprint() != metadata["tokenizer"]:
    raise DataError(f"{workdir / 'tokenizer'}: not the tokenizer of the checkpoint at step "
                    f"{metadata['step']}. Restore the folder that the run was trained with")
  if config.model.norm == "pre" and "final_norm" not in params.get("body", params):
    raise DataError(f"{workdir}: version 0.1 trained this pre-norm model without a final norm, "
                    "which such models have now. Train it again, or use it with version 0.1")
  trained = make_trained(config, params, tokenizer, metadata["step"], metadata["corpus"],
                         metadata.get("task"), workdir, dtype)
  return trained._replace(fresh=tuple(metadata.get("fresh", ())),
                          bos_id=metadata.get("bos_id", -1),
                          beginning_id=metadata.get("beginning_id", -1))


def make_trained(config: ConfigDict, params: dict[str, Any], tokenizer: tokenizers.Tokenizer,
                 step: int, corpus_identity: str, task: dict[str, Any] | None = None,
                 workdir: pathlib.Path | None = None, dtype: str = SCORING_DTYPE) -> Trained:
  """Returns a trained model for use on any machine, with rows of any length.

  The model is that of the phase that its step belongs to. The attention kernel and the compiler
  options of the training are replaced by 'auto', and the dtype by one that is precise enough to
  compare scores.

  Args:
    config: resolved config of the training.
    params: float32 arrays, as in `TrainState.params`.
    tokenizer: tokenizer of the model.
    step: step that the parameters come from.
    corpus_identity: identity of the corpus.
    task: description of the fine-tuning run; None after pretraining.
    workdir: folder of the run; None if there is none.
    dtype: type of activations and matmuls, one of the choices of `model.dtype`; '': the one that
      the config names.
  Raises:
    ConfigError: the dtype is unknown.
  """
  if dtype not in ("", *(dtypes := CHOICES["model.dtype"])):
    raise ConfigError(f"--dtype {dtype}: no such dtype. Choose among {', '.join(dtypes)}")
  stored, config = config, with_model_at(config, step)
  if dtype:
    config.model.update(dtype=dtype, matmul="bf16")
  config.system.xla_options = "auto"
  if config.model.attention != "xla":
    config.model.attention = "auto"
  return Trained(config, models.make_model(config), params, tokenizer, step, corpus_identity, task,
                 workdir, stored=stored)
