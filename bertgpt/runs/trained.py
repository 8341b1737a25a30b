"""A trained model, opened from its run's directory."""

import pathlib
from typing import Any, NamedTuple

from bertgpt import models
from bertgpt.config import ConfigDict, families, recipes
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import process
from bertgpt.errors import ConfigError, DataError
from bertgpt.models import Module
from bertgpt.runs import checkpoint
from bertgpt.runs import workdir as workdir_lib


class Trained(NamedTuple):
  """A trained model, ready for use.

  Attributes:
    params: float32 arrays, as in `TrainState.params`.
    step: of the checkpoint they come from.
    corpus: identity of the corpus it was trained on.
    task: what it was fine-tuned on, as `finetune.save` has it; None: it was not. Else `params` are
      those of a model of `models.heads`, and `model` is what it comes from.
  """

  config: ConfigDict
  model: Module
  params: dict[str, Any]
  tokenizer: tokenizers.Tokenizer
  step: int
  corpus: str
  task: dict[str, Any] | None = None

  def can(self, ability: str) -> bool:
    """Returns whether the model's family has an ability; see `families.CAPABILITIES`."""
    return families.find(self.config).can(ability)


def window(trained: Trained) -> int:
  """Tokens of the longest rows that the model knows: of its training, or all if it was imported."""
  longest = max(phase.seq_len for phase in trained.config.phases)
  return longest if trained.step else trained.config.model.max_positions


def require(trained: Trained, workdir: pathlib.Path, ability: str, purpose: str) -> None:
  """Refuses a model that is made for something else.

  Args:
    ability: what it must be able to do, one of `families.CAPABILITIES`.
    purpose: what that is, as a verb phrase, and what to do instead.
  Raises:
    ConfigError: its family cannot.
  """
  if not trained.can(ability):
    able = [name.upper() for name, family in families.FAMILIES.items() if family.can(ability)]
    raise ConfigError(f"--workdir {workdir}: holds a {trained.config.model.family.upper()}, which "
                      f"cannot {purpose}, or give the --workdir of a {' or '.join(able)}")


def load_trained(workdir: pathlib.Path, flag: str = "--workdir") -> Trained:
  """Opens the newest good checkpoint of a pretraining.

  Args:
    flag: that gave the workdir.
  Raises:
    ConfigError: there is none in `workdir`, or no device can be opened.
    DataError: no usable checkpoint, or a tokenizer that does not belong to it.
  """
  trained = load_checkpoint(workdir, flag)
  if trained.task:
    raise ConfigError(f"{flag} {workdir}: holds a model fine-tuned on {trained.task['name']}, "
                      "which only `bertgpt export` reads; give the --workdir of a `bertgpt train`")
  return trained


def load_checkpoint(workdir: pathlib.Path, flag: str = "--workdir") -> Trained:
  """As `load_trained`, also of a model that was fine-tuned."""
  workdir_lib.read_config(workdir, flag)
  process.count_devices()
  params, metadata = checkpoint.restore_params(workdir)
  config = recipes.from_json(metadata["config"])
  tokenizer = tokenizers.load_tokenizer(str(workdir / "tokenizer"))
  if tokenizer.fingerprint() != metadata["tokenizer"]:
    raise DataError(f"{workdir / 'tokenizer'}: not the tokenizer of the checkpoint at step "
                    f"{metadata['step']}; restore the folder that the run was trained with")
  # This machine need not be like the one of the training.
  config.system.xla_options = "auto"
  if config.model.attention != "xla":
    config.model.attention = "auto"
  return Trained(config, models.make_model(config), params, tokenizer, metadata["step"],
                 metadata["corpus"], metadata.get("task"))
