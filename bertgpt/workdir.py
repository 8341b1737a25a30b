"""A run is a directory: what lies in it and how a run, or a reader, opens it.

    workdir/
      config.json        the resolved config
      tokenizer/         a copy of the tokenizer
      metrics.jsonl      every scalar, a line a step
      tensorboard/       the same as TensorBoard events
      checkpoints/       Orbax steps with manifests
      report.md, *.png   written at the end
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple


from bertgpt import checkpoint, models
from bertgpt import config as config_lib
from bertgpt.config import ConfigDict
from bertgpt.data import tokenizers
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.models import Module
from bertgpt.objectives import Vocabulary


def create(workdir: pathlib.Path) -> None:
  """Makes the directory and makes sure that files can be written in it."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / ".write-test"
    probe.write_bytes(b"")
    probe.unlink()
  except OSError as e:
    raise StorageError(f"--workdir {workdir}: cannot be written ({e.strerror})") from e


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The resolved config of a run. Nothing in the workdir is executed."""
  path = workdir / "config.json"
  if not path.is_file():
    raise ConfigError(f"--workdir {workdir}: holds no run (no config.json); "
                      "give the --workdir of a `bertgpt train`")
  return config_lib.from_json(path.read_text())


def check_unchanged(workdir: pathlib.Path, config: ConfigDict, allowed: Sequence[str]) -> None:
  """Refuses to go on with a run under another config.

  Args:
    config: of this start.
    allowed: fields that may differ, besides those that always may.
  Raises:
    ConfigError: one line for every field that differs.
  """
  if not (workdir / "config.json").exists():
    return
  # The vocabulary's size is resolved later, and the tokenizer's hash is checked then.
  allowed = (*allowed, "model.vocab_size")
  lines = config_lib.differences(read_config(workdir), config, allowed)
  if lines:
    raise ConfigError(f"--workdir {workdir} holds a run with another config:\n  "
                      + "\n  ".join(lines)
                      + "\nuse another --workdir, or name the fields with --allow_change=FIELD,FIELD")


def write_run(workdir: pathlib.Path, config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> None:
  """Writes config.json and the tokenizer, each whole or not at all."""
  scratch = workdir / "config.json.tmp"
  scratch.write_text(config_lib.to_json(config) + "\n")
  scratch.replace(workdir / "config.json")
  if not (workdir / "tokenizer").exists():
    tokenizer.save(workdir / "tokenizer.tmp")
    (workdir / "tokenizer.tmp").rename(workdir / "tokenizer")


def resolve(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> ConfigDict:
  """The config with what follows from the tokenizer filled in.

  Raises:
    ConfigError: the tokenizer lacks tokens that the objective needs.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
      raise ConfigError(f"model.vocab_size={config.model.vocab_size}, but the tokenizer has "
                        f"{tokenizer.vocab_size} tokens; leave model.vocab_size at 0")
    config.model.vocab_size = tokenizer.vocab_size
  needed = ("eod_id",) if config.objective.name == "causal" else ("cls_id", "sep_id", "mask_id")
  lacking = [name.removesuffix("_id") for name in needed if getattr(tokenizer, name) < 0]
  if lacking:
    raise ConfigError(f"objective.name={config.objective.name!r} needs a tokenizer with the special "
                      f"tokens {', '.join(lacking)}; this one ({tokenizer.kind}) has none")
  return config


def make_vocabulary(tokenizer: tokenizers.Tokenizer) -> Vocabulary:
  """What objectives need of a tokenizer. [UNK] stands for text, so it may be predicted."""
  ids = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.eod_id}
  return Vocabulary(tokenizer.vocab_size, tokenizer.mask_id, tuple(sorted(ids - {-1})),
                    tokenizer.continues_word())


class Trained(NamedTuple):
  """A trained model, ready for use.

  Attributes:
    params: float32 arrays, as in `TrainState.params`.
    step: of the checkpoint they come from.
  """

  config: ConfigDict
  model: Module
  params: dict[str, Any]
  tokenizer: tokenizers.Tokenizer
  step: int


def load_trained(workdir: pathlib.Path) -> Trained:
  """Opens the newest good checkpoint of a run.

  Raises:
    ConfigError: there is no run in `workdir`.
    DataError: no usable checkpoint, or a tokenizer that does not belong to it.
  """
  read_config(workdir)
  params, metadata = checkpoint.restore_params(workdir)
  config = config_lib.from_json(metadata["config"])
  tokenizer = tokenizers.load_tokenizer(str(workdir / "tokenizer"))
  if tokenizer.fingerprint() != metadata["tokenizer"]:
    raise DataError(f"{workdir / 'tokenizer'}: not the tokenizer of the checkpoint at step "
                    f"{metadata['step']}; restore the folder that the run was trained with")
  return Trained(config, models.make_model(config), params, tokenizer, metadata["step"])
