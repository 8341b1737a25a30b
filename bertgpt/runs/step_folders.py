"""Folders of checkpoints: when a step counts as saved, on a disk and in a bucket.

|                | on a disk                           | in a bucket                         |
|----------------|-------------------------------------|-------------------------------------|
| Orbax writes   | into unfinished/STEP/               | into STEP/                          |
| a step is      | a folder with its number as name    | such a folder with a manifest.json  |
| it is complete | when it gets this name              | when its manifest is written, last  |
| it is deleted  | after a rename                      | beginning with the manifest         |
| unfinished     | everything in unfinished/           | a folder without a manifest         |

A bucket has no rename: a folder of 50 objects would be copied object by object. Only folders that
are set aside are moved, manifest last, so that a kill leaves them complete in one of the places.
"""

import errno
import itertools
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bertgpt import console, files
from bertgpt.errors import ConfigError, DataError, StorageError, one_line
from bertgpt.runs.manifest import MANIFEST, write_manifest

_UNUSABLE = re.compile(r"[\[\]*?\\]")


def checkpoints_path(workdir: os.PathLike | str) -> pathlib.Path:
  """Returns the folder of the checkpoints, absolute: Orbax fails late with a relative path."""
  return files.make_path(workdir) / "checkpoints"


def check_name(workdir: os.PathLike | str) -> None:
  """Checks that Orbax can write checkpoints below a folder.

  Orbax finds the files of each process with a glob pattern that includes this path, unescaped. If
  it finds no files, it only warns, and the checkpoint cannot be read. TensorStore treats a
  backslash as a slash.

  Args:
    workdir: folder of the run, which need not exist.
  Raises:
    ConfigError: its absolute path has one of the characters [ ] * ? \\.
  """
  path = files.make_path(workdir)
  if found := _UNUSABLE.search(os.fspath(path)):
    raise ConfigError(f"{path}: no checkpoint can be saved in a folder whose path has a {found[0]} "
                      "in it. Rename the folder, or give another one")


def find_steps(root: pathlib.Path) -> list[int]:
  """Returns the steps of all directories that are named like a step, ascending.

  Args:
    root: folder of the checkpoints, which may be absent. On a disk, empty folders are left out; in
      a bucket, those without a manifest.
  """
  paths = named_like_steps(root)
  are_saved = files.in_parallel(is_saved, paths) if files.is_remote(root) else map(is_saved, paths)
  return [int(path.name) for path, is_one in zip(paths, are_saved, strict=True) if is_one]


def find_newest(root: pathlib.Path) -> int | None:
  """Returns the last of `find_steps`, with few requests; None: there is none.

  Args:
    root: folder of the checkpoints, which may be absent.
  """
  newest_first = reversed(named_like_steps(root))
  return next((int(path.name) for path in newest_first if is_saved(path)), None)


def is_saved(path: pathlib.Path) -> bool:
  """Returns whether a folder that is named like a step is complete: see the table above."""
  if files.is_remote(path):
    return (path / MANIFEST).is_file()
  try:
    return path.is_dir() and any(path.iterdir())
  except FileNotFoundError:  # The run has deleted it meanwhile.
    return False


def named_like_steps(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns all folders that are named like a step, complete or not, by ascending step.

  Args:
    root: folder of the checkpoints, which may be absent.
  """
  paths = root.iterdir() if root.is_dir() else ()
  return sorted((p for p in paths if p.name.isdecimal() and str(int(p.name)) == p.name),
                key=lambda path: int(path.name))


def clean(root: pathlib.Path) -> None:
  """Deletes the remains of interrupted saves, and makes the folder; for the holder of the lock.

  Args:
    root: folder of the checkpoints.
  Raises:
    OSError: it cannot be written.
  """
  if files.is_remote(root):
    for path in named_like_steps(root):
      if not (path / MANIFEST).is_file():
        path.remove_tree()  # type: ignore[attr-defined]
    return
  unfinished = root / "unfinished"
  while True:
    # Renamed first: after a failed save, writers in this process may still be adding files.
    if unfinished.is_dir():
      unfinished.rename(root / f"discarded-{secrets.token_hex(4)}")
    for discarded in root.glob("discarded-*"):  # A full disk may have no room for a folder before.
      shutil.rmtree(discarded, ignore_errors=True)
    try:
      unfinished.mkdir(parents=True)
      return
    except FileExistsError:  # Such a writer has made the folder again, or a file is there.
      if not unfinished.is_dir():
        raise


def none_usable(root: pathlib.Path, damaged: Sequence[int]) -> DataError:
  """Returns the error for checkpoints that are all damaged, or absent.

  Args:
    root: their folder.
    damaged: damaged steps that were not set aside.
  """
  found = [*(f"{step} is damaged" for step in damaged),
           *sorted(p.name for p in root.glob("damaged-*"))]
  if not found:
    return DataError(f"{root}: no checkpoint was saved yet. Wait for the first one, or restore one "
                     "from a backup")
  return DataError(f"{root}: no usable checkpoint ({', '.join(found)}). Restore one from a backup, "
                   f"use another --workdir, or delete {root.parent} to start over")


def find_place(root: pathlib.Path, step: int) -> pathlib.Path:
  """Returns the folder that Orbax writes a step to.

  Args:
    root: folder of the checkpoints.
    step: the step.
  """
  return root / str(step) if files.is_remote(root) else root / "unfinished" / str(step)


def check_lock(root: pathlib.Path) -> None:
  """Checks that no other process has taken over the lock of a run; see `files.check_lock`.

  Args:
    root: folder of its checkpoints. The lock is in the workdir, which may be several levels above,
      as that of a fine-tuning is.
  Raises:
    StorageError: another process has.
  """
  for folder in root.parents:
    files.check_lock(folder / ".lock")


def publish(root: pathlib.Path, step: int, content: Mapping[str, Any],
            hashes: Mapping[str, str], before: Callable[[], None] = lambda: None) -> None:
  """Turns the files that Orbax has written into a step.

  Args:
    root: folder of the checkpoints.
    step: the step.
    content: content of the manifest, see `write_manifest`.
    hashes: SHA-256 of files by name, perhaps not of all.
    before: called just before a manifest in a bucket is written.
  Raises:
    OSError: a file cannot be read or written.
    StorageError: another process has taken over the lock of the run.
  """
  place, path = find_place(root, step), root / str(step)
  if files.is_remote(root):
    before()
    write_manifest(place, dict(content), hashes, before=lambda: check_lock(root))
    return
  # Orbax synchronizes its arrays only, not its other files, and older steps are deleted soon.
  for written in (place, *place.rglob("*")):
    files.sync(written)
  write_manifest(place, dict(content), hashes)
  if os.path.lexists(path):
    set_aside(path, "is not a checkpoint, but has the name of one")
  check_lock(root)
  place.rename(path)
  files.sync(root)


def save_failed(root: pathlib.Path, step: int, error: Exception) -> StorageError:
  """Returns the error for a failed save, with the reason of the system if it gives one.

  Args:
    root: folder of the checkpoints.
    step: the step.
    error: what was raised.
  """
  code = re.search(r"os_error_code='(\d+)'", str(error))  # From TensorStore, in a long message.
  reason = os.strerror(int(code[1])) if code else one_line(error)
  remedy = ("Raise the limit of open files (ulimit -n)" if os.strerror(errno.EMFILE) in reason
            else "Check the storage")
  return StorageError(f"{root}: the checkpoint at step {step} could not be saved ({reason}). "
                      f"Earlier checkpoints are unchanged. {remedy}, then resume the run")


def delete(root: pathlib.Path, step: int) -> None:
  """Deletes a step; a failure costs a line, because newer steps are complete.

  Args:
    root: folder of the checkpoints.
    step: the step.
  """
  path = root / str(step)
  try:
    if files.is_remote(root):
      path.remove_tree()  # type: ignore[attr-defined]
    else:
      # Moved first: a partly deleted directory must not look like a damaged step. What another
      # program keeps open on NFS stays, and is deleted by `clean`.
      shutil.rmtree(path.rename(root / "unfinished" / f"deleted-{step}"), ignore_errors=True)
  except OSError as e:
    console.say(f"WARNING: {path} could not be deleted ({one_line(e)}). The next save tries again")


def rename_aside(path: pathlib.Path, prefix: str) -> pathlib.Path:
  """Renames a folder to PREFIX-NAME-N, with the first free number, and returns the new path.

  Args:
    path: folder of a step.
    prefix: 'damaged' or 'rolled-back'.
  Raises:
    OSError: it cannot be renamed.
  """
  is_there = (lambda p: p.exists()) if files.is_remote(path) else os.path.lexists
  target = next(target for n in itertools.count()
                if not is_there(target := path.with_name(f"{prefix}-{path.name}-{n}")))
  path.rename(target)
  return target


def set_aside(path: pathlib.Path, reason: str) -> None:
  """Renames a directory, or a file, that must not be mistaken for a step.

  Args:
    path: the directory.
    reason: what is wrong with it, as the end of a sentence.
  Raises:
    StorageError: it cannot be renamed.
  """
  try:
    target = rename_aside(path, "damaged")
  except OSError as e:
    raise StorageError(f"{path} {reason}, and cannot be renamed ({e.strerror})") from e
  console.say(f"WARNING: {path} {reason}. It is set aside as {target.name}")
