"""The mesh, and how every array lies on it.

The path of a parameter leads to its logical axes, by the table of its family
(`models.parameter_table`); `config.mesh.axes` maps logical axes to mesh axes. The optimizer's
state follows its parameter, because its path ends in the parameter's path.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_in_replica: contextvars.ContextVar[bool] = contextvars.ContextVar("in_replica", default=False)
REPLICA = "replica"  # The name of the mapped axis inside `map_replicas`.


def make_mesh(config: config_lib.ConfigDict, devices=None) -> Mesh:
  """A (data, fsdp, tensor) mesh over all devices, or the given ones.

  Several slices are joined along `data` alone, so that only the gradient sum crosses the
  slow network between them.

  Raises:
    ConfigError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  config_lib.validate(config, num_devices=len(devices), platform=_platform_of(devices[0]))
  fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
  shape = (len(devices) // (fsdp * tensor), fsdp, tensor)
  kinds = (AxisType.Auto,) * 3
  islands = len({getattr(d, "slice_index", 0) for d in devices})  # Each has a fast network.
  if islands > 1:
    if shape[0] % islands:
      raise ConfigError(f"mesh.fsdp={fsdp} x mesh.tensor={tensor}: parameters would be split over "
                        f"the network between {islands} slices; choose a product that fits in one")
    grid = mesh_utils.create_hybrid_device_mesh(
        (shape[0] // islands, fsdp, tensor), (islands, 1, 1), devices)
    return Mesh(grid, MESH_AXES, axis_types=kinds)
  return jax.make_mesh(shape, MESH_AXES, axis_types=kinds, devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | AbstractMesh, config: config_lib.ConfigDict,
             platform: str = "") -> Iterator[Mesh | AbstractMesh]:
  """Sets the mesh and the meaning of logical axes for everything traced inside.

  Args:
    platform: 'cpu', 'gpu' or 'tpu', that an AbstractMesh stands for; empty: that of the mesh's
      devices, or of this process where it has none.
  """
  if not platform and isinstance(mesh, Mesh):
    platform = _platform_of(mesh.devices.flat[0])
  enter = jax.set_mesh if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh
  axes_token = _axes.set({name: tuple(config.mesh.axes[name]) for name in config.mesh.axes})
  platform_token = _platform.set(platform or jax.default_backend())
  try:
    with enter(mesh):
      yield mesh
  finally:
    _platform.reset(platform_token)
    _axes.reset(axes_token)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': what a program traced here is compiled for."""
  return _platform.get(None) or jax.default_backend()


def _platform_of(device: jax.Device) -> str:
  return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
  """Pins an activation's layout by logical axes; the identity outside `use_mesh`."""
  axes = _axes.get(None)
  if axes is None:
    return x
  spec = _spec(logical_axes, x.shape, jax.sharding.get_abstract_mesh().shape, axes)
  return jax.lax.with_sharding_constraint(x, spec)


def map_shards(function: Callable, in_axes: Sequence[LogicalAxes], out_axes: Any,
               *args: jax.Array) -> Any:
  """Applies a function to every device's own part of its arguments.

  For what XLA cannot split by itself: custom kernels, and sums that are to stay apart. Outside
  `use_mesh` the one part is the whole.

  Args:
    function: (*parts, names) -> parts; `names[logical axis]` are the mesh axes it is split over
      here, for `jax.lax.psum` and `jax.lax.axis_index`; () where it is whole.
    in_axes: logical axes of every argument's dimensions; an axis that does not divide a
      dimension leaves it whole. A mesh axis splits only the first logical axis that claims it:
      a table whose vocabulary is stored over `fsdp`, as the batch is, comes gathered over `fsdp`.
    out_axes: logical axes of every result, in the structure of the results.
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


def map_replicas(function: Callable, *args: Any) -> Any:
  """Applies a function to what every replica of the model has, and keeps the results apart.

  A replica is one place of the `data` axis. A sum over the results' first axis is then the only
  thing that crosses the network between replicas, where XLA would otherwise sum all that is
  replicated as soon as it is made, as in every turn of a loop.

  Args:
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

  spread = {} if axes is None else {"spmd_axis_name": "data"}
  return jax.vmap(apply, axis_name=REPLICA, **spread)(*args)


def replica_index() -> jax.Array | int:
  """The number of the replica inside `map_replicas`, and 0 outside."""
  return jax.lax.axis_index(REPLICA).astype(jnp.uint32) if _in_replica.get() else 0


def constrain_gradients(grads: Any, axes_of: AxesOf) -> Any:
  """Pins every replica's gradients [replicas, ...] to where the parameters lie.

  Args:
    grads: a tree with the paths of the parameters.
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


def constrain_replicas(x: jax.Array) -> jax.Array:
  """Pins rows [pieces, replicas, rows of a replica, ...] to the devices that hold the rows."""
  axes = _axes.get(None)
  if axes is None:
    return x
  rows = tuple(a for a in axes["batch"] if a != "data")
  return jax.lax.with_sharding_constraint(x, PartitionSpec(None, "data", rows or None))


def num_replicas() -> int:
  """Places of the `data` axis; 1 outside `use_mesh`."""
  return 1 if _axes.get(None) is None else jax.sharding.get_abstract_mesh().shape["data"]




def shard_state(state: Any, params: Any, mesh: Mesh, config: config_lib.ConfigDict,
                axes_of: AxesOf) -> Any:
  """A NamedSharding for every leaf of a train state, or of any tree around parameters.

  A leaf whose path ends in a parameter's path and which has its shape lies as the
  parameter does; anything else (counters, factored moments) is replicated.

  Args:
    state: tree of arrays or ShapeDtypeStructs.
    params: the parameters, same kinds of leaves.
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
  """Mesh axes of every dimension; axes that do not divide a dimension leave it whole."""
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
  return NamedSharding(mesh, PartitionSpec(tuple(config.mesh.axes.batch)))


def local_rows(mesh: Mesh, config: config_lib.ConfigDict, batch_size: int,
               devices=None) -> np.ndarray:
  """Numbers of the rows of a global batch that this process's devices hold, ascending.

  They need not follow each other: a mesh is laid along the wires, not along the hosts.

  Args:
    devices: other ones of the mesh than this process's.
  """
  shards = batch_sharding(mesh, config).devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[shards[d]] for d in devices or mesh.local_devices]
  return np.unique(np.concatenate(rows))


def make_global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, config: config_lib.ConfigDict,
                      batch_size: int) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices, as part of the global batch.

  Args:
    batch: arrays [local rows, ...] as `local_rows` chose them.
    batch_size: rows of the global batch.
  """
  sharding = batch_sharding(mesh, config)
  return {name: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))
          for name, x in batch.items()}
