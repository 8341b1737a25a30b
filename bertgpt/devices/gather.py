"""What the devices of all processes hold or know."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# A parameter is gathered in pieces of at most this many bytes, because every device holds a copy.
PIECE_BYTES = 2**28


def to_host(x: jax.Array) -> np.ndarray:
  """Returns an array whose parts are on the devices of all processes, which all call this together.

  It is gathered in pieces, because every device holds the whole piece meanwhile. They are cut along
  an axis that is not split over devices, if there is one: XLA would gather all of another axis.

  Args:
    x: any array.
  """
  if jax.process_count() == 1:
    return jax.device_get(x)
  if not x.ndim or x.nbytes <= PIECE_BYTES:
    return multihost_utils.process_allgather(x, tiled=True)
  local = x.sharding.shard_shape(x.shape)
  axis = max(range(x.ndim), key=lambda a: (local[a] == x.shape[a], x.shape[a]))
  size = max(1, PIECE_BYTES * x.shape[axis] // x.nbytes)
  pieces = (jax.lax.slice_in_dim(x, i, min(i + size, x.shape[axis]), axis=axis)
            for i in range(0, x.shape[axis], size))
  return np.concatenate([multihost_utils.process_allgather(piece, tiled=True)
                         for piece in pieces], axis=axis)


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
