"""A run is a directory: what lies in it and how a run, or a reader, opens it.

    workdir/
      config.json        the resolved config
      tokenizer/         a copy of the tokenizer
      metrics.jsonl      every scalar, a line a step
      tensorboard/       the same as TensorBoard events
      checkpoints/       Orbax steps with manifests
      report.md, *.png   written at the end
"""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

from bertgpt import files
from bertgpt.config import ConfigDict, recipes, unread
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import tokenizers
from bertgpt.errors import ConfigError, StorageError
from bertgpt.runs import checkpoint


@contextlib.contextmanager
def claim(workdir: pathlib.Path, is_first: bool) -> Iterator[None]:
  """Makes the directory, checks that it can be written, and keeps other runs out of it.

  What fails before `write_run` leaves no trace: an empty directory is removed again.

  Args:
    is_first: whether this is process 0, which holds the lock for all.
  Raises:
    ConfigError: `workdir` is a file, or another run is in it.
    StorageError: it cannot be written.
  """
  made = [path for path in (workdir, *workdir.parents) if not path.exists()]
  create(workdir)
  if not is_first:
    yield
    return
  try:
    with lock(workdir):
      files.remove_leftovers(workdir)
      try:
        yield
      except BaseException:
        if not (workdir / "config.json").exists():
          (workdir / ".lock").unlink(missing_ok=True)
          with contextlib.suppress(OSError):
            (workdir / "checkpoints" / "unfinished").rmdir()
            (workdir / "checkpoints").rmdir()
        raise
  except BaseException:
    with contextlib.suppress(OSError):  # A directory that holds something stays.
      for path in made:
        path.rmdir()
    raise


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of a workdir. The lock ends with the process, however it ends.

  Raises:
    ConfigError: another run has it.
  """
  def refuse(holder: str) -> None:
    raise ConfigError(f"--workdir {workdir} is in use by {holder}; wait for it, stop it, or use "
                      "another --workdir")

  with files.lock(workdir / ".lock", refuse):
    yield


def create(workdir: pathlib.Path) -> None:
  """Makes the directory and makes sure that files can be written in it."""
  if workdir.exists() and not workdir.is_dir():
    raise ConfigError(f"--workdir {workdir}: is a file; give a folder")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as e:
    raise StorageError(f"--workdir {workdir}: cannot be written ({e.strerror}); give a folder "
                       "where you may write") from e


def read_config(workdir: pathlib.Path, flag: str = "--workdir") -> ConfigDict:
  """The resolved config of a run. Nothing in the workdir is executed.

  Args:
    flag: that gave the workdir.
  """
  path = workdir / "config.json"
  if not path.is_file():
    raise ConfigError(f"{flag} {workdir}: holds no run (no config.json); "
                      "give the --workdir of a `bertgpt train`")
  try:
    return recipes.from_json(path.read_bytes())
  except ConfigError as e:
    if is_tuning(path):
      raise ConfigError(f"{flag} {workdir}: is a fine-tuning; its runs are the folders in it, and "
                        "only `bertgpt export` reads those") from e
    raise ConfigError("\n".join(f"{workdir}/{line}" for line in str(e).splitlines())
                      + "; bring the file back from a copy, or use another --workdir") from e


def is_tuning(config_path: pathlib.Path) -> bool:
  """Whether a config.json is that of a fine-tuning."""
  try:
    recipes.from_json(config_path.read_bytes(), finetune_config.base)
  except ConfigError:
    return False
  return True


def check_unchanged(workdir: pathlib.Path, config: ConfigDict, allowed: Sequence[str]) -> None:
  """Refuses to go on with a run under another config.

  Args:
    config: of this start.
    allowed: fields that may differ, besides those that always may.
  Raises:
    ConfigError: one line for every field that differs.
  """
  if not (workdir / "config.json").exists():
    if checkpoint.committed_steps(workdir):
      raise ConfigError(f"--workdir {workdir}: holds checkpoints, but no config.json; bring the "
                        "file back from a copy, or use another --workdir")
    return
  # The vocabulary's size is resolved later, and the tokenizer's hash is checked then.
  allowed = (*allowed, "model.vocab_size", *unread.irrelevant_fields(config))
  lines = recipes.differences(read_config(workdir), config, allowed)
  if lines:
    raise ConfigError(f"--workdir {workdir} holds a run with another config:\n  "
                      + "\n  ".join(lines)
                      + "\nuse another --workdir, or name the fields with "
                      "--allow_change=FIELD,FIELD")


def write_run(workdir: pathlib.Path, config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> None:
  """Writes config.json and the tokenizer, each whole or not at all."""
  target = workdir / "tokenizer"
  if not (target.exists() and (workdir / "config.json").exists()):
    shutil.rmtree(target, ignore_errors=True)  # Of a start that was killed here.
    with files.publish_when_done(target) as scratch:
      tokenizer.save(scratch)
  # Last: from here on there is a run.
  files.write_atomically(workdir / "config.json", recipes.to_json(config) + "\n")


def is_run(workdir: pathlib.Path) -> bool:
  """Whether `write_run` has been there."""
  return (workdir / "config.json").is_file()


def remove_run(workdir: pathlib.Path) -> None:
  """Deletes what makes a folder a run, the weights too; its curves and other files stay."""
  (workdir / "config.json").unlink(missing_ok=True)
  for name in ("checkpoints", "tokenizer"):
    shutil.rmtree(workdir / name, ignore_errors=True)
