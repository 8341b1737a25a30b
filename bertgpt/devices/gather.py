"""What all processes, or their devices, hold or know."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bertgpt.devices import coordinator, watchdog

# A parameter is gathered in pieces of at most this many bytes, because every device holds a copy.
PIECE_BYTES = 2**28
POLL_S = 0.1  # Time between two looks at what the others have sent.


def to_host(x: jax.Array) -> np.ndarray:
  """Returns an array whose parts are on the devices of all processes, which all call this together.

  Args:
    x: any array.
  """
  return jax.device_get(x) if jax.process_count() == 1 else _join(*_gather(x))


def to_first_host(x: jax.Array) -> np.ndarray | None:
  """Returns in process 0 what `to_host` returns; None in the others, which hold one piece at most.

  Args:
    x: any array.
  """
  if jax.process_index() == 0:
    return to_host(x)
  for _ in _gather(x)[0]:
    pass  # This process only takes part.
  return None


def _gather(x: jax.Array) -> tuple[Iterator[np.ndarray], int]:
  """Returns the pieces of an array, and the axis along which they are cut.

  There are pieces because every device holds the whole piece meanwhile. The axis is one that is not
  split over devices, if there is one: XLA would gather all of another axis.
  """
  if not x.ndim or x.nbytes <= PIECE_BYTES:
    return map(_gather_piece, [x]), 0
  local = x.sharding.shard_shape(x.shape)
  axis = max(range(x.ndim), key=lambda a: (local[a] == x.shape[a], x.shape[a]))
  size = max(1, PIECE_BYTES * x.shape[axis] // x.nbytes)
  parts = (jax.lax.slice_in_dim(x, i, min(i + size, x.shape[axis]), axis=axis)
           for i in range(0, x.shape[axis], size))
  return map(_gather_piece, parts), axis


def _gather_piece(x: jax.Array) -> np.ndarray:
  return multihost_utils.process_allgather(x, tiled=True)


def _join(pieces: Iterator[np.ndarray], axis: int) -> np.ndarray:
  first, *others = pieces
  return np.concatenate([first, *others], axis) if others else first


def start_any(answer: bool) -> jax.Array:
  """Asks whether the answer of any process is True. All of them call it together; it never waits.

  Args:
    answer: answer of this process.
  Returns:
    bool scalar, the same in all processes. The devices compute it after the work that they were
    given before; only reading it waits for them.
  """
  mesh = Mesh(np.array(jax.devices()), "device")
  answers = jax.make_array_from_process_local_data(
      NamedSharding(mesh, PartitionSpec("device")), np.full(jax.local_device_count(), answer))
  return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))(answers)


def to_first(pairs: Iterable[tuple[str, str]], room: str) -> dict[str, str]:
  """Returns in process 0 the pairs of all processes, without devices. All processes call it.

  It may be called from a thread. Every pair that arrives renews the watchdog's limit, so that the
  others may need hours, but not hang.

  Args:
    pairs: (name, value) of this process, perhaps from a generator that works for long.
    room: name of this exchange, the same in all processes and used once.
  Returns:
    The values by name; {} in the other processes.
  Raises:
    jax.errors.JaxRuntimeError: the coordinator is gone.
  """
  store = coordinator.open_store()
  if store is None:
    return dict(pairs)
  room, is_first, number_seen = f"bertgpt/{room}/", jax.process_index() == 0, 0
  for number, pair in enumerate(itertools.chain(pairs, [None])):
    store.client.key_value_set(f"{room}{store.index}-{number}", json.dumps(pair))
  while is_first:
    found = [json.loads(text) for _, text in store.client.key_value_dir_get(room)]
    if found.count(None) == store.count:  # Every process has come to its end.
      return dict(filter(None, found))
    if len(found) > number_seen:
      number_seen = len(found)
      watchdog.renew()
    time.sleep(POLL_S)
  return {}
