"""The replicas of the model, one per index of the `data` axis: their rows, and their gradients."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from bertgpt import trees
from bertgpt.devices import sharding

REPLICA = "replica"  # Name of the mapped axis inside `map_replicas`.
# Smallest tile (rows, columns) that XLA scatters, for 2-byte elements too.
_SUMMED_TILE = (16, 128)
_LEAST_TILES = 32  # Per chip and matrix, so that padding adds at most 3%, except to the last one.


def map_replicas(function: Callable, *args: Any) -> Any:
  """Applies a function to the arrays of every replica of the model, without summing the results.

  Only a later sum over the results' first axis crosses the network between replicas. Otherwise XLA
  would sum replicated results as soon as they are computed, in every iteration of a loop.

  Args:
    function: (*parts) -> results of one replica.
    args: trees of arrays [replicas, ...].
  Returns:
    The results, [replicas, ...].
  """
  axes = sharding.scope().axes

  def apply(*parts):
    inner = {name: _without_data(axes[name]) for name in axes}
    with sharding.change_scope(axes=inner, in_replica=True):
      return function(*parts)

  spread: dict[str, Any] = {"spmd_axis_name": "data"} if axes else {}
  return jax.vmap(apply, axis_name=REPLICA, **spread)(*args)


def _without_data(mesh_axes):
  return tuple(axis for axis in mesh_axes if axis != "data")


def is_mapped() -> bool:
  """Returns whether this is traced inside a vmap, over replicas or over the runs of a sweep."""
  return (sharding.scope().in_replica
          or sharding.RUNS in jax.sharding.get_abstract_mesh().axis_names)


def use_micro_batch(index: jax.Array | int,
                    count: int) -> contextlib.AbstractContextManager[None]:
  """Makes `batch_rows` number the rows of a micro-batch, which holds every `count`-th row.

  Args:
    index: index of the micro-batch, which is that of its first row.
    count: number of micro-batches.
  """
  return sharding.change_scope(micro_batch=(index, count))


def batch_rows(rows: int) -> jax.Array:
  """Returns the indices in the whole batch of the rows of this replica and micro-batch, uint32.

  Args:
    rows: number of the rows.
  """
  index, count = sharding.scope().micro_batch
  rows_B = replica_index() * rows + jnp.arange(rows, dtype=jnp.uint32)
  return rows_B * jnp.uint32(count) + jnp.uint32(index)


def replica_index() -> jax.Array | int:
  """Returns the index of the replica inside `map_replicas`, uint32, and 0 outside."""
  return jax.lax.axis_index(REPLICA).astype(jnp.uint32) if sharding.scope().in_replica else 0


def constrain_gradients(grads: Any, axes_of: sharding.AxesOf) -> Any:
  """Gives the gradients of every replica the layout of the parameters.

  Args:
    grads: tree with the paths of the parameters, arrays [replicas, ...].
    axes_of: path of a parameter -> its logical axes.
  """
  constrain = lambda path, x: sharding.constrain(x, *axes_of(trees.path_of(path)))
  return map_replicas(lambda grads: jax.tree_util.tree_map_with_path(constrain, grads), grads)


def sums_by_slice() -> bool:
  """Returns whether `sum_gradients` arranges the gradients for the networks of several slices."""
  mesh = jax.sharding.get_abstract_mesh()
  return sharding.scope().num_slices > 1 and mesh.shape["data"] == mesh.size


def sum_gradients(grads: Any) -> Any:
  """Returns the sums over the replicas of arrays [replicas, ...].

  Over several slices, XLA scatters the sum of an array within every slice, sums the parts between
  the slices and gathers them, if it can split one of the array's axes among the chips of a slice.
  Otherwise it first computes whole sums, which sends up to twice as much. So if only replicas share
  the gradients, they are summed as matrices of which every chip gets whole tiles.

  Args:
    grads: tree of arrays [replicas, ...].
  """
  if not sums_by_slice():
    return jax.tree.map(lambda x: x.sum(0), grads)
  leaves, structure = jax.tree.flatten(grads)
  rows = _SUMMED_TILE[0] * (num_replicas() // sharding.scope().num_slices)
  sums: dict[int, jax.Array] = {}
  for dtype in sorted({x.dtype.name for x in leaves}):
    group: list[int] = []
    for i in (i for i, x in enumerate(leaves) if x.dtype == dtype):
      group.append(i)
      if sum(leaves[j][0].size for j in group) >= _LEAST_TILES * rows * _SUMMED_TILE[1]:
        sums |= zip(group, _sum_together([leaves[j] for j in group], rows), strict=True)
        group = []
    if group:
      sums |= zip(group, _sum_together([leaves[j] for j in group], rows), strict=True)
  return jax.tree.unflatten(structure, [sums[i] for i in range(len(leaves))])


def _sum_together(arrays: Sequence[jax.Array], rows: int) -> list[jax.Array]:
  """Returns the sums over the replicas of arrays [replicas, ...], as one matrix with some rows."""
  flat = jnp.concatenate([x.reshape(len(x), -1) for x in arrays], axis=1)
  flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % (rows * _SUMMED_TILE[1]))))
  matrices = jax.lax.with_sharding_constraint(flat.reshape(len(flat), rows, -1),
                                              PartitionSpec("data"))
  total = jax.lax.with_sharding_constraint(matrices.sum(0), PartitionSpec()).reshape(-1)
  ends = np.cumsum([x[0].size for x in arrays])
  # Without the barrier, XLA reshapes the whole sum before it cuts out a part: for a kernel with two
  # outputs, every two elements of the sum would fill a row of 128.
  parts = (jax.lax.optimization_barrier(part) if x.ndim > 2 and x.shape[-1] % _SUMMED_TILE[1]
           else part for part, x in zip(jnp.split(total, ends)[:-1], arrays, strict=True))
  return [part.reshape(x.shape[1:]) for part, x in zip(parts, arrays, strict=True)]


def constrain_replicas(x: jax.Array) -> jax.Array:
  """Keeps rows on the devices that hold them.

  Args:
    x: rows of a batch, [micro-batches, replicas, rows of each, ...].
  """
  axes = sharding.scope().axes
  if not axes:
    return x
  rows = _without_data(axes["batch"])
  return jax.lax.with_sharding_constraint(x, PartitionSpec(None, "data", rows or None))


def num_replicas() -> int:
  """Returns the size of the `data` axis; 1 outside `use_mesh`."""
  return jax.sharding.get_abstract_mesh().shape.get("data", 1)
