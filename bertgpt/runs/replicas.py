"""Comparison of the copies of a state on all devices of all processes, before it is saved.

A copy that differs, because a device gives wrong results or a process runs another program, would
otherwise go unnoticed: every step and every save would succeed, and the training would be lost.
"""

from collections.abc import Sequence

import jax
import numpy as np

from bertgpt.devices import agreement
from bertgpt.errors import PeerError

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
