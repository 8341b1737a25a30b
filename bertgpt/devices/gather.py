"""Arrays from the devices of all processes."""

import jax
import numpy as np
from jax.experimental import multihost_utils

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
