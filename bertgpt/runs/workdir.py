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
import fcntl
import itertools
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from bertgpt import models
from bertgpt.config import ConfigDict, recipes
from bertgpt.config import finetuning as finetune_config
from bertgpt.data.corpus import prepare
from bertgpt.data.corpus.corpus import is_corpus
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import process
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.models import Module
from bertgpt.runs import checkpoint
from bertgpt.training.objectives import Vocabulary

PREPARE_TIMEOUT_S = 48 * 3600  # How long the others wait for process 0 to prepare a corpus.
_searches = itertools.count()


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
    StorageError: the workdir cannot be written.
  """
  try:
    file = (workdir / ".lock").open("a+")
  except OSError as e:
    raise StorageError(f"--workdir {workdir}: cannot be written ({e.strerror})") from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise ConfigError(f"--workdir {workdir} is in use by {file.read().strip() or 'another run'}; "
                        "wait for it, stop it, or use another --workdir") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
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


def find_corpus(config: ConfigDict) -> pathlib.Path:
  """The prepared corpus of a config. Process 0 prepares what is missing, the others wait.

  Only process 0 reads the source: the others learn from it where to look.

  Raises:
    DataError: the corpus is not where this process can read it.
  """
  if jax.process_count() == 1:
    return prepare.ensure_prepared(config)
  is_first = jax.process_index() == 0
  path = prepare.ensure_prepared(config) if is_first else pathlib.Path()
  # No collective of the devices: these give up long before a large corpus is prepared.
  multihost.get_barrier_sync_fn()(key=f"bertgpt_corpus_{next(_searches)}",
                                  timeout_ms=PREPARE_TIMEOUT_S * 1000)
  name = np.zeros(256, np.uint8)
  name[:len(path.name)] = np.frombuffer(path.name.encode(), np.uint8)
  name = bytes(multihost_utils.broadcast_one_to_all(name)).rstrip(b"\0").decode()
  if not is_first:
    path = pathlib.Path(config.data.corpus or f"{config.data.cache_dir}/{name}").expanduser()
    if not is_corpus(path):
      raise DataError(f"{path}: process 0 has prepared this corpus, but it is not here; put "
                      "data.cache_dir on storage that all hosts share")
  return path.absolute()


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
    return recipes.from_json(path.read_text("utf-8"))
  except (ConfigError, UnicodeDecodeError) as e:
    if is_tuning(path):
      raise ConfigError(f"{flag} {workdir}: is a fine-tuning; its runs are the folders in it, and "
                        "only `bertgpt export` reads those") from e
    lines = str(e) if isinstance(e, ConfigError) else f"config.json is no text ({e.reason})"
    raise ConfigError("\n".join(f"{workdir}/{line}" for line in lines.splitlines())
                      + "; bring the file back from a copy, or use another --workdir") from e


def is_tuning(config_path: pathlib.Path) -> bool:
  """Whether a config.json is that of a fine-tuning."""
  try:
    recipes.from_json(config_path.read_text("utf-8"), finetune_config.base)
  except (ConfigError, UnicodeDecodeError):
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
  allowed = (*allowed, "model.vocab_size")
  lines = recipes.differences(read_config(workdir), config, allowed)
  if lines:
    raise ConfigError(f"--workdir {workdir} holds a run with another config:\n  "
                      + "\n  ".join(lines)
                      + "\nuse another --workdir, or name the fields with "
                      "--allow_change=FIELD,FIELD")


def write_run(workdir: pathlib.Path, config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> None:
  """Writes config.json and the tokenizer, each whole or not at all."""
  target, scratch = workdir / "tokenizer", workdir / "tokenizer.tmp"
  if not (target.exists() and (workdir / "config.json").exists()):
    for leftover in (target, scratch):  # Of a start that was killed here.
      shutil.rmtree(leftover, ignore_errors=True)
    tokenizer.save(scratch)
    scratch.rename(target)
  scratch = workdir / "config.json.tmp"
  scratch.write_text(recipes.to_json(config) + "\n")
  scratch.replace(workdir / "config.json")  # Last: from here on there is a run.


def is_run(workdir: pathlib.Path) -> bool:
  """Whether `write_run` has been there."""
  return (workdir / "config.json").is_file()


def remove_run(workdir: pathlib.Path) -> None:
  """Deletes what makes a folder a run, the weights too; its curves and other files stay."""
  (workdir / "config.json").unlink(missing_ok=True)
  for name in ("checkpoints", "tokenizer"):
    shutil.rmtree(workdir / name, ignore_errors=True)


def resolve(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> ConfigDict:
  """The config with what follows from the tokenizer filled in.

  Raises:
    ConfigError: the tokenizer lacks tokens that the objective needs, or is not the one that
      the config names.
  """
  path = config.tokenizer.path
  if (config.data.corpus and path
      and tokenizers.load_tokenizer(path).fingerprint() != tokenizer.fingerprint()):
    raise ConfigError(f"tokenizer.path={path} is not the tokenizer that "
                      f"data.corpus={config.data.corpus} was prepared with; leave tokenizer.path "
                      "empty, or leave data.corpus empty to prepare data.source anew")
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
      raise ConfigError(f"model.vocab_size={config.model.vocab_size}, but the tokenizer has "
                        f"{tokenizer.vocab_size} tokens; leave model.vocab_size at 0")
    config.model.vocab_size = tokenizer.vocab_size
  needed = ("eod_id",) if config.objective.name == "causal" else ("cls_id", "sep_id", "mask_id")
  lacking = [name.removesuffix("_id") for name in needed if getattr(tokenizer, name) < 0]
  if lacking:
    raise ConfigError(f"objective.name={config.objective.name!r} needs a tokenizer with the "
                      f"special tokens {', '.join(lacking)}; this one ({tokenizer.kind}) has none. "
                      "Set tokenizer.path to another, or train one")
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


def window(trained: Trained) -> int:
  """Tokens of the longest rows that the model knows: of its training, or all if it was imported."""
  longest = max(phase.seq_len for phase in trained.config.phases)
  return longest if trained.step else trained.config.model.max_positions


def require_family(trained: Trained, workdir: pathlib.Path, family: str, purpose: str) -> None:
  """Refuses a model that is made for something else.

  Args:
    purpose: what the other family cannot do, and what to do instead.
  Raises:
    ConfigError: the model is of the other family.
  """
  found = trained.config.model.family
  if found != family:
    raise ConfigError(f"--workdir {workdir}: holds a {found.upper()}, which cannot {purpose}, or "
                      f"give the --workdir of a {family.upper()}")


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
  read_config(workdir, flag)
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
