"""Comparison of what all processes have of a state: its copies on their devices, and its files.

A copy that differs, because a device gives wrong results or a process runs another program, would
otherwise go unnoticed: every step and every save would succeed, and the training would be lost. And
a process that alone finds a checkpoint damaged must not set it aside.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

from bertgpt.devices import agreement
from bertgpt.errors import PeerError
from bertgpt.runs.manifest import Damaged, check_files

T = TypeVar("T")
SHOWN = 3  # Leaves that the message names.


def check(step: int, names: Sequence[str], sums: jax.Array, room: str) -> None:
  """Checks that all copies of a state are the same. All processes call it, perhaps in a thread.

  Args:
    step: steps done.
    names: N paths of the leaves.
    sums: uint32 [N], result of `fingerprint.sum_leaves`; every device has computed it from its own
      copy of a replicated leaf.
    room: name of this comparison, the same in all processes and used once.
  Raises:
    PeerError: copies differ; raised in every process.
  """
  copies = {str(shard.device): np.asarray(shard.data) for shard in sums.addressable_shards}
  first, *others = copies
  mine = {name: int(value) for name, value in zip(names, copies[first], strict=True)}
  lines = [f"{names[i]}: differs between {first} and {device}"
           for device in others for i in np.flatnonzero(copies[device] != copies[first]).tolist()]
  # Every process tells the others, and none of them saves the state.
  lines = agreement.find_differences(mine | {"devices of one process": lines}, room) or lines
  if lines:
    shown = "; ".join(lines[:SHOWN]) + ("; ..." if len(lines) > SHOWN else "")
    raise PeerError(
        f"step {step}: the copies of the state are not equal ({shown}). A device gives wrong "
        "results, or the processes run different programs. Nothing was saved. Start all of them "
        "again to resume from the last checkpoint, on other hosts if it happens again")


def check_hashes(path: pathlib.Path, items: Iterable[str], hashes: Mapping[str, str]) -> None:
  """Compares the files of a step with its manifest, by the hashes of all processes; in process 0.

  Args:
    path: folder of the step.
    items: see `manifest.check_files`.
    hashes: name of a file -> the SHA-256 that a process has computed of it.
  Raises:
    Damaged: this process finds the step damaged.
    PeerError: only another process does.
  """
  try:
    check_files(path, items, hashes)
  except Damaged as e:
    check_files(path, items)  # Reads all files here.
    raise PeerError(
        f"{path}: {e}, as another process reads it; process 0 finds it good. That host has a wrong "
        "copy of the file, or its memory is faulty. Nothing was set aside. Start all of them "
        "again, on other hosts if it happens again") from e


def read_alike(room: str, path: pathlib.Path, function: Callable[..., T], *arguments: object) -> T:
  """Returns the result of a function that reads a checkpoint. All processes call it.

  Args:
    room: name of this comparison, the same in all processes and used once.
    path: folder of the checkpoint.
    function: may raise Damaged.
    *arguments: its arguments.
  Raises:
    Damaged: it is damaged in all processes.
    PeerError: only some processes have found damage; raised in every process.
  """
  damage, result = None, None
  try:
    result = function(*arguments)
  except Damaged as e:
    damage = e
  # Hosts may have the same folder at different paths.
  lines = agreement.find_differences({f"step {path.name}": "damaged" if damage else "good"}, room)
  if lines:
    reason = f" ({damage})" if damage else ""
    raise PeerError(
        f"{path.parent}: {lines[0]}{reason}. A host does not see the files of the others, or a "
        "device gives wrong results. Nothing was set aside. Start all of them again, on other "
        "hosts if it happens again")
  if damage:
    raise damage
  return result  # type: ignore[return-value]
