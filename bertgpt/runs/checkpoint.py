"""Checkpoints: written by Orbax, proved by a manifest, restored onto any mesh.

    workdir/checkpoints/
      120/                a step: it has this name only when everything in it is written
        params/ rest/     Orbax items, readable with Orbax alone: parameters, all else
        manifest.json     files, sizes and SHA-256; leaves and their fingerprints; metadata
      unfinished/         where Orbax writes; emptied at every start
      damaged-110-0/      set aside: did not match its manifest

Orbax does not hash array data, lists steps whose save failed, and takes any directory with a
number for a name for a step. Here a step is what has a manifest that matches it.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bertgpt import files
from bertgpt.errors import DataError, StorageError, one_line
from bertgpt.runs.fingerprint import sum_leaves
from bertgpt.trees import named_leaves, nest

MANIFEST = "manifest.json"
ITEMS = ("params", "rest")
CLOCK_STEPS = 10  # With several processes a look at the clock is a broadcast: one in so many steps.
BARRIER_SECONDS = 1200  # The time Orbax allows for a save.
NO_STEP = -1


class Damaged(Exception):
  """A step does not match its manifest. Does not leave this module."""


class Checkpoints:
  """The checkpoints of the run that trains in a workdir.

  With several processes, all call `due`, `save` and `restore_latest` at the same steps. After
  a StorageError only `close` may be called.
  """

  def __init__(self, workdir: os.PathLike | str, *, every_steps: int, every_minutes: float,
               keep: int):
    """Opens the directory and deletes what an interrupted save left behind.

    Args:
      every_steps: `due` at multiples of it; 0: off.
      every_minutes: `due` when so much time has passed since the last save; 0: off.
      keep: newest good steps that are kept, at least 1.
    Raises:
      StorageError: the directory cannot be written.
    """
    self._root = _checkpoints_path(workdir)
    self._unfinished = self._root / "unfinished"
    self._every_steps, self._every_seconds, self._keep = every_steps, every_minutes * 60, keep
    try:
      if jax.process_index() == 0:
        if self._unfinished.exists():
          shutil.rmtree(self._unfinished)
        self._unfinished.mkdir(parents=True)
    except OSError as e:
      raise StorageError(f"{self._root}: cannot be written ({e.strerror})") from e
    self._writer = _make_writer()
    self._barrier = ocp.multihost.get_barrier_sync_fn()
    self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending: tuple[int, concurrent.futures.Future] | None = None
    self._last_save = time.monotonic()

  def due(self, step: int) -> bool:
    """Whether to save at this step; the same on every process, by the clock of process 0.

    Raises:
      StorageError: the save before has failed.
    """
    if self._pending and self._pending[1].done():
      self._join()
    if self._every_steps and step % self._every_steps == 0:
      return True
    if not self._every_seconds:
      return False
    is_late = time.monotonic() - self._last_save >= self._every_seconds
    if jax.process_count() == 1:
      return is_late
    return step % CLOCK_STEPS == 0 and bool(multihost_utils.broadcast_one_to_all(is_late))

  def save(self, step: int, state: Any, metadata: Mapping[str, Any], *, wait: bool = False) -> None:
    """Saves in the background; the state may be donated as soon as this returns.

    Args:
      state: pytree of jax arrays.
      metadata: JSON values.
      wait: return only when the step is safe, on every process.
    Raises:
      StorageError: this save (with `wait`), or the one before, has failed.
      DataError: there is a later checkpoint, which would win over this one.
    """
    self._join()
    newest = max(_find_steps(self._root), default=NO_STEP)
    if step <= newest:
      raise DataError(f"{self._root}: step {step} cannot be saved, for step {newest} is there "
                      "already; go on from that one, or use another --workdir")
    leaves = named_leaves(state)
    sums = sum_leaves(list(leaves.values()))  # Runs before whatever overwrites the state.
    # Nested dicts: what Orbax sees does not depend on our classes.
    items = {item: ocp.args.PyTreeSave(nest(part)) for item, part in _split(leaves).items()}
    try:
      self._writer.save(self._unfinished / str(step), args=ocp.args.Composite(**items))
    except Exception as e:
      raise _save_failed(self._root, step, e) from e
    types = {name: _type(leaf) for name, leaf in leaves.items()}
    self._pending = step, self._worker.submit(self._publish, step, types, sums, dict(metadata))
    self._last_save = time.monotonic()
    if wait:
      self._join()

  def _publish(self, step: int, types: dict[str, str], sums: jax.Array, metadata: dict) -> None:
    """Waits for Orbax; then process 0 adds the manifest and gives the step its name."""
    self._writer.wait_until_finished()
    if jax.process_index() == 0:
      leaves = zip(types.items(), np.asarray(sums).tolist(), strict=True)
      _write_manifest(self._unfinished / str(step), {
          "step": step, "metadata": metadata,
          "leaves": {name: [kind, value] for (name, kind), value in leaves}})
      if os.path.lexists(self._root / str(step)):
        _set_aside(self._root / str(step), "is no checkpoint, but has the name of one")
      (self._unfinished / str(step)).rename(self._root / str(step))
      for old in committed_steps(self._root.parent)[:-self._keep]:
        # Moved first: a directory half deleted must not look like a damaged step.
        shutil.rmtree((self._root / str(old)).rename(self._unfinished / f"deleted-{old}"))
    self._barrier(key=f"bertgpt_checkpoint_{step}", timeout_ms=BARRIER_SECONDS * 1000)

  def _join(self) -> None:
    """Waits for the save that is under way and raises its failure."""
    if self._pending is None:
      return
    (step, future), self._pending = self._pending, None
    try:
      future.result()
    except Exception as e:
      raise _save_failed(self._root, step, e) from e

  def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest good step, placed as `abstract_state` says; None if no step was ever saved.

    Damaged steps are set aside, and the one before is used.

    Args:
      abstract_state: pytree of jax.ShapeDtypeStruct with shardings.
    Returns:
      The state, bit for bit as it was saved, and its metadata.
    Raises:
      DataError: there are steps but none is good, or the state has another structure,
        shape or dtype.
    """
    while (step := self._agree_on_step()) != NO_STEP:
      path = self._root / str(step)
      try:
        manifest = _read_manifest(path)
        state = _restore(path, manifest["leaves"], named_leaves(abstract_state))
        return jax.tree.structure(abstract_state).unflatten(state), manifest["metadata"]
      except Damaged as e:
        if jax.process_index() == 0:
          _set_aside(path, f"is damaged: {e}")
    if any(self._root.glob("damaged-*")):
      raise _none_usable(self._root)
    return None

  def _agree_on_step(self) -> int:
    """The newest step whose files are good, or NO_STEP. Process 0 looks for all."""
    step = next(self._good_steps(), NO_STEP) if jax.process_index() == 0 else NO_STEP
    if jax.process_count() > 1:
      step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return step

  def _good_steps(self) -> Iterator[int]:
    for step in reversed(_find_steps(self._root)):
      try:
        _check_files(self._root / str(step), ITEMS)
        yield step
      except Damaged as e:
        _set_aside(self._root / str(step), f"is damaged: {e}")

  def close(self) -> None:
    """Waits for the save that is under way.

    Raises:
      StorageError: it has failed.
    """
    try:
      self._join()
    finally:
      self._worker.shutdown()
      self._writer.close()


def restore_params(workdir: os.PathLike | str, abstract_params: Any = None
                   ) -> tuple[Any, dict[str, Any]]:
  """The parameters of the newest good step; nothing else is read, and nothing is changed.

  Args:
    abstract_params: pytree of jax.ShapeDtypeStruct with shardings; None: nested dicts of
      NumPy arrays, whatever was saved.
  Returns:
    The parameters, bit for bit as they were saved, and the step's metadata.
  Raises:
    DataError: no good step, or parameters of another structure, shape or dtype.
  """
  root = _checkpoints_path(workdir)
  for step in reversed(_find_steps(root)):
    path = root / str(step)
    try:
      manifest = _check_files(path, ("params",))
      saved = _split(manifest["leaves"])["params"]
      if abstract_params is None:
        params = _restore(path, saved, dict.fromkeys(saved))
        return nest(dict(zip(saved, params, strict=True)))["params"], manifest["metadata"]
      params = _restore(path, saved, named_leaves({"params": abstract_params}))
      return jax.tree.structure(abstract_params).unflatten(params), manifest["metadata"]
    except Damaged as e:
      print(f"WARNING: {path} is damaged: {e}; the one before is used", file=sys.stderr, flush=True)
  raise _none_usable(root)


def committed_steps(workdir: os.PathLike | str) -> list[int]:
  """Steps whose manifest is whole and names just the files that are there, in order.

  File contents are compared by the restoring functions only.
  """
  root = _checkpoints_path(workdir)
  steps = []
  for step in _find_steps(root):
    with contextlib.suppress(Damaged):
      _read_manifest(root / str(step))
      steps.append(step)
  return steps


# -------------------------------------------------------------- leaves


def _split(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Leaves by Orbax item: parameters have files of their own."""
  parts: dict[str, dict[str, Any]] = {}
  for name, leaf in leaves.items():
    parts.setdefault("params" if name.startswith("params/") else "rest", {})[name] = leaf
  return parts


def _type(leaf: Any) -> str:
  """Dtype and shape, as in 'float32[2,3]'."""
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


# -------------------------------------------------------------- Orbax


def _make_writer() -> ocp.AsyncCheckpointer:
  """Orbax without its CheckpointManager.

  The manager keeps a process whose save has failed waiting for the others (20 minutes), asks
  jax.distributed late and from a thread about the step of the save, which sets back the step
  count that preemption is agreed on, and its steps are not ours.
  """
  # Orbax raises its errors, and logs each with hundreds of lines too.
  logging.getLogger("absl").addFilter(
      lambda r: r.levelno < logging.ERROR or "/orbax/checkpoint/" not in r.pathname)
  # Weights hardly shrink, and zstd would take the cores from the training for seconds.
  handlers = {item: ocp.PyTreeCheckpointHandler(use_compression=False) for item in ITEMS}
  # Where the directory cannot be made in the background, Orbax's writers wait 5 minutes for it.
  options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers), async_options=options)


def _restore(path: pathlib.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Any]:
  """Reads leaves and compares their fingerprints with the saved ones.

  Args:
    saved: (type, fingerprint) by name, from the manifest.
    wanted: jax.ShapeDtypeStruct with sharding, or None for a NumPy array, by name.
  Returns:
    Leaves in the order of `wanted`.
  Raises:
    DataError: names the first leaf that is missing, unknown, or of another type.
    Damaged: a leaf is not what was saved.
  """
  types = {name: saved[name][0] if leaf is None else _type(leaf) for name, leaf in wanted.items()}
  for name in sorted(saved.keys() | wanted.keys()):
    there, here = saved.get(name, ["nothing"])[0], types.get(name, "nothing")
    if there != here:  # Orbax would cast to another dtype silently.
      raise DataError(f"{path}: at {name} the checkpoint has {there}, but the model and optimizer "
                      f"of this config have {here}; use that run's config, or another --workdir")
  restored = {}
  with ocp.PyTreeCheckpointer() as reader:
    for item, part in _split(wanted).items():
      args = {name: ocp.RestoreArgs(restore_type=np.ndarray) if x is None else
              ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
              for name, x in part.items()}
      restored |= named_leaves(reader.restore(path / item, args=ocp.args.PyTreeRestore(
          item=nest(dict.fromkeys(part, 0)), restore_args=nest(args))))
  leaves = [restored[name] for name in wanted]
  for name, value in zip(wanted, np.asarray(sum_leaves(leaves)).tolist(), strict=True):
    if value != saved[name][1]:
      raise Damaged(f"{name} is not what was saved")
  return leaves


# -------------------------------------------------------------- files


def _checkpoints_path(workdir: os.PathLike | str) -> pathlib.Path:
  return pathlib.Path(os.path.abspath(workdir)) / "checkpoints"


def _find_steps(root: pathlib.Path) -> list[int]:
  """Directories with the name of a step and something in them, good or not, in order."""
  paths = root.iterdir() if root.is_dir() else ()
  return sorted(int(p.name) for p in paths if p.name.isdecimal() and str(int(p.name)) == p.name
                and p.is_dir() and any(p.iterdir()))


def _list_files(path: pathlib.Path) -> dict[str, int]:
  """Sizes in bytes, by path relative to the step; without the manifest."""
  files = (p for p in sorted(path.rglob("*")) if p.is_symlink() or not p.is_dir())
  return {name: p.lstat().st_size for p in files if (name := str(p.relative_to(path))) != MANIFEST}


def _hash_files(path: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
  """SHA-256 by name; several files at a time."""

  def hash_file(name: str) -> tuple[str, str]:
    with open(path / name, "rb") as f:
      return name, hashlib.file_digest(f, "sha256").hexdigest()

  with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return dict(pool.map(hash_file, names))


def _encode(content: Mapping[str, Any]) -> str:
  """The manifest as text, with its own SHA-256."""
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps({"content": content, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def _write_manifest(path: pathlib.Path, content: dict[str, Any]) -> None:
  sizes = _list_files(path)
  hashes = _hash_files(path, sizes)
  files.write_atomically(path / MANIFEST, _encode(
      content | {"files": {name: [sizes[name], hashes[name]] for name in sizes}}))


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
  """The manifest of a step, compared with names and sizes of its files, not their contents.

  Raises:
    Damaged: says how they differ.
  """
  try:
    text = (path / MANIFEST).read_text()
    content = files.parse_json(text)["content"]
    if text != _encode(content) or str(content["step"]) != path.name:
      raise ValueError
    listed, found = content["files"], _list_files(path)
  except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
    raise Damaged(f"{MANIFEST} is missing or not as it was written") from None
  for name in sorted(listed.keys() | found.keys()):
    size = listed[name][0] if name in listed else "no"
    if found.get(name, "no") != size:
      raise Damaged(f"{name} has {found.get(name, 'no')} bytes instead of {size}")
  return content


def _check_files(path: pathlib.Path, items: Iterable[str]) -> dict[str, Any]:
  """The manifest of a step; all files are as it says, but contents of other items are not read.

  Raises:
    Damaged: names the file.
    StorageError: a file cannot be read, for a reason that is no damage.
  """
  skipped = tuple(f"{item}/" for item in ITEMS if item not in items)
  try:
    manifest = _read_manifest(path)
    names = [name for name in manifest["files"] if not name.startswith(skipped)]
    hashes = _hash_files(path, names)
  except OSError as e:
    if e.errno in (errno.EIO, errno.ENOENT):
      raise Damaged(f"{e.filename} cannot be read ({e.strerror})") from e
    raise StorageError(f"{e.filename}: cannot be read ({e.strerror})") from e
  for name in names:
    if hashes[name] != manifest["files"][name][1]:
      raise Damaged(f"{name} has other contents than were written")
  return manifest


def _set_aside(path: pathlib.Path, reason: str) -> None:
  """Renames what must not be taken for a step."""
  target = next(target for n in itertools.count()
                if not os.path.lexists(target := path.with_name(f"damaged-{path.name}-{n}")))
  try:
    path.rename(target)
  except OSError as e:
    raise StorageError(f"{path} {reason}, and cannot be renamed ({e.strerror})") from e
  print(f"WARNING: {path} {reason}; it is set aside as {target.name}", file=sys.stderr, flush=True)


def _none_usable(root: pathlib.Path) -> DataError:
  names = ", ".join(sorted(p.name for p in root.glob("damaged-*"))) or "none was saved"
  return DataError(f"{root}: no usable checkpoint ({names}); bring one back from a copy, use "
                   "another --workdir, or delete this directory to start over")


def _save_failed(root: pathlib.Path, step: int, error: Exception) -> StorageError:
  code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, deep in a long text.
  reason = os.strerror(int(code[1])) if code else one_line(error)
  return StorageError(f"{root}: the checkpoint at step {step} could not be saved ({reason}); "
                      "those before it are as they were")
