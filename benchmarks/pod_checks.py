"""The checks of `pod`. All processes call them in the same order."""

import collections
import itertools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import device_checks, device_speed, side_by_side, step_bertgpt
from benchmarks.bare_step import BareStep
from benchmarks.pod import Verdict
from bertgpt import config as config_lib
from bertgpt import files, trees
from bertgpt.config import MESH_AXES, ConfigDict
from bertgpt.config.flops import flops_per_step
from bertgpt.devices import (
    agreement,
    barrier,
    cluster,
    compilation_cache,
    gather,
    hardware,
    sharding,
)
from bertgpt.planning import aot, collectives, vocabulary_size
from bertgpt.runs import checkpoint, workdir

LOSS_STEPS = 20
LOSS_TOLERANCE = 1e-4  # In nats, of about 7; on CPUs, rounding alone is about 1e-6.
MICRO_BATCHES = 4
BYTES, REHEARSED_BYTES = 2**28, 2**20  # Per device, that are summed.
SLOWEST = 2.0  # Factor on the planner's times, beyond which a check fails.
TIMED = 3

_rooms = itertools.count()


def is_first() -> bool:
  """Returns whether this process prints."""
  return jax.process_index() == 0


def has_peers() -> bool:
  """Returns whether there are other processes."""
  return jax.process_count() > 1


def start(config: ConfigDict, rehearse: bool, folder: pathlib.Path) -> ConfigDict:
  """Returns the config of the step, checked with the devices and the other processes.

  Args:
    config: config of the recipe.
    rehearse: whether its model and rows are replaced by small ones.
    folder: the workdir.
  Raises:
    ConfigError: it does not fit the devices, or the processes were started differently.
  """
  agreement.check({"--workdir": str(folder), "--rehearse": rehearse,
                   **dict(config_lib.leaves(config))})
  number = cluster.count_devices()
  config = vocabulary_size.find(config).set_in(config)
  if rehearse:
    config.model.update(num_layers=2, width=64, num_heads=2, mlp_dim=128, vocab_size=1_000)
    rows = 2 * number
    config.phases = (config_lib.phase(**config.phases[0].to_dict() | {
        "seq_len": 32, "batch_size": rows, "micro_batches": 1, "max_predictions": 6}),)
    config.eval.batch_size = rows
  config_lib.validate(config, number, jax.default_backend())
  kind = jax.devices()[0].device_kind
  hardware.check_matmul(config.model.matmul, kind, hardware.find_chip(kind))
  compilation_cache.enable(config.system.compilation_cache)
  return config


def combine(name: str, verdict: Verdict) -> Verdict:
  """Returns the verdict of process 0, made a failure by that of any other process.

  Args:
    name: name of the check.
    verdict: verdict of this process.
  """
  room = f"pod/{next(_rooms)}"
  found = gather.to_first([(str(jax.process_index()), json.dumps(verdict))], room)
  bad = {index: text for index, (ok, text) in
         ((index, json.loads(value)) for index, value in found.items()) if not ok}
  if verdict.ok and bad:
    index, text = min(bad.items(), key=lambda item: int(item[0]))
    verdict = Verdict(False, f"process {index}: {text}")
  return Verdict(*json.loads(agreement.broadcast_text(json.dumps(verdict))))


# ----------------------------------------------------------------- devices


def check_devices(config: ConfigDict, wanted: int | None) -> Verdict:
  """Checks that every process sees all devices, of one kind, and that the mesh has all of them.

  Args:
    config: config whose mesh is made.
    wanted: number of devices that there should be; None: any.
  """
  everything = jax.devices()
  number, kinds = len(everything), sorted({d.device_kind for d in everything})
  owned = collections.Counter(d.process_index for d in everything)
  slices = collections.Counter(_slice_of(d) for d in everything)
  mesh = sharding.make_mesh(config)
  problems = agreement.find_differences(
      {"ids of devices": sorted(d.id for d in everything), "kinds of devices": kinds},
      f"pod/{next(_rooms)}")
  if wanted not in (None, number):
    problems.append(f"{number} devices instead of {wanted}. Were all hosts started, with "
                    "--distributed?")
  if len(kinds) > 1:
    problems.append(f"several kinds of devices: {', '.join(kinds)}")
  for what, counts in (("processes", owned), ("slices or nodes", slices)):
    if len(set(counts.values())) > 1 or what == "processes" and len(counts) < jax.process_count():
      problems.append(f"{what} have different numbers of devices: {dict(sorted(counts.items()))}")
  if sorted(d.id for d in mesh.devices.flat) != sorted(d.id for d in everything):
    problems.append("the mesh lacks devices")
  total, expected = _sum_over(mesh, MESH_AXES, 1)
  if not np.array_equal(total, expected):
    problems.append("a sum over all devices is wrong")
  sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
  text = (f"{number} x {kinds[0]}; processes: {len(owned)}, with {number // len(owned)} devices "
          f"each; slices or nodes: {len(slices)}; mesh: {sizes}")
  return Verdict(not problems, "; ".join([*problems, text]))


def _slice_of(device: jax.Device) -> int:
  return getattr(device, "slice_index", None) or 0


# ------------------------------------------------------------------ losses


def make_variants() -> dict[str, ConfigDict]:
  """Returns a small float32 model on every kind of mesh that fits, and with micro-batches."""
  number = jax.device_count()
  within = number // len({_slice_of(d) for d in jax.devices()})
  config = step_bertgpt.exactly(device_checks.make_config(
      "mlm_nsp", "tiny", rows=MICRO_BATCHES * number, length=32))
  config = step_bertgpt.with_fields(config, {"phases[0].learning_rate": 1e-3,
                                             "eval.batch_size": number})
  fits = lambda fields: not config_lib.find_problems(
      step_bertgpt.with_fields(config, fields), number, jax.default_backend())
  variants: dict[str, dict[str, Any]] = {"data": {}}
  for axis in ("fsdp", "tensor"):
    sizes = [size for size in range(within, 1, -1) if within % size == 0]
    found = next((size for size in sizes if fits({f"mesh.{axis}": size})), None)
    if found:
      variants[axis] = {f"mesh.{axis}": found}
  variants[f"{MICRO_BATCHES} micro-batches"] = {"phases[0].micro_batches": MICRO_BATCHES}
  return {name: step_bertgpt.with_fields(config, fields) for name, fields in variants.items()}


def _start(config: ConfigDict) -> BareStep:
  """Returns the step of a config on all devices, on a batch of random tokens."""
  return BareStep(config, step_bertgpt.make_vocabulary(config.model.vocab_size),
                  [device_checks.make_batch(config)], jax.devices())


def check_losses(config: ConfigDict) -> Verdict:
  """Checks that a small float32 model has the same losses on every mesh and in micro-batches."""
  del config  # The model is a small one.
  found = {}
  for name, variant in make_variants().items():
    with jax.default_matmul_precision("highest"):
      bare = _start(variant)
      bare.compile()
      barrier.wait_for_all("the end of its compilation of a small model")
      found[f"{name}{_size_of(bare.mesh, name)}"] = bare.losses(LOSS_STEPS)
  return compare_losses(found)


def _size_of(mesh: Mesh, axis: str) -> str:
  return f"={mesh.shape[axis]}" if axis in mesh.shape else ""


def compare_losses(found: dict[str, list[float]]) -> Verdict:
  """Compares losses with those of the first variant.

  Args:
    found: variant -> losses of its steps.
  """
  (_, expected), *others = found.items()
  differences = {name: float(np.abs(np.subtract(expected, losses)).max())
                 for name, losses in others}
  # Otherwise equal losses would say nothing about the gradients.
  learns = expected[-1] < expected[0] - 100 * LOSS_TOLERANCE
  ok = learns and all(value <= LOSS_TOLERANCE for value in differences.values())
  shown = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
  return Verdict(ok, f"{expected[0]:.4f} to {expected[-1]:.4f} in {len(expected)} steps on "
                     f"{next(iter(found))}; differences, at most {LOSS_TOLERANCE:g}: {shown}"
                     + ("" if learns else "; the loss does not fall"))


# -------------------------------------------------------------- checkpoint


def check_checkpoint(config: ConfigDict, path: pathlib.Path) -> Verdict:
  """Checks that all processes read back what they wrote together, bit for bit.

  Args:
    config: not used: the model is a small one, whose state is split over as many devices as fit.
    path: folder that is made and deleted again.
  """
  del config
  variants = make_variants()
  bare = _start(variants.get("fsdp", variants["data"]))
  limits: dict[str, Any] = {"every_steps": 1, "every_minutes": 0, "keep": 1}
  with workdir.make_and_lock(path, is_first()):
    if is_first():  # What an interrupted check has left.
      files.remove_tree(path / "checkpoints")
    barrier.wait_for_all("the empty folder")
    with checkpoint.Checkpoints(path, **limits) as checkpoints:
      checkpoints.save(1, bare.state, {}, wait=True)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), bare.state)
    with checkpoint.Checkpoints(path, **limits) as checkpoints:
      restored = checkpoints.restore_latest(abstract)
    content = checkpoint.verify(checkpoint.checkpoints_path(path) / "1")
    barrier.wait_for_all("the end of reading")
    if is_first():
      files.remove_tree(path / "checkpoints")
  if is_first():
    files.remove_tree(path, tries=True)
  wrong = find_changed(bare.state, None if restored is None else restored[0])
  size = sum(entry[0] for entry in content["files"].values())
  text = (f"{len(content['leaves'])} arrays in {len(content['files'])} files of {size:,} bytes; "
          f"{len(wrong)} arrays differ after reading")
  return Verdict(not wrong, f"{text}{': ' * bool(wrong)}{', '.join(wrong[:3])}")


def find_changed(saved: Any, restored: Any) -> list[str]:
  """Returns the names of arrays of which a part on this process' devices differs in a bit.

  Args:
    saved: pytree of arrays.
    restored: pytree with the same structure and layout; None: nothing was restored.
  """
  if restored is None:
    return ["nothing was restored"]
  others = trees.named_leaves(restored)
  return [name for name, x in trees.named_leaves(saved).items()
          if not all(np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes() for a, b in zip(
              x.addressable_shards, others[name].addressable_shards, strict=True))]


# -------------------------------------------------------------- all-reduce


def make_network(mesh: Mesh) -> collectives.Network:
  """Returns the devices of a mesh as the planner sees them; CPUs have the figures of an H100."""
  chip = device_speed.find_chip()
  dims = chip.links // 2 if jax.default_backend() == "tpu" else 0
  places = [collectives.Place(_slice_of(d), tuple(d.coords[:dims]) if dims else ())
            for d in mesh.devices.flat]
  torus = tuple(max(side) - min(side) + 1
                for side in zip(*(place.coords for place in places), strict=True))
  return collectives.Network(chip, places, torus, dict(mesh.shape))


def _is_known(rehearse: bool) -> bool:
  """Returns whether the planner's figures are those of these devices, or stand for them."""
  return rehearse or hardware.find_chip(jax.devices()[0].device_kind) is not None


def groups_along(mesh: Mesh, axis: str) -> collectives.Groups:
  """Returns the partition ids of every group of devices that an axis of the mesh connects."""
  ids = np.arange(mesh.size).reshape(mesh.devices.shape)
  rows = np.moveaxis(ids, MESH_AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
  return tuple(map(tuple, rows.tolist()))


def _all_reduce(mesh: Mesh, axes: Any) -> Any:
  """Returns the jitted sum over mesh axes of one row per device."""
  spec = PartitionSpec(MESH_AXES)
  return jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, axes), mesh=mesh, in_specs=spec,
                               out_specs=spec, check_vma=False))


def _make_rows(mesh: Mesh, size: int) -> jax.Array:
  """Returns f32[devices, size]: row i is on device i of the mesh and holds i."""
  layout = NamedSharding(mesh, PartitionSpec(MESH_AXES))
  return jax.jit(lambda: jnp.broadcast_to(
      jnp.arange(mesh.size, dtype=jnp.float32)[:, None], (mesh.size, size)),
      out_shardings=layout)()


def _sum_over(mesh: Mesh, axes: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the (found, expected) sum over mesh axes, for the first device of this process."""
  rows, reduce = _make_rows(mesh, size), _all_reduce(mesh, axes)
  reduce.lower(rows).compile()
  barrier.wait_for_all("the first sum over the devices")
  shard = reduce(rows).addressable_shards[0]
  numbers = np.arange(mesh.size, dtype=np.float32).reshape(mesh.devices.shape)
  places = tuple(MESH_AXES.index(axis) for axis in ([axes] if isinstance(axes, str) else axes))
  sums = np.broadcast_to(numbers.sum(places, keepdims=True), numbers.shape).reshape(-1)
  found = np.asarray(shard.data)[0]
  return found, np.full_like(found, sums[shard.index[0].start or 0])


def check_all_reduce(config: ConfigDict, rehearse: bool) -> Verdict:
  """Compares the bandwidth of all-reduces over each mesh axis with that of the planner's table.

  Args:
    config: config whose mesh is measured too.
    rehearse: whether arrays are small and nothing is too slow.
  """
  meshes = {name: sharding.make_mesh(variant) for name, variant in make_variants().items()
            if name in MESH_AXES}
  own = sharding.make_mesh(config)
  meshes = {axis: own if own.shape[axis] > 1 else meshes[axis] for axis in MESH_AXES
            if axis in meshes}
  size = (BYTES if jax.default_backend() != "cpu" else REHEARSED_BYTES) // 4
  texts, ok = [], True
  for axis, mesh in meshes.items():
    if mesh.shape[axis] == 1:
      continue
    found, expected = _sum_over(mesh, axis, size)
    seconds = device_speed.time_call(_all_reduce(mesh, axis), _make_rows(mesh, size))
    planned = collectives.traffic_of(
        collectives.Collective("all-reduce", 4.0 * size, groups_along(mesh, axis)),
        make_network(mesh))
    sent = planned.fast_bytes + planned.slow_bytes
    text = f"{axis}={mesh.shape[axis]} {sent / seconds / 1e9:.3g} GB/s"
    if _is_known(rehearse):
      text += f" (planner {sent / planned.seconds / 1e9:.3g})"
      ok &= rehearse or seconds <= SLOWEST * planned.seconds
    if not np.array_equal(found, expected):
      ok, text = False, f"{text} WRONG SUM"
    texts.append(text)
  if not texts:
    return Verdict(True, "one device: nothing to sum")
  return Verdict(ok, f"{4 * size / 2**20:g} MiB, sent per device over {', '.join(texts)}"
                     + _limit(rehearse))


def _limit(rehearse: bool) -> str:
  """Returns what the numbers are compared with."""
  kind = jax.devices()[0].device_kind
  if rehearse:
    return f"; {kind}: compared with an {device_speed.REHEARSED_CHIP}, never too slow"
  return (f"; fails if {SLOWEST:g} times slower" if _is_known(rehearse) else
          f"; the planner does not know {kind!r}: not compared")


# -------------------------------------------------------------------- step


def check_step(config: ConfigDict, rehearse: bool) -> Verdict:
  """Compares time and memory of a step of the recipe's first phase with the planner's prediction.

  Args:
    config: config of the step.
    rehearse: whether nothing is too slow.
  """
  phase, bare = config.phases[0], _start(config)
  flops = flops_per_step(config, phase) / bare.mesh.size
  compiled, roof = device_speed.analyze(bare, flops, make_network(bare.mesh))
  barrier.wait_for_all("the end of its compilation of the step")
  losses = bare.losses(2)
  number = 2 if rehearse else max(3, round(device_speed.SECONDS / max(roof.seconds, 1e-3)))
  if not _is_known(rehearse):
    number = 3
  times = side_by_side.spread([bare.seconds(number) for _ in range(TIMED)])
  memory = aot.read_memory(compiled.memory_analysis(), aot.StateBytes(0.0, 0.0))
  peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  used = f"{peak / 2**30:.3g} GiB" if peak else "not known here"
  text = (f"{phase.batch_size} x {phase.seq_len} tokens: {times.median * 1e3:.1f} ms "
          f"({times.low * 1e3:.1f} to {times.high * 1e3:.1f})")
  if _is_known(rehearse):
    text += f", planner {roof.seconds * 1e3:.1f}"
  text += f"; memory so far {used}, compiled {memory.total / 2**30:.3g} GiB per device"
  ok = bool(np.isfinite(losses).all())
  if not ok:
    text += f"; LOSS {losses[-1]}"
  slow = _is_known(rehearse) and not rehearse and times.median > SLOWEST * roof.seconds
  return Verdict(ok and not slow, text + _limit(rehearse))
