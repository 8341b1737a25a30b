"""A run as a directory: its files, and how a run or a reader opens it.

    workdir/
      config.json        resolved config
      tokenizer/         copy of the tokenizer
      metrics.jsonl      all scalars, one line per logged step
      history.jsonl      its start, its first checkpoint, and what `bertgpt rollback` did
      events.jsonl       what the time was spent on, and how each start ended
      tensorboard/       the same curves as TensorBoard events
      skipped.jsonl      steps that were not applied, if there are any
      profile/           traces, with profile.steps
      logs/              what each process wrote to stderr, if there are several
      run_id             ID of the run in trackers, if it has any
      checkpoints/       Orbax steps with manifests
      report.*, *.png    written at the end
"""

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax

from bertgpt import console, files
from bertgpt.config import ConfigDict, resuming, unread
from bertgpt.config.stored import from_json, to_json
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import agreement, barrier
from bertgpt.errors import ConfigError, StorageError
from bertgpt.runs import checkpoint, folder_kinds, step_folders

# Names of the points at which all processes meet.
POINT, AS_ONE = "the lock of the workdir", "the workdir as one folder"
SHARED = ".shared"  # File by which the other processes know the folder of process 0.
LOST_HOST_S, LOCK_RETRY_S = 120.0, 1.0  # Linux' NFS server releases a lost host's locks after 90 s.
SHARED_SECONDS = 30.0  # A listing asks the server of NFS at once; the rest is for slow disks.
ID_FILE = "run_id"


@contextlib.contextmanager
def make_and_lock(workdir: pathlib.Path, is_first: bool) -> Iterator[None]:
  """Makes a workdir, checks that it can be written, and keeps other runs out inside the context.

  An error before `write_run` leaves no trace: directories that were made here are removed again.

  Args:
    workdir: folder of the run, which may exist.
    is_first: whether this is process 0, which holds the lock for all processes of the run.
  Raises:
    ConfigError: `workdir` is a file, is used by another run, or has a name that is not UTF-8 or
      that `step_folders.check_name` refuses.
    StorageError: `workdir` cannot be written.
  """
  files.require_utf8(workdir)
  step_folders.check_name(workdir)
  if not is_first:
    barrier.wait_for_all(POINT)  # Process 0 makes the workdir, so that it can also remove it.
    create(workdir)
    check_shared(workdir, agreement.broadcast_text(""))
    barrier.wait_for_all(AS_ONE)
    yield
    return
  made = [] if files.is_remote(workdir) else [
      path for path in (workdir, *workdir.parents) if not path.exists()]
  create(workdir)
  try:
    with lock(workdir), mark_shared(workdir) as key:
      barrier.wait_for_all(POINT)
      for name in ("config.json", "metrics.jsonl", "report.md", "tokenizer"):
        files.remove_leftovers(workdir, name)
      try:
        agreement.broadcast_text(key)
        barrier.wait_for_all(AS_ONE)
        yield
      except BaseException:
        # In a bucket, there are no folders, and the lock is deleted by its holder.
        if not files.is_remote(workdir) and not folder_kinds.is_run(workdir):
          (workdir / ".lock").unlink(missing_ok=True)
          with contextlib.suppress(OSError):
            (workdir / "checkpoints" / "unfinished").rmdir()
            (workdir / "checkpoints").rmdir()
        raise
  except BaseException:
    with contextlib.suppress(OSError):  # Directories with files in them stay.
      for path in made:
        path.rmdir()
    raise


@contextlib.contextmanager
def mark_shared(workdir: pathlib.Path) -> Iterator[str]:
  """Writes a key by which other processes know the workdir inside the context; see `check_shared`.

  Args:
    workdir: folder of the run, which exists.
  Yields:
    The key; '' if no other process looks for it.
  Raises:
    StorageError: it cannot be written.
  """
  if jax.process_count() == 1 or files.is_remote(workdir):
    yield ""
    return
  key, path = secrets.token_hex(8), workdir / SHARED
  try:
    try:
      path.unlink(missing_ok=True)  # That of a killed start may be another user's.
      path.write_text(key)
    except OSError as e:  # The error of a full disk does not name the file.
      raise StorageError(f"{path}: cannot be written ({e.strerror}). {_remedy(e)}") from e
    yield key
  finally:
    path.unlink(missing_ok=True)


def check_shared(workdir: pathlib.Path, key: str) -> None:
  """Checks that a workdir is the folder of process 0, not one of the same name on another disk.

  Otherwise all processes would train until the first save, and then wait for each other's files.

  Args:
    workdir: folder of the run on this host.
    key: result of `mark_shared` in process 0.
  Raises:
    ConfigError: it is another folder.
  """
  end = time.monotonic() + SHARED_SECONDS
  while key:
    os.listdir(workdir)  # A client of NFS then asks the server which files there are.
    with contextlib.suppress(OSError):
      if (workdir / SHARED).read_text() == key:
        return
    if time.monotonic() > end:
      raise ConfigError(f"--workdir {workdir}: is not the folder of process 0, but another one of "
                        "this name. Put it on storage that all hosts share")
    time.sleep(0.2)


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of a workdir inside the context. A killed process loses the lock too.

  If a machine is lost, the server of a shared disk releases its locks later. So a lock of another
  machine is waited for, even if that machine has the same name.

  Args:
    workdir: folder of the run, which exists.
  Raises:
    ConfigError: another run is using it.
    StorageError: a run of another host still has the lock after `LOST_HOST_S`.
  """
  path, deadline = workdir / ".lock", time.monotonic() + LOST_HOST_S

  def refuse(holder: files.Holder) -> None:
    if files.is_remote(workdir) or holder.is_here:
      raise ConfigError(f"--workdir {workdir} is in use by {holder}. Wait for it, stop it, or use "
                        "another --workdir")
    if time.monotonic() < deadline:
      raise _HeldElsewhere(holder)
    raise StorageError(f"--workdir {workdir} is in use by {holder}. Wait for it, or stop it. If "
                       f"that host is gone, delete {path}")

  with contextlib.ExitStack() as stack:
    is_noted = False
    while True:
      try:
        stack.enter_context(files.lock(path, refuse))
        break
      except _HeldElsewhere as e:
        if not is_noted:
          console.say(f"note: --workdir {workdir} is in use by {e}. Waiting for up to "
                      f"{LOST_HOST_S:g} s, in case that host is gone")
        is_noted = True
        time.sleep(LOCK_RETRY_S)
    yield


class _HeldElsewhere(Exception):
  """A lock that a process on another host has; the message names the process."""


def create(workdir: pathlib.Path) -> None:
  """Makes a workdir and checks that files can be written in it.

  Raises:
    ConfigError: see `refuse_file`.
    StorageError: `workdir` cannot be written.
  """
  if files.is_remote(workdir):
    return  # A bucket needs no folder, and the lock shows whether it can be written.
  folder_kinds.refuse_file(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:
      file.write(b"x")  # A full disk may have room for a name.
  except OSError as e:
    files.refuse_dangling(workdir, f"--workdir {workdir}")
    raise StorageError(f"--workdir {workdir}: cannot be written ({e.strerror}). {_remedy(e)}"
                       ) from e


def _remedy(e: OSError) -> str:
  """Returns what to do about a workdir that cannot be written."""
  is_full = e.errno in (errno.ENOSPC, errno.EDQUOT)
  return "Free the disk" if is_full else "Give a folder that you may write to"


def read_config(workdir: pathlib.Path, flag: str = "--workdir") -> ConfigDict:
  """Returns the resolved config of a run. Nothing in the workdir is executed.

  Args:
    workdir: folder of the run.
    flag: flag that named the workdir, for messages.
  Raises:
    ConfigError: `workdir` holds no run, or is a fine-tuning workdir, or its config.json is damaged.
  """
  path = workdir / "config.json"
  if not path.is_file():
    raise ConfigError(folder_kinds.describe_missing(
        workdir, flag, "Give the --workdir of a `bertgpt train`"))
  try:
    return from_json(path.read_bytes())
  except ConfigError as e:
    if folder_kinds.is_tuning(path):
      raise ConfigError(f"{flag} {workdir}: is a fine-tuning workdir. Use it with `bertgpt "
                        "predict`, `export` or `verify`, or give the --workdir of a `bertgpt train`"
                        ) from e
    if folder_kinds.is_of_transformers(path):
      raise ConfigError(folder_kinds.TRANSFORMERS.format(flag=flag, path=workdir)) from e
    raise ConfigError("\n".join(f"{workdir}/{line}" for line in str(e).splitlines())
                      + ". Restore the file from a backup, or use another --workdir") from e


def check_unchanged(workdir: pathlib.Path, config: ConfigDict, allowed: Sequence[str]) -> None:
  """Checks that a run is resumed with the config it was started with.

  Args:
    workdir: folder of the run; without a run in it, see `folder_kinds.check_unused`.
    config: config of this start.
    allowed: fields that may differ, in addition to those that always may.
  Raises:
    ConfigError: fields differ, one line per field, or config.json is missing.
  """
  if not folder_kinds.is_run(workdir):
    # In a bucket, a folder without a manifest would be deleted as the remains of a save.
    if checkpoint.committed_steps(workdir) or (
        files.is_remote(workdir)
        and step_folders.named_like_steps(step_folders.checkpoints_path(workdir))):
      raise ConfigError(f"--workdir {workdir}: holds checkpoints, but no config.json. Restore the "
                        "file from a backup, or use another --workdir")
    folder_kinds.check_unused(workdir)
    return
  if folder_kinds.is_in_tuning(workdir):
    raise ConfigError(f"--workdir {workdir}: holds the weights of a fine-tuning run. Name another "
                      "folder")
  if lines := find_changes(workdir, config, allowed):
    raise ConfigError(f"--workdir {workdir} holds a run with another config:\n  "
                      + "\n  ".join(lines)
                      + "\nUse another --workdir, or name the fields with "
                      "--allow_change=FIELD,FIELD")


def find_changes(workdir: pathlib.Path, config: ConfigDict, allowed: Sequence[str] = ()
                 ) -> list[str]:
  """Returns lines about the fields in which a config differs from that of a run.

  Args:
    workdir: folder of the run.
    config: config of a start.
    allowed: fields that may differ, in addition to those that always may.
  """
  # The size of the vocabulary is resolved later, and the hash of the tokenizer is compared then.
  allowed = (*allowed, "model.vocab_size", *unread.unset_fields(config))
  return resuming.differences(read_config(workdir), config, allowed)


def write_run(workdir: pathlib.Path, config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> None:
  """Makes a folder a run: writes the tokenizer and config.json, each completely or not at all.

  Args:
    workdir: folder of the run.
    config: resolved config.
    tokenizer: tokenizer of the model.
  Raises:
    OSError: a file cannot be written.
  """
  target = workdir / "tokenizer"
  if not (target.exists() and folder_kinds.is_run(workdir)):
    if not files.is_remote(target):
      shutil.rmtree(target, ignore_errors=True)  # Left by a start that was killed here.
    with files.publish_when_done(target) as scratch:
      tokenizer.save(scratch)
  # config.json comes last, because it makes the folder a run.
  files.write_atomically(workdir / "config.json", to_json(config) + "\n")


def forget_id(workdir: pathlib.Path) -> None:
  """Removes the ID of a run: trackers do not accept points before the last one they have."""
  (workdir / ID_FILE).unlink(missing_ok=True)


def remove_run(workdir: pathlib.Path) -> None:
  """Deletes config.json, checkpoints and tokenizer of a run; its curves and other files stay."""
  (workdir / "config.json").unlink(missing_ok=True)
  for name in ("checkpoints", "tokenizer"):
    files.remove_tree(workdir / name, tries=True)
