"""The state of a fine-tuning run that is not done, from which the next start continues.

    lr5e-05-seed0/unfinished/checkpoints/    steps, as in `runs.checkpoint`

The order of the batches and the dropout depend only on seed and step, so a run that was stopped and
continued has the same weights as one that was not, bit for bit on the same mesh.
"""

import hashlib
import json
import pathlib
from typing import Any

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError
from bertgpt.runs import checkpoint, manifest, workdir

FOLDER = "unfinished"
KEEP = 2  # Checkpoints that are kept: if the newest is damaged, the one before it is used.


def digest(identity: dict[str, Any], tokenizer: Tokenizer, config: ConfigDict) -> str:
  """Returns a SHA-256 (hex) of what the weights of all runs of a fine-tuning workdir depend on.

  Args:
    identity: result of `results.identify`.
    tokenizer: tokenizer of the runs, with the words that an ELMo has learned.
    config: fine-tuning config.
  """
  init = {name: value for name, value in identity["init"].items() if name != "workdir"}
  init["tokenizer"] = tokenizer.fingerprint()
  fields = {field: value for field, value in config_lib.leaves(config)
            if not any(field == name or field.startswith(f"{name}.")
                       for name in finetune_config.RESUMABLE)}
  content = json.dumps([init, identity["rows"], fields], sort_keys=True, default=list)
  return hashlib.sha256(content.encode()).hexdigest()


def check_states(path: pathlib.Path, fingerprint: str) -> None:
  """Checks that a state from which a run would continue is one of this fine-tuning.

  Args:
    path: fine-tuning workdir, whose config is the one of this start.
    fingerprint: result of `digest`.
  Raises:
    ConfigError: a run was stopped that began with other weights or rows; nothing is removed.
  """
  for folder in sorted(path.glob("lr*")):
    if _read_fingerprint(folder / FOLDER) not in (None, fingerprint):
      raise ConfigError(f"--workdir {path}: the run {folder.name}, which is not done, began with "
                        "another --init or task.data, or with another version. Give the same "
                        f"again, use another --workdir, or delete {folder} to repeat this run")


def clear(folder: pathlib.Path) -> None:
  """Makes the folder of a run that is about to start, and removes everything but its state.

  Args:
    folder: folder of the run, which an earlier start may have left.
  """
  if checkpoint.committed_steps(folder / FOLDER):
    workdir.remove_run(folder)
    files.remove_tree(folder / "predictions", tries=True)
  else:
    files.remove_tree(folder)
  folder.mkdir(exist_ok=True)


def _read_fingerprint(path: pathlib.Path) -> str | None:
  """Returns the fingerprint that the newest step was saved with; None without a step."""
  if not (steps := checkpoint.committed_steps(path)):
    return None
  return manifest.read_manifest(path / "checkpoints" / str(steps[-1]))["metadata"]["fingerprint"]


def open_saves(folder: pathlib.Path, config: ConfigDict) -> checkpoint.Checkpoints:
  """Returns the manager of a run's steps. All processes call it at the same time.

  Args:
    folder: folder of the run, which `clear` has made.
    config: fine-tuning config.
  Raises:
    StorageError: the folder cannot be written.
  """
  options = config.checkpoint
  return checkpoint.Checkpoints(folder / FOLDER, every_steps=options.every_steps,
                                every_minutes=options.every_minutes, keep=KEEP)


def remove(folder: pathlib.Path) -> None:
  """Removes the state of a run that is done.

  Args:
    folder: folder of the run.
  """
  files.remove_tree(folder / FOLDER, tries=True)
