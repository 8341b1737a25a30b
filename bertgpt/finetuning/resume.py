"""The state of a fine-tuning run that is not done, from which the next start continues.

    lr5e-05-seed0/unfinished/checkpoints/    steps, as in `runs.checkpoint`

The order of the batches and the dropout depend only on seed and step, so a run that was stopped and
continued has the same weights as one that was not, bit for bit on the same mesh.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection
from typing import Any

from bertgpt import config as config_lib
from bertgpt import console, files
from bertgpt.config import ConfigDict
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.errors import ConfigError
from bertgpt.runs import checkpoint, manifest, workdir

FOLDER = "unfinished"
KEEP = 2  # Checkpoints that are kept: if the newest is damaged, the one before it is used.


def make_stamp(identity: dict[str, Any], tokenizer: Tokenizer, config: ConfigDict
               ) -> dict[str, Any]:
  """Returns what every step is saved with, to recognize states of the same fine-tuning.

  Args:
    identity: result of `results.identify`.
    tokenizer: tokenizer of the runs, with the words that an ELMo has learned.
    config: fine-tuning config.
  Returns:
    {"fingerprint": SHA-256 (hex) of everything that the weights of all runs depend on,
     "origin": {flag or field: what all runs get from it}}.
  """
  init = {name: value for name, value in identity["init"].items() if name != "workdir"}
  origin = {"--init": dict(init), "task.data": identity["rows"]["train"]}
  init["tokenizer"] = tokenizer.fingerprint()
  fields = {field: value for field, value in config_lib.leaves(config)
            if not any(field == name or field.startswith(f"{name}.")
                       for name in finetune_config.RESUMABLE)}
  content = json.dumps([init, identity["rows"], fields], sort_keys=True, default=list)
  return {"fingerprint": hashlib.sha256(content.encode()).hexdigest(), "origin": origin}


def check_states(path: pathlib.Path, stamp: dict[str, Any], done: Collection[str]) -> None:
  """Checks that no run was stopped that began with other weights or other training rows.

  The next start would remove the state of such a run. It also removes states that differ only in
  dev or test rows, or because of another version of this program; for these, `clear` prints a note.

  Args:
    path: fine-tuning workdir.
    stamp: result of `make_stamp`.
    done: names of the folders of completed runs, which need no state.
  Raises:
    ConfigError: there is such a run.
  """
  for folder in sorted(path.glob("lr*")):
    if folder.name in done:
      continue
    stored = _read_metadata(folder / FOLDER).get("origin", {})  # Earlier versions wrote none.
    for flag, value in stamp["origin"].items():
      if stored.get(flag, value) != value:  # Another --init may change the tokens of task.data.
        raise ConfigError(f"--workdir {path}: the run {folder.name}, which was stopped, began with "
                          f"another {flag}. Give that of the earlier start, or another --workdir, "
                          f"or delete {folder} to begin this run again")


def clear(folder: pathlib.Path, stamp: dict[str, Any]) -> None:
  """Makes the folder of a run that is about to start, and removes everything but its own state.

  Args:
    folder: folder of the run, which an earlier start may have left.
    stamp: result of `make_stamp`; a state with another fingerprint is removed, with a note.
  """
  stored = _read_metadata(folder / FOLDER)
  if stored.get("fingerprint") == stamp["fingerprint"]:
    workdir.remove_run(folder)
    files.remove_tree(folder / "predictions", tries=True)
  else:
    if stored:
      console.say(f"note: {folder}: this run starts over, because its checkpoint was made with "
                  "other dev or test rows, or by another version of bertgpt")
    files.remove_tree(folder)
  folder.mkdir(exist_ok=True)


def _read_metadata(path: pathlib.Path) -> dict[str, Any]:
  """Returns what was saved with the newest step; nothing without a step."""
  if not (steps := checkpoint.committed_steps(path)):
    return {}
  return manifest.read_manifest(path / "checkpoints" / str(steps[-1]))["metadata"]


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
