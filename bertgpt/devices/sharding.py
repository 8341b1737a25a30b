"""The mesh, and the layout of every array on it.

The table of a model's family (`models.parameter_table`) maps the path of a parameter to its logical
axes, and `config.mesh.axes` maps logical axes to mesh axes. An array of the optimizer's state is
laid out like its parameter, because its path ends with the parameter's path.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bertgpt import config as config_lib
from bertgpt import trees
from bertgpt.config import MESH_AXES
from bertgpt.errors import ConfigError

LogicalAxes = tuple[str | None, ...]
AxesOf = Callable[[str], LogicalAxes]

_axes: contextvars.ContextVar[Mapping[str, tuple[str, ...]]] = contextvars.ContextVar("axes")
_platform: contextvars.ContextVar[str] = contextvars.ContextVar("platform")
_capability: contextvars.ContextVar[float] = contextvars.ContextVar("capability")
_num_slices: contextvars.ContextVar[int] = contextvars.ContextVar("num_slices", default=1)
_in_replica: contextvars.ContextVar[bool] = contextvars.ContextVar("in_replica", default=False)
# Index of the micro-batch, and their number.
_micro_batch: contextvars.ContextVar[tuple[jax.Array | int, int]] = contextvars.ContextVar(
    "micro_batch", default=(0, 1))
REPLICA = "replica"  # Name of the mapped axis inside `map_replicas`.
RUNS = "runs"  # Name of the axis of meshes over which the runs of a sweep are mapped.
# Rows and columns of the least part of a matrix that XLA scatters, also if elements have 2 bytes.
_SUMMED_TILE = (16, 128)
_LEAST_TILES = 32  # Per chip and matrix, so that padding adds at most 3%, except to the last one.


def make_mesh(config: config_lib.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a (data, fsdp, tensor) mesh over all devices, or over the given ones.

  Several slices are connected along `data` only, so that only the sum of the gradients crosses the
  slow network between them. So are nodes with GPUs, unless the config splits parameters over more
  devices than a node has.

  Args:
    config: validated for these devices.
    devices: devices of the mesh; None: all.
  Raises:
    ConfigError: parameters would be split over the network between slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
  shape = (len(devices) // (fsdp * tensor), fsdp, tensor)
  kinds = (AxisType.Auto,) * 3
  num_slices = _count_slices(devices)
  fits = shape[0] % num_slices == 0
  if not fits and _platform_of(devices[0]) == "tpu":
    raise ConfigError(f"mesh.fsdp={fsdp} x mesh.tensor={tensor}: parameters would be split over "
                      f"the network between {num_slices} slices. Choose values whose product "
                      "fits in one slice")
  if num_slices > 1 and not fits:
    # A hybrid mesh needs whole models in every node. The devices follow each other, node by node.
    return Mesh(np.reshape(devices, shape), MESH_AXES, axis_types=kinds)
  # Unless it may split the sides of a slice, JAX refuses fsdp=8 on v5p:4x4x4, for example.
  if num_slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
        (shape[0] // num_slices, fsdp, tensor), (num_slices, 1, 1), devices,
        allow_split_physical_axes=True)
  else:
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES, axis_types=kinds)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | AbstractMesh, config: config_lib.ConfigDict,
             platform: str = "", num_slices: int = 0) -> Iterator[Mesh | AbstractMesh]:
  """Sets the mesh, and the mesh axes of logical axes, for everything that is traced inside.

  Args:
    mesh: mesh over devices, or an AbstractMesh to compile for devices that are not here.
    config: config whose `mesh.axes` maps logical axes to mesh axes.
    platform: 'cpu', 'gpu' or 'tpu', for an AbstractMesh; '': the platform of the mesh's devices, or
      of this process if the mesh has none.
    num_slices: TPU slices that the mesh is made of; 0: those of the mesh's devices.
  Yields:
    The mesh.
  """
  device = mesh.devices.flat[0] if isinstance(mesh, Mesh) else None
  if not platform and device:
    platform = _platform_of(device)
  enter: Callable = jax.set_mesh if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh
  axes_token = _axes.set({name: tuple(config.mesh.axes[name]) for name in config.mesh.axes})
  platform_token = _platform.set(platform or jax.default_backend())
  capability_token = _capability.set(_capability_of(device))
  if not num_slices:
    num_slices = _count_slices(mesh.devices.flat) if _platform.get() == "tpu" and device else 1
  slices_token = _num_slices.set(num_slices)
  try:
    with enter(mesh):
      yield mesh
  finally:
    _num_slices.reset(slices_token)
    _capability.reset(capability_token)
    _platform.reset(platform_token)
    _axes.reset(axes_token)


def platform() -> str:
  """Returns 'cpu', 'gpu' or 'tpu': the platform that a program traced here is compiled for."""
  return _platform.get(None) or jax.default_backend()


def compute_capability() -> float:
  """Returns the compute capability of the GPU that a program traced here is compiled for.

  It is a number such as 7.5, or 0 if it is not known or the device is not an NVIDIA GPU.
  """
  found = _capability.get(None)
  return _capability_of(jax.devices()[0]) if found is None else found


def _count_slices(devices: Iterable[jax.Device]) -> int:
  """Returns the number of TPU slices, or of nodes with GPUs, that hold the devices."""
  return len({getattr(d, "slice_index", 0) for d in devices})


def _capability_of(device: jax.Device | None) -> float:
  """Returns the compute capability of an NVIDIA GPU; 0 for any other device, or None."""
  text = str(getattr(device, "compute_capability", ""))  # 'gfx90a' for an AMD GPU.
  return float(text) if text.replace(".", "").isdigit() else 0.0


def _platform_of(device: jax.Device) -> str:
  """Returns 'cpu', 'gpu' or 'tpu'."""
  return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Fixes the layout of an activation; outside `use_mesh`, returns it as it is.

  Args:
    x: activation.
    logical_axes: logical axis of every dimension; None: not split.
  """
  axes = _axes.get(None)
  if axes is None:
    return x
  spec = _spec(logical_axes, x.shape, jax.sharding.get_abstract_mesh().shape, axes)
  return jax.lax.with_sharding_constraint(x, spec)


def map_shards(function: Callable, in_axes: Sequence[LogicalAxes], out_axes: Any,
               *args: jax.Array) -> Any:
  """Applies a function to every device's own part of its arguments.

  It is for programs that XLA cannot split by itself: custom kernels, and sums that must not be
  merged. Outside `use_mesh`, the function gets the whole arguments.

  Args:
    function: (*parts, names) -> parts. `names[logical axis]` are the mesh axes that the logical
      axis is split over, for `jax.lax.psum` and `jax.lax.axis_index`; () if it is whole.
    in_axes: logical axes of every argument's dimensions. An axis that does not divide a dimension
      leaves it whole. A mesh axis splits only the first logical axis that names it: the batch is
      split over `fsdp`, so a table whose vocabulary is stored over `fsdp` is gathered.
    out_axes: logical axes of every result, in the structure of the results.
    args: whole arrays.
  Returns:
    The whole results, in the structure of `out_axes`.
  """
  axes = _axes.get(None)
  if axes is None:
    return function(*args, names={name: () for names in in_axes for name in names if name})
  mesh_shape = jax.sharding.get_abstract_mesh().shape
  claims: dict[str, str] = {}
  for name in (name for names in in_axes for name in names if name):
    for axis in axes[name]:
      claims.setdefault(axis, name)
  axes = {name: tuple(axis for axis in axes[name]
                      if claims.get(axis) == name and mesh_shape[axis] > 1) for name in axes}
  in_specs = tuple(_spec(names, x.shape, mesh_shape, axes)
                   for names, x in zip(in_axes, args, strict=True))
  split = {name: entry or () for names, spec in zip(in_axes, in_specs, strict=True)
           for name, entry in zip(names, spec, strict=True) if name}
  out_specs = jax.tree.map(lambda names: PartitionSpec(*(split.get(n) or None for n in names)),
                           out_axes, is_leaf=lambda x: isinstance(x, tuple)
                           and all(n is None or isinstance(n, str) for n in x))
  return jax.shard_map(functools.partial(function, names=split), in_specs=in_specs,
                       out_specs=out_specs, check_vma=False)(*args)


def shard_index(mesh_axes: str | Sequence[str]) -> jax.Array | int:
  """Returns the index of this device's part of an axis, uint32, inside `map_shards`.

  Args:
    mesh_axes: `names[logical axis]` of `map_shards`.
  """
  return jax.lax.axis_index(mesh_axes).astype(jnp.uint32) if mesh_axes else 0


def map_replicas(function: Callable, *args: Any) -> Any:
  """Applies a function to the arrays of every replica of the model, without summing the results.

  A replica is one index of the `data` axis. Only a later sum over the results' first axis crosses
  the network between replicas. Otherwise XLA would sum replicated results as soon as they are
  computed, in every iteration of a loop.

  Args:
    function: (*parts) -> results of one replica.
    args: trees of arrays [replicas, ...].
  Returns:
    The results, [replicas, ...].
  """
  axes = _axes.get(None)

  def apply(*parts):
    inner = axes and {name: tuple(a for a in axes[name] if a != "data") for name in axes}
    tokens = _axes.set(inner), _in_replica.set(True)
    try:
      return function(*parts)
    finally:
      _axes.reset(tokens[0])
      _in_replica.reset(tokens[1])

  spread: dict[str, Any] = {} if axes is None else {"spmd_axis_name": "data"}
  return jax.vmap(apply, axis_name=REPLICA, **spread)(*args)


def is_mapped() -> bool:
  """Returns whether this is traced inside a vmap, over replicas or over the runs of a sweep."""
  return _in_replica.get() or RUNS in jax.sharding.get_abstract_mesh().axis_names


@contextlib.contextmanager
def use_micro_batch(index: jax.Array | int, count: int) -> Iterator[None]:
  """Makes `batch_rows` number the rows of a micro-batch, which holds every `count`-th row.

  Args:
    index: index of the micro-batch, which is that of its first row.
    count: number of micro-batches.
  """
  token = _micro_batch.set((index, count))
  try:
    yield
  finally:
    _micro_batch.reset(token)


def batch_rows(rows: int) -> jax.Array:
  """Returns the indices in the whole batch of the rows of this replica and micro-batch, uint32.

  Args:
    rows: number of the rows.
  """
  index, count = _micro_batch.get()
  rows_B = replica_index() * rows + jnp.arange(rows, dtype=jnp.uint32)
  return rows_B * jnp.uint32(count) + jnp.uint32(index)


def replica_index() -> jax.Array | int:
  """Returns the index of the replica inside `map_replicas`, uint32, and 0 outside."""
  return jax.lax.axis_index(REPLICA).astype(jnp.uint32) if _in_replica.get() else 0


def constrain_gradients(grads: Any, axes_of: AxesOf) -> Any:
  """Gives the gradients of every replica the layout of the parameters.

  Args:
    grads: tree with the paths of the parameters, arrays [replicas, ...].
    axes_of: path of a parameter -> its logical axes.
  """
  axes = _axes.get(None)
  if axes is None:
    return grads
  inner = {name: tuple(a for a in axes[name] if a != "data") for name in axes}

  def pin(path, x):
    spec = _spec(axes_of(trees.path_of(path)), x.shape[1:],
                 jax.sharding.get_abstract_mesh().shape, inner)
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", *spec))

  return jax.tree_util.tree_map_with_path(pin, grads)


def sums_by_slice() -> bool:
  """Returns whether `sum_gradients` arranges the gradients for the networks of several slices."""
  mesh = jax.sharding.get_abstract_mesh()
  return _num_slices.get() > 1 and mesh.shape["data"] == mesh.size


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
  rows = _SUMMED_TILE[0] * (num_replicas() // _num_slices.get())
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
  return [part.reshape(x.shape[1:])
          for part, x in zip(jnp.split(total, ends)[:-1], arrays, strict=True)]


def constrain_replicas(x: jax.Array) -> jax.Array:
  """Keeps rows on the devices that hold them.

  Args:
    x: rows of a batch, [micro-batches, replicas, rows of each, ...].
  """
  axes = _axes.get(None)
  if axes is None:
    return x
  rows = tuple(a for a in axes["batch"] if a != "data")
  return jax.lax.with_sharding_constraint(x, PartitionSpec(None, "data", rows or None))


def num_replicas() -> int:
  """Returns the size of the `data` axis; 1 outside `use_mesh`."""
  return 1 if _axes.get(None) is None else jax.sharding.get_abstract_mesh().shape["data"]


def shard_state(state: Any, params: Any, mesh: Mesh, config: config_lib.ConfigDict,
                axes_of: AxesOf) -> Any:
  """Returns a NamedSharding for every leaf of a train state, or of any tree with parameters.

  A leaf whose path ends with a parameter's path, and which has the parameter's shape, is laid out
  like the parameter. Other leaves (counters, factored moments) are replicated.

  Args:
    state: tree of arrays or ShapeDtypeStructs.
    params: tree of the parameters, with the same kinds of leaves.
    mesh: mesh of the layout.
    config: config whose `mesh.axes` maps logical axes to mesh axes.
    axes_of: path of a parameter -> its logical axes.
  """
  shapes = {path: leaf.shape for path, leaf in trees.named_leaves(params).items()}

  def place(key_path, leaf):
    parts = trees.path_of(key_path).split("/")
    for i in range(len(parts)):
      path = "/".join(parts[i:])
      if shapes.get(path) == leaf.shape:
        spec = _spec(axes_of(path), leaf.shape, mesh.shape, config.mesh.axes)
        return NamedSharding(mesh, spec)
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, state)


def _spec(logical_axes, shape, mesh_shape, axes) -> PartitionSpec:
  """Returns the mesh axes of every dimension; axes that do not divide it leave it whole."""
  entries = []
  for name, size in zip(logical_axes, shape, strict=True):
    chosen = []
    for axis in axes[name] if name in axes else ():
      if size % (mesh_shape[axis] * int(np.prod([mesh_shape[a] for a in chosen]))) == 0:
        chosen.append(axis)
    entries.append(tuple(chosen) or None)
  return PartitionSpec(*entries)


# ------------------------------------------------------------ global batches


def batch_sharding(mesh: Mesh, config: config_lib.ConfigDict) -> NamedSharding:
  """Returns the layout of the arrays of a batch: their rows are split, their other axes are not.

  Args:
    mesh: mesh of the batch.
    config: config whose `mesh.axes.batch` names the mesh axes that rows are split over.
  """
  return NamedSharding(mesh, PartitionSpec(tuple(config.mesh.axes.batch)))


def local_rows(layout: NamedSharding, batch_size: int,
               devices: Sequence[jax.Device] | None = None) -> np.ndarray:
  """Returns the indices of the rows of a global batch on the devices of this process, ascending.

  There may be gaps: the order of a mesh follows the links between devices, not the hosts.

  Args:
    layout: result of `batch_sharding`.
    batch_size: rows of the global batch.
    devices: devices of the mesh; None: those of this process.
  """
  shards = layout.devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[shards[d]] for d in devices or layout.mesh.local_devices]
  return np.unique(np.concatenate(rows))


def make_global_batch(batch: Mapping[str, np.ndarray], layout: NamedSharding,
                      batch_size: int) -> dict[str, jax.Array]:
  """Puts the rows of this process on its devices, as its part of the global batch.

  Args:
    batch: arrays [local rows, ...] with the rows that `local_rows` names.
    layout: result of `batch_sharding`.
    batch_size: rows of the global batch.
  Returns:
    Global arrays [batch_size, ...].
  """
  return {name: jax.make_array_from_process_local_data(layout, x, (batch_size, *x.shape[1:]))
          for name, x in batch.items()}
