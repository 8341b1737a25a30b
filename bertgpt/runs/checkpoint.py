"""Checkpoints: written by Orbax, verified with a manifest, restored onto any mesh.

    workdir/checkpoints/
      120/                a step; it gets this name when all of it has been written
        params/ rest/     Orbax items, readable with Orbax alone: parameters, everything else
        manifest.json     files, sizes and SHA-256; leaves and their fingerprints; metadata
      unfinished/         Orbax writes here; emptied at every start, through discarded-*/
      damaged-110-0/      set aside, because it did not match its manifest

In a bucket, a step is complete when it has its manifest: see `step_folders`.

Orbax does not hash array data, lists steps whose save failed, and treats any directory with a
numeric name as a step. Here, a step is a directory that matches its manifest.
"""

import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bertgpt import console, files
from bertgpt.devices import agreement, gather, watchdog
from bertgpt.errors import DataError, PeerError, StorageError, one_line
from bertgpt.runs import orbax_setup, replicas, retention, shares, step_folders
from bertgpt.runs.fingerprint import sum_leaves
from bertgpt.runs.manifest import ITEMS, MERGED, Damaged, check_files, format_type, read_manifest
from bertgpt.runs.step_folders import checkpoints_path, find_steps, set_aside
from bertgpt.trees import named_leaves, nest, rename_fields

CLOCK_STEPS = 10  # Several processes ask each other for the time every 10 steps.
# Time for all processes to complete a save: their files are read again, perhaps terabytes.
BARRIER_SECONDS = 6 * 3600
NO_STEP = -1  # Stands for "no step".
# Field of a state -> its name in checkpoints, if it is another one: earlier checkpoints have it.
SAVED_NAMES = {"spike_guard": "window"}
_numbers = itertools.count()  # For names of what all processes do, in one order.


class OtherStateError(DataError):
  """The state in a checkpoint has another structure, shape or dtype than the one that is wanted."""


class Checkpoints:
  """Checkpoints of the run that trains in a workdir.

  With several processes, all of them call `is_due`, `save` and `restore_latest` at the same steps.
  After a StorageError, only `close` may be called.

  Attributes:
    last_step: step that this object saved or restored last; NO_STEP: none.
  """

  def __init__(self, workdir: os.PathLike | str, *, every_steps: int, every_minutes: float,
               keep: int, keep_every_steps: int = 0, keep_best: str = "",
               on_save: Callable[[int], None] = lambda step: None):
    """Opens the directory and deletes the remains of an interrupted save.

    Args:
      workdir: folder of the run.
      every_steps: a save is due every N steps; 0: off.
      every_minutes: a save is due N minutes after the last one; 0: off.
      keep: number of newest good steps that are kept, at least 1.
      keep_every_steps: a save is due every N steps, which is kept permanently, even if a later
        start has another N; 0: none.
      keep_best: held-out metric whose best checkpoint is kept; '': none.
      on_save: called in process 0 with the step of every checkpoint that is complete.
    Raises:
      ConfigError: see `step_folders.check_name`.
      StorageError: the directory cannot be written.
    """
    step_folders.check_name(workdir)
    self._root = checkpoints_path(workdir)
    self._every_steps, self._every_seconds, self._keep = every_steps, every_minutes * 60, keep
    self._keep_every, self._on_save, self._number = keep_every_steps, on_save, next(_numbers)
    try:
      if jax.process_index() == 0:
        step_folders.clean(self._root)
    except OSError as e:
      files.refuse_dangling(self._root, str(self._root))
      raise StorageError(f"{self._root}: cannot be written ({e.strerror})") from e
    self._best = retention.Best(self._root, keep_best)
    self._writer = orbax_setup.make_writer(ITEMS)
    self._barrier = ocp.multihost.get_barrier_sync_fn()
    self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending: tuple[int, concurrent.futures.Future] | None = None
    self._last_save, self.last_step = time.monotonic(), NO_STEP
    self._is_late: jax.Array | None = None  # The answer of all processes, since the last save.

  def is_due(self, step: int) -> bool:
    """Returns whether to save at this step, the same in every process.

    Of several processes, any clock counts. Their answer is used CLOCK_STEPS steps after they were
    asked, so that no process waits for it; such saves are at least twice as many steps apart.

    Args:
      step: number of steps done.
    Raises:
      StorageError: the last save failed.
    """
    if self._pending and self._pending[1].done():
      self._join()
    if any(every and step % every == 0 for every in (self._every_steps, self._keep_every)):
      return True
    if not self._every_seconds:
      return False
    is_late = time.monotonic() - self._last_save >= self._every_seconds
    if jax.process_count() == 1:
      return is_late
    if step % CLOCK_STEPS:
      return False
    answer, self._is_late = self._is_late, gather.start_any(is_late)
    return answer is not None and bool(answer)

  def save(self, step: int, state: Any, metadata: Mapping[str, Any], *, wait: bool = False) -> None:
    """Saves in the background; the state may be donated as soon as this returns.

    Args:
      step: number of steps done.
      state: pytree of jax arrays.
      metadata: JSON values, from `make_metadata`.
      wait: whether to return only when the step is complete in every process.
    Raises:
      StorageError: the last save failed, or with `wait` this one, or the lock was lost.
      PeerError: copies of the last saved state differ between devices, or with `wait` of this one.
      DataError: there is a later checkpoint, which would be restored instead of this one.
    """
    self._join()
    step_folders.check_lock(self._root)  # Its new holder may have saved later steps.
    newest = step_folders.find_newest(self._root)
    if newest is not None and step <= newest:
      raise DataError(f"{self._root}: step {step} cannot be saved, because step {newest} exists "
                      "already. Resume from that step, or use another --workdir")
    leaves = rename_fields(named_leaves(state), SAVED_NAMES)
    sums = sum_leaves(list(leaves.values()))  # Runs before anything that overwrites the state.
    # With nested dicts, the files do not depend on the classes of this package.
    items = {item: ocp.args.PyTreeSave(nest(part)) for item, part in _split(leaves).items()}
    try:
      self._writer.save(os.fspath(step_folders.find_place(self._root, step)),
                        args=ocp.args.Composite(**items))
    except jax.errors.JaxRuntimeError:
      raise  # Caused by a device or a lost process, not by the storage.
    except Exception as e:
      raise step_folders.save_failed(self._root, step, e) from e
    types = {name: format_type(leaf) for name, leaf in leaves.items()}
    self._pending = step, self._worker.submit(self._publish, step, types, sums, dict(metadata))
    self._last_save, self.last_step, self._is_late = time.monotonic(), step, None
    if wait:
      self._join()

  def keep_if_best(self, step: int, results: Mapping[str, float], conditions: Mapping[str, Any],
                   state: Any, metadata: Mapping[str, Any]) -> None:
    """Keeps, and if needed saves, the checkpoint of a step if its evaluation is the best so far.

    Args:
      step: number of steps done, at which the state was evaluated.
      results: held-out metric -> value.
      conditions: JSON values; only results under equal conditions are compared.
      state: pytree of jax arrays.
      metadata: JSON values, from `make_metadata`.
    Raises:
      StorageError: it cannot be saved.
    """
    value = results.get(self._best.metric)
    if value is None or not self._best.is_beaten_by(value, conditions):
      return
    if self.last_step != step:
      self.save(step, state, metadata)
    self._best.replace(step, value, conditions)
    if self._pending:  # A kill before the checkpoint is complete must not lose the previous best.
      pending, future = self._pending
      self._pending = pending, self._worker.submit(self._record_best, future)
    elif jax.process_index() == 0:
      self._best.record()

  def _record_best(self, saved: concurrent.futures.Future) -> None:
    saved.result()
    if jax.process_index() == 0:
      self._best.record()

  def _publish(self, step: int, types: dict[str, str], sums: jax.Array, metadata: dict) -> None:
    """Waits for Orbax. Process 0 then adds the manifest and gives the step its name."""
    self._writer.wait_until_finished()
    replicas.check(step, list(types), sums, room := f"save/{self._number}/{step}")
    hashes = shares.hash_together(step_folders.find_place(self._root, step), f"{room}/files")
    if jax.process_index() == 0:
      self._check_merged(step, _split(types))
      leaves = zip(types.items(), np.asarray(sums).tolist(), strict=True)
      content = {"step": step, "metadata": metadata | {"step": step},
                 "leaves": {name: [kind, value] for (name, kind), value in leaves}}
      step_folders.publish(self._root, step, content, hashes, files.upload_all)
      self._on_save(step)
      self.delete_old()
    self._barrier(key=f"bertgpt_checkpoint_{step}", timeout_ms=BARRIER_SECONDS * 1000)
    agreement.forget(room)

  def delete_old(self) -> None:
    """Deletes, in process 0, the steps that are not kept, such as after `keep` was lowered.

    After `restore_latest`, this makes room on a full disk for the first save.
    """
    if jax.process_index() == 0:
      for old in retention.choose_old(_committed_manifests(self._root), self._keep,
                                      self._keep_every, self._best.record()):
        step_folders.delete(self._root, old)

  def _check_merged(self, step: int, items: Mapping[str, Any]) -> None:
    """Checks that Orbax has merged the files of all processes.

    If Orbax finds no files to merge, it only warns.

    Args:
      step: the step.
      items: the items of the step that have leaves.
    Raises:
      FileNotFoundError: the merged file of an item is missing.
    """
    place = step_folders.find_place(self._root, step)
    if missing := [name for name in items if not (place / name / MERGED).is_file()]:
      raise FileNotFoundError(f"Orbax has written no {missing[0]}/{MERGED}. Do all processes see "
                              "the same files?")

  def _join(self) -> None:
    """Waits for the current save, and raises its error."""
    if self._pending is None:
      return
    (step, future), self._pending = self._pending, None
    try:
      # Process 0, which renews its limit, tells the others if it ends.
      with watchdog.paused() if jax.process_index() else contextlib.nullcontext():
        future.result()
    except (jax.errors.JaxRuntimeError, PeerError):
      raise
    except Exception as e:
      raise step_folders.save_failed(self._root, step, e) from e

  def restore_latest(self, abstract_state: Any, adapt: Callable = lambda state, types: state
                     ) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest good step. Damaged steps are set aside.

    Args:
      abstract_state: pytree of jax.ShapeDtypeStruct with the shardings to restore to.
      adapt: adapt(abstract_state, types) returns the pytree to restore a step to; `types` are the
        dtypes and shapes of the step's leaves by name, such as 'float32[2,3]'.
    Returns:
      (state, bit for bit as it was saved; its metadata), or None if no step was ever saved.
    Raises:
      OtherStateError: the saved state has another structure, shape or dtype.
      DataError: there are steps but none is good.
      PeerError: only some of the processes find a step damaged; nothing is set aside.
    """
    while (step := self._agree_on_step()) != NO_STEP:
      path = self._root / str(step)
      try:
        manifest = replicas.read_alike(f"restore/{next(_numbers)}", path, read_manifest, path)
        fields = {name: field for field, name in SAVED_NAMES.items()}
        types = {name: x[0] for name, x in rename_fields(manifest["leaves"], fields).items()}
        wanted = adapt(abstract_state, types)
        state = replicas.read_alike(
            f"restore/{next(_numbers)}", path, _restore, path, manifest["leaves"],
            rename_fields(named_leaves(wanted), SAVED_NAMES))
        self._best = retention.Best(self._root, self._best.metric)  # It may have been set aside.
        self.last_step = step
        return jax.tree.unflatten(jax.tree.structure(wanted), state), manifest["metadata"]
      except Damaged as e:
        if jax.process_index() == 0:
          set_aside(path, f"is damaged: {e}")
    if any(self._root.glob("damaged-*")):
      raise step_folders.none_usable(self._root, [])
    return None

  def _agree_on_step(self) -> int:
    """Returns the newest step with good files, or NO_STEP; later steps are set aside."""
    checked = NO_STEP
    while True:
      newest = step_folders.find_newest(self._root) if jax.process_index() == 0 else None
      # Not by a collective: the others wait for any time. Process 0 tells them if it ends.
      with watchdog.paused() if jax.process_index() else contextlib.nullcontext():
        step = int(agreement.broadcast_text(str(NO_STEP if newest is None else newest)))
      if step in (checked, NO_STEP):  # It was not set aside.
        return step
      checked, path = step, self._root / str(step)
      try:
        replicas.read_alike(f"restore/{next(_numbers)}", path, read_manifest, path)
        hashes = shares.hash_together(path, f"restore/{next(_numbers)}")
        if jax.process_index() == 0:
          replicas.check_hashes(path, ITEMS, hashes)
      except Damaged as e:
        if jax.process_index() == 0:
          set_aside(path, f"is damaged: {e}")

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Closes, but does not wait for a save that a lost process cannot finish."""
    is_lost = isinstance(error, (jax.errors.JaxRuntimeError, PeerError))
    if is_lost and jax.process_count() > 1:
      self._worker.shutdown(wait=False)
    else:
      self.close()

  def close(self) -> None:
    """Waits for the current save.

    Raises:
      StorageError: the save failed.
    """
    try:
      self._join()
    finally:
      self._worker.shutdown()
      self._writer.close()


def restore_params(workdir: os.PathLike | str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Restores the parameters of the newest good step, without reading anything else of it.

  Nothing in the workdir is changed.

  Args:
    workdir: folder of the run.
  Returns:
    (parameters as nested dicts of NumPy arrays, bit for bit as they were saved; metadata of the
    step).
  Raises:
    DataError: no step is good.
  """
  root, tried = checkpoints_path(workdir), set[int]()
  # A run that is being trained replaces its steps meanwhile, so they are listed again.
  while steps := [step for step in find_steps(root) if step not in tried]:
    tried.add(steps[-1])
    path = root / str(steps[-1])
    try:
      manifest = check_files(path, ("params",))
      saved = _split(manifest["leaves"])["params"]
      params = _restore(path, saved, dict.fromkeys(saved))
      return nest(dict(zip(saved, params, strict=True)))["params"], manifest["metadata"]
    except Damaged as e:
      if path.is_dir():
        console.say(f"WARNING: {path} is damaged: {e}")
  damaged = [step for step in sorted(tried) if (root / str(step)).is_dir()]
  raise step_folders.none_usable(root, damaged)


def committed_steps(workdir: os.PathLike | str) -> list[int]:
  """Returns the steps with a valid manifest that names exactly the files of the step, ascending.

  Only the restoring functions compare the contents of files.

  Args:
    workdir: folder of the run, which may be absent.
  """
  return list(_committed_manifests(checkpoints_path(workdir)))


def _committed_manifests(root: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Returns step -> manifest of `committed_steps`; in a bucket, several are read at a time."""
  def read(step: int) -> dict[str, Any] | None:
    with contextlib.suppress(Damaged):
      return read_manifest(root / str(step))
    return None

  steps = find_steps(root)
  found = files.in_parallel(read, steps) if files.is_remote(root) else map(read, steps)
  return {step: each for step, each in zip(steps, found, strict=True) if each is not None}


def verify(path: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest of a step after comparing its files and all its arrays with it.

  Args:
    path: folder of the step.
  Raises:
    Damaged: they differ.
    StorageError: a file cannot be read for a reason other than damage.
  """
  manifest = check_files(path, ITEMS)
  saved = manifest["leaves"]
  for part in _split(saved).values():  # One after the other, to need less memory.
    _restore(path, part, dict.fromkeys(part))
  return manifest


# -------------------------------------------------------------- leaves


def _split(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns the leaves by Orbax item: parameters have their own files."""
  parts: dict[str, dict[str, Any]] = {}
  for name, leaf in leaves.items():
    parts.setdefault("params" if name.startswith("params/") else "rest", {})[name] = leaf
  return parts


# -------------------------------------------------------------- reading


def _restore(path: pathlib.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Any]:
  """Reads leaves and compares their fingerprints with the saved ones.

  Args:
    path: folder of the step.
    saved: (type, fingerprint) by name, from the manifest.
    wanted: jax.ShapeDtypeStruct with sharding, or None for a NumPy array, by name.
  Returns:
    Leaves in the order of `wanted`.
  Raises:
    OtherStateError: a leaf is missing, unknown, or of another type; the message names the first.
    Damaged: a leaf differs from the saved one.
    StorageError: it is in a bucket that does not answer.
  """
  types = {name: saved[name][0] if leaf is None else format_type(leaf)
           for name, leaf in wanted.items()}
  for name in sorted(saved.keys() | wanted.keys()):
    saved_type, wanted_type = saved.get(name, ["nothing"])[0], types.get(name, "nothing")
    if saved_type != wanted_type:  # Orbax would cast to another dtype silently.
      raise OtherStateError(f"{path}: at {name} the checkpoint has {saved_type}, but the model and "
                            f"optimizer of this config have {wanted_type}. Use the config of that "
                            "run, or another --workdir")
  restored = {}
  orbax_setup.limit_retries()
  with ocp.PyTreeCheckpointer() as reader:
    for item, part in _split(wanted).items():
      args = {name: ocp.RestoreArgs(restore_type=np.ndarray) if x is None else
              ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
              for name, x in part.items()}
      try:
        restored |= named_leaves(reader.restore(os.fspath(path / item), args=ocp.args.PyTreeRestore(
            item=nest(dict.fromkeys(part, 0)), restore_args=nest(args))))
      except (OSError, ValueError) as e:
        if not (path / files.MANIFEST).is_file():
          raise Damaged("it has been deleted meanwhile") from e
        if not files.is_remote(path):
          raise
        raise StorageError(f"{path}: cannot be read ({one_line(e)}). Run the same command again"
                           ) from e
  leaves = [restored[name] for name in wanted]
  for name, value in zip(wanted, np.asarray(sum_leaves(leaves)).tolist(), strict=True):
    if value != saved[name][1]:
      raise Damaged(f"{name} differs from the saved array")
  return leaves
