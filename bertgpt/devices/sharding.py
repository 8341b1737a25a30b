"""The mesh, and the layout of every array on it.

The table of a model's family (`models.parameter_table`) maps the path of a parameter to its logical
axes, and `config.mesh.axes` maps logical axes to mesh axes. An array of the optimizer's state is
laid out like its parameter, because its path ends with the parameter's path.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
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

RUNS = "runs"  # Name of the axis of meshes over which the runs of a sweep are mapped.


@dataclasses.dataclass(frozen=True)
class Scope:
  """What a program that is traced here knows about its devices and its rows.

  Attributes:
    axes: mesh axes of every logical axis; empty outside `use_mesh`.
    platform: 'cpu', 'gpu' or 'tpu'; '' outside `use_mesh`.
    capability: see `compute_capability`; None outside `use_mesh`.
    num_slices: TPU slices that the mesh is made of.
    in_replica: whether this is inside `data_parallel.map_replicas`.
    micro_batch: index of the micro-batch, and their number.
  """

  axes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  platform: str = ""
  capability: float | None = None
  num_slices: int = 1
  in_replica: bool = False
  micro_batch: tuple[jax.Array | int, int] = (0, 1)


_scope: contextvars.ContextVar[Scope] = contextvars.ContextVar("scope")


def scope() -> Scope:
  """Returns the scope in which this is traced."""
  return _scope.get(Scope())


@contextlib.contextmanager
def change_scope(**fields: Any) -> Iterator[None]:
  """Changes fields of the scope for everything that is traced inside.

  Args:
    fields: name -> value; see `Scope`.
  """
  token = _scope.set(dataclasses.replace(scope(), **fields))
  try:
    yield
  finally:
    _scope.reset(token)


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
  if not platform:
    platform = _platform_of(device) if device else jax.default_backend()
  if not num_slices:
    num_slices = _count_slices(mesh.devices.flat) if platform == "tpu" and device else 1
  enter: Callable = jax.set_mesh if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh
  axes = {name: tuple(config.mesh.axes[name]) for name in config.mesh.axes}
  with enter(mesh), change_scope(axes=axes, platform=platform, capability=_capability_of(device),
                                 num_slices=num_slices):
    yield mesh


def platform() -> str:
  """Returns 'cpu', 'gpu' or 'tpu': the platform that a program traced here is compiled for."""
  return scope().platform or jax.default_backend()


def compute_capability() -> float:
  """Returns the compute capability of the GPU that a program traced here is compiled for.

  It is a number such as 7.5, or 0 if it is not known or the device is not an NVIDIA GPU.
  """
  found = scope().capability
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
  axes = scope().axes
  if not axes:
    return x
  spec = _spec(logical_axes, x.shape, jax.sharding.get_abstract_mesh().shape, axes)
  return jax.lax.with_sharding_constraint(x, spec)


def copy_for_batch(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Returns a copy of an array for every part that the batch is split into, [parts, ...].

  Devices use the copy of their own rows, in `map_shards`. The gradients of all of its uses then add
  up on the device, and only their sum crosses the network. Otherwise, every use sends its own.

  Args:
    x: array.
    logical_axes: logical axis of every dimension of it; None: not split.
  """
  mesh_shape = jax.sharding.get_abstract_mesh().shape
  parts = math.prod(mesh_shape[axis] for axis in scope().axes.get("batch", ()))
  return constrain(jnp.broadcast_to(x, (parts, *x.shape)), "batch", *logical_axes)


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
  axes = scope().axes
  if not axes:
    return function(*args, names={name: () for names in in_axes for name in names if name})
  mesh_shape = jax.sharding.get_abstract_mesh().shape
  claims: dict[str, str] = {}
  for name in (name for names in in_axes for name in names if name):
    for axis in axes[name]:
      claims.setdefault(axis, name)
  axes = {name: tuple(axis for axis in axes[name] if claims.get(axis) == name) for name in axes}
  in_specs = tuple(_spec(names, x.shape, mesh_shape, axes)
                   for names, x in zip(in_axes, args, strict=True))
  split = {name: (entry,) if isinstance(entry, str) else entry or ()
           for names, spec in zip(in_axes, in_specs, strict=True)
           for name, entry in zip(names, spec, strict=True) if name}
  out_specs = jax.tree.map(lambda names: PartitionSpec(*(split.get(n) or None for n in names)),
                           out_axes, is_leaf=lambda x: isinstance(x, tuple)
                           and all(n is None or isinstance(n, str) for n in x))
  # An axis of size 1 is in the specs all the same: a gradient would be summed over it otherwise.
  names = {name: tuple(axis for axis in entry if mesh_shape[axis] > 1)
           for name, entry in split.items()}
  return jax.shard_map(functools.partial(function, names=names), in_specs=in_specs,
                       out_specs=out_specs, check_vma=False)(*args)


def shard_index(mesh_axes: str | Sequence[str]) -> jax.Array | int:
  """Returns the index of this device's part of an axis, uint32, inside `map_shards`.

  Args:
    mesh_axes: `names[logical axis]` of `map_shards`.
  """
  return jax.lax.axis_index(mesh_axes).astype(jnp.uint32) if mesh_axes else 0


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
  """Returns the mesh axes of every dimension.

  A mesh axis splits the first dimension that names it and that it divides, if there is one.
  """
  entries: list[tuple[str, ...] | None] = []
  taken: set[str] = set()
  for name, size in zip(logical_axes, shape, strict=True):
    chosen = []
    for axis in axes[name] if name in axes else ():
      parts = mesh_shape[axis] * int(np.prod([mesh_shape[a] for a in chosen]))
      if axis not in taken and size % parts == 0:
        chosen.append(axis)
    taken.update(chosen)
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
