"""A restored state is the saved one, bit for bit; anything else is not restored."""

import contextlib
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import program
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.runs import checkpoint, step_folders, workdir
from bertgpt.runs import manifest as manifest_lib

try:
  jax.config.update("jax_num_cpu_devices", 8)
except RuntimeError:
  pass  # Another test has already started JAX, with the devices of conftest.py.

TRAINER = """
import sys
import jax, jax.numpy as jnp
from bertgpt.runs import checkpoint
from bertgpt.runs.fingerprint import fingerprint

def make_state(step):  # Every element holds the number of its step.
  return {"params": {f"w{i}": jnp.full((128, 1024), step, jnp.float32) for i in range(4)},
          "mu": [jnp.full((512, 1024), step, jnp.int32)], "step": jnp.int32(step)}

def open_checkpoints(workdir, **options):
  options = {"every_steps": 1, "every_minutes": 0, "keep": 2} | options
  return checkpoint.Checkpoints(workdir, **options)
"""


def make_mesh(*shape):
  devices = np.array(jax.devices()[:np.prod(shape)]).reshape(shape)
  return Mesh(devices, ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def make_state(seed=0, mesh=None):
  """Returns a state like that of a training, with all kinds of leaves and bits."""
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, 2**32, (16, 24), np.uint32)
  bits[0, :4] = 0x7FC00001, 0x80000000, 0x00000001, 0xFF800000  # NaN, -0, denormal, -inf
  params = {"dense": {"kernel": jnp.asarray(bits.view(np.float32)), "bias": jnp.zeros(8)},
            "half": jnp.asarray(rng.normal(size=(8, 16)), jnp.bfloat16)}
  state = {"step": jnp.int32(seed), "params": params, "opt_state": optax.adam(1e-3).init(params),
           "mask": jnp.asarray(rng.integers(0, 2, 32), bool), "bits": jnp.asarray(bits),
           "key": jax.random.key(seed), "nothing": None}
  return jax.device_put(state, shard(state, mesh or make_mesh(1, 1)))


def shard(state, mesh):
  def spec(leaf):
    fits = leaf.ndim == 2 and leaf.dtype != jnp.bfloat16
    return NamedSharding(mesh, PartitionSpec("x", "y") if fits else PartitionSpec())
  return jax.tree.map(spec, state)


def abstract(state, mesh=None):
  shardings = shard(state, mesh or make_mesh(1, 1))
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                      state, shardings)


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def open_checkpoints(workdir, **options):
  options = {"every_steps": 10, "every_minutes": 0, "keep": 3} | options
  return checkpoint.Checkpoints(workdir, **options)


def save(workdir, *steps, **options):
  checkpoints = open_checkpoints(workdir, **options)
  for step in steps:
    checkpoints.save(step, make_state(step), {"step": step, "config": f"c{step}"})
  checkpoints.close()


def restore(workdir, like=None):
  checkpoints = open_checkpoints(workdir)
  try:
    return checkpoints.restore_latest(like or abstract(make_state()))
  finally:
    checkpoints.close()


def assert_restores(workdir, step):
  state, metadata = restore(workdir)
  assert metadata == {"step": step, "config": f"c{step}"}
  assert_same_bits(state, make_state(step))


def files_of(path):
  return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Workdir with the steps 10 and 20."""
  workdir = tmp_path_factory.mktemp("saved")
  save(workdir, 10, 20)
  return workdir


@pytest.fixture
def copy(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  return tmp_path / "run"


def start(code, *args, **options):
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
                      "PYTHONPATH": os.pathsep.join(sys.path)}
  return subprocess.Popen([sys.executable, "-c", TRAINER + textwrap.dedent(code), *map(str, args)],
                          env=env, text=True, stdout=subprocess.PIPE, **options)


# -------------------------------------------------------------- saving and restoring


def test_round_trip_keeps_every_bit_of_every_kind_of_leaf(saved):
  assert checkpoint.committed_steps(saved) == [10, 20]
  assert_restores(saved, 20)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_type_of_a_leaf_is_read_back(shape):
  leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  assert jax.ShapeDtypeStruct(*manifest_lib.parse_type(manifest_lib.format_type(leaf))) == leaf


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None
  assert checkpoint.committed_steps(tmp_path / "missing") == []


def test_state_moves_between_meshes_bit_for_bit(tmp_path):
  if jax.device_count() < 8:
    pytest.skip("JAX was started with fewer than 8 devices")
  for step, (before, after) in enumerate([((8, 1), (2, 4)), ((2, 4), (1, 1)), ((1, 1), (4, 2))]):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(step, make_state(7, make_mesh(*before)), {}, wait=True)
    state, _ = checkpoints.restore_latest(abstract(make_state(), make_mesh(*after)))
    checkpoints.close()
    assert state["bits"].sharding.mesh.devices.shape == after
    assert_same_bits(state, make_state(7))


def test_a_save_compiles_one_program_on_eight_devices(tmp_path):
  """The one for fingerprints. By default, Orbax makes one per shape and device of a copied leaf."""
  if jax.device_count() < 8:
    pytest.skip("JAX was started with fewer than 8 devices")
  copies = NamedSharding(make_mesh(8, 1), PartitionSpec())
  state = jax.device_put({"params": {f"w{n}": np.ones((8, n), np.float32) for n in (3, 5, 7)}},
                         copies)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None)
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {}, wait=True)
  assert len(compiled) == 1


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_state_that_is_donated_at_once_is_saved_unchanged(tmp_path, num_devices):
  """Every device holds a copy of the state."""
  if jax.device_count() < num_devices:
    pytest.skip("JAX was started with fewer than 8 devices")
  copies = NamedSharding(make_mesh(num_devices, 1), PartitionSpec())
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  make = jax.jit(lambda seed: {"params": {
      f"w{i}": jax.random.normal(jax.random.key(seed), (2**18 + i,)) for i in range(8)}},
                 out_shardings=copies)
  checkpoints = open_checkpoints(tmp_path, keep=9)
  expected = {}
  for step in range(4):
    state = make(step)
    expected[step] = jax.device_get(jax.tree.map(jnp.copy, state))
    jax.block_until_ready(state)
    checkpoints.save(step, state, {})
    for _ in range(3):
      state = overwrite(state)
  checkpoints.close()
  for step in reversed(range(4)):
    params, _ = checkpoint.restore_params(tmp_path)
    assert_same_bits(params, expected[step]["params"])
    shutil.rmtree(tmp_path / "checkpoints" / str(step))


def test_parameters_are_restored_without_the_rest(copy):
  expected = make_state(20)["params"]
  step = copy / "checkpoints/20"
  rest = [step / name for name in files_of(step) if name.startswith("rest/")]
  assert rest
  for file in rest:  # Reading these files would fail.
    file.write_bytes(bytes(len(file.read_bytes())))
  params, metadata = checkpoint.restore_params(copy)
  assert metadata["step"] == 20
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  assert_same_bits(params, jax.device_get(expected))


def test_a_reader_of_a_run_that_goes_on_gets_a_newer_step(copy, monkeypatch, capfd):
  """The run replaces the only step while a reader opens it."""
  root, hidden = copy / "checkpoints", copy / "hidden"
  (root / "20").rename(hidden)
  restore = checkpoint._restore

  def replace_and_restore(path, *arguments):
    if hidden.exists():
      hidden.rename(root / "20")
      shutil.rmtree(path)
    return restore(path, *arguments)

  monkeypatch.setattr(checkpoint, "_restore", replace_and_restore)
  _, metadata = checkpoint.restore_params(copy)
  assert metadata["step"] == 20 and not capfd.readouterr().err


def test_parameters_of_a_damaged_step_are_those_of_the_step_before(copy, capfd):
  damage = next((copy / "checkpoints/20/params/ocdbt.process_0/d").iterdir())
  damage.write_bytes(damage.read_bytes()[:-1] + b"?")
  params, metadata = checkpoint.restore_params(copy)
  assert metadata["step"] == 10
  assert_same_bits(params, jax.device_get(make_state(10)["params"]))
  assert "checkpoints/20 is damaged" in capfd.readouterr().err
  assert (copy / "checkpoints/20").is_dir(), "a reader changes nothing"


def test_orbax_alone_can_read_a_step(saved):
  with ocp.PyTreeCheckpointer() as reader:
    item = reader.restore(saved / "checkpoints/20/params")
  assert_same_bits(jax.device_get(item["params"]), jax.device_get(make_state(20)["params"]))


def test_a_relative_workdir_stays_where_it_was(tmp_path, monkeypatch):
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path)
  checkpoints = open_checkpoints("run")
  monkeypatch.chdir("elsewhere")
  checkpoints.save(1, make_state(1), {"step": 1, "config": "c1"}, wait=True)
  checkpoints.close()
  assert checkpoint.committed_steps(tmp_path / "run") == [1]
  assert not list((tmp_path / "elsewhere").iterdir())


# -------------------------------------------------------------- a state other than the saved one


@pytest.mark.parametrize("change, words", [
    (lambda s: s["params"]["dense"].update(bias=jnp.zeros(8, jnp.bfloat16)),
     "params/dense/bias the checkpoint has float32[8], but .* have bfloat16[8]"),
    (lambda s: s["params"]["dense"].update(kernel=jnp.zeros((24, 16))),
     "params/dense/kernel the checkpoint has float32[16,24], but .* have float32[24,16]"),
    (lambda s: s["params"].update(extra=jnp.zeros(3)),
     "params/extra the checkpoint has nothing, but .* have float32[3]"),
    (lambda s: s["params"].pop("half"),
     "params/half the checkpoint has bfloat16[8,16], but .* have nothing"),
    (lambda s: s.update(opt_state=optax.sgd(1e-3, momentum=0.9).init(s["params"])), "opt_state/0"),
], ids=["dtype", "shape", "more", "less", "optimizer"])
def test_a_state_of_another_structure_is_refused_by_name(copy, change, words):
  state = make_state()
  change(state)
  with pytest.raises(DataError, match=words.replace("[", r"\[").replace("]", r"\]")):
    restore(copy, abstract(state))
  assert checkpoint.committed_steps(copy) == [10, 20], "the checkpoint is not to blame"


# -------------------------------------------------------------- damage


def flip(file, rng):
  data = bytearray(file.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  file.write_bytes(data)


DAMAGES = {
    "flip": flip,
    "truncate": lambda file, rng: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file, rng: os.truncate(file, 0),
    "grow": lambda file, rng: file.write_bytes(file.read_bytes() + b"\0"),
    "missing": lambda file, rng: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found(saved, tmp_path, damage):
  """Each file is damaged in turn. A later test restores after damage."""
  rng = random.Random(damage)
  files = files_of(saved / "checkpoints/20")
  assert len(files) > 15 and "manifest.json" in files
  for file in files:
    for _ in range(4 if damage == "flip" else 1):
      shutil.copytree(saved / "checkpoints/20", tmp_path / "20")
      DAMAGES[damage](tmp_path / "20" / file, rng)
      with pytest.raises(manifest_lib.Damaged):
        manifest_lib.check_files(tmp_path / "20", manifest_lib.ITEMS)
      shutil.rmtree(tmp_path / "20")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_step_is_set_aside_and_the_one_before_is_used(copy, damage, capfd):
  rng = random.Random(damage)
  step = copy / "checkpoints/20"
  DAMAGES[damage](step / rng.choice(files_of(step)), rng)
  assert_restores(copy, 10)
  line = capfd.readouterr().err
  assert f"WARNING: {step} is damaged: " in line and "set aside as damaged-20-0" in line
  assert checkpoint.committed_steps(copy) == [10]
  assert (copy / "checkpoints/damaged-20-0").is_dir()
  save(copy, 20)  # The step can be saved again.
  assert_restores(copy, 20)


@pytest.mark.parametrize("content", [None, b"[" * 100_000, b'"\xff"', b"[]"],
                         ids=["a folder", "nested", "no UTF-8", "a list"])
def test_a_manifest_that_is_none_is_damage(copy, content):
  manifest = copy / "checkpoints/20/manifest.json"
  manifest.unlink()
  manifest.write_bytes(content) if content else manifest.mkdir()
  assert checkpoint.committed_steps(copy) == [10]
  assert_restores(copy, 10)


def test_a_file_too_many_is_damage(copy):
  (copy / "checkpoints/20/params/d/extra").write_text("")
  assert checkpoint.committed_steps(copy) == [10]
  assert_restores(copy, 10)


def test_other_values_under_right_hashes_are_found_by_the_fingerprint(copy, capfd):
  """The files are unchanged since they were hashed, but do not hold the state."""
  manifest = copy / "checkpoints/20/manifest.json"
  content = json.loads(manifest.read_text())["content"]
  content["leaves"]["params/dense/kernel"][1] ^= 1
  manifest.write_text(manifest_lib.encode(content))
  assert_restores(copy, 10)
  assert "params/dense/kernel differs from the saved array" in capfd.readouterr().err
  assert checkpoint.committed_steps(copy) == [10]


def test_no_usable_step_is_an_error_every_time(copy):
  for step in ("10", "20"):
    (copy / "checkpoints" / step / "manifest.json").unlink()
  for _ in range(2):  # The second time, there are only folders that were set aside.
    with pytest.raises(DataError, match="damaged-10-0, damaged-20-0.*backup.* or delete "):
      restore(copy)
  with pytest.raises(DataError, match="no usable checkpoint"):
    checkpoint.restore_params(copy)


def test_a_reader_names_the_steps_that_are_damaged(copy):
  """It does not set them aside."""
  for step in ("10", "20"):
    (copy / "checkpoints" / step / "manifest.json").write_text("{}")
  with pytest.raises(DataError, match=r"no usable checkpoint \(10 is damaged, 20 is damaged\)"):
    checkpoint.restore_params(copy)


def test_no_checkpoint_is_an_error_for_a_reader(tmp_path):
  with pytest.raises(DataError, match="no checkpoint was saved yet. Wait"):
    checkpoint.restore_params(tmp_path)


def test_other_directories_are_never_the_newest_step(copy):
  root = copy / "checkpoints"
  (root / "99").mkdir()
  (root / "100").write_text("a file")
  for name in ("0030", "30.orbax-checkpoint-tmp", "step_30", "-30", "３０"):
    shutil.copytree(root / "20", root / name)
  assert checkpoint.committed_steps(copy) == [10, 20]
  assert_restores(copy, 20)
  save(copy, 99, 100)
  assert checkpoint.committed_steps(copy) == [20, 99, 100]
  assert_restores(copy, 100)


def test_an_empty_directory_is_not_a_step(tmp_path):
  (tmp_path / "checkpoints/99").mkdir(parents=True)
  assert restore(tmp_path) is None


def test_a_step_copied_under_another_number_is_damaged(copy):
  shutil.copytree(copy / "checkpoints/10", copy / "checkpoints/50")
  assert_restores(copy, 20)


# -------------------------------------------------------------- which steps, and how many


def test_keeps_the_newest_good_steps_only(tmp_path):
  save(tmp_path, 1, 2, 3, 4, 5, keep=2)
  assert checkpoint.committed_steps(tmp_path) == [4, 5]
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "5", "unfinished"]
  assert not os.listdir(tmp_path / "checkpoints/unfinished")


def test_a_step_that_cannot_be_deleted_costs_a_line(tmp_path, monkeypatch, capfd):
  """As if the storage refused."""
  save(tmp_path, 1)
  rename = pathlib.Path.rename

  def refuse(path, target):
    if path.name == "1":
      raise OSError(errno.ENOTEMPTY, "Directory not empty")
    return rename(path, target)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "rename", refuse)
    save(tmp_path, 2, keep=1)
  assert checkpoint.committed_steps(tmp_path) == [1, 2]
  assert "checkpoints/1 could not be deleted (Directory not empty)" in capfd.readouterr().err
  save(tmp_path, 3, keep=1)
  assert checkpoint.committed_steps(tmp_path) == [3]


def test_damaged_steps_do_not_count_as_kept(tmp_path):
  save(tmp_path, 1, 2, 3, keep=3)
  (tmp_path / "checkpoints/3/manifest.json").unlink()
  save(tmp_path, 4, keep=2)
  assert checkpoint.committed_steps(tmp_path) == [2, 4]


def test_a_step_is_on_the_disk_when_it_gets_its_name(tmp_path, monkeypatch):
  """Otherwise a loss of power could empty its files, after older steps were deleted.

  The manifest is synchronized under another name.
  """
  fsync, rename, synced, at_rename = os.fsync, pathlib.Path.rename, [], []

  def note_sync(descriptor):
    synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    fsync(descriptor)

  def note_rename(path, target):
    if str(target).endswith("checkpoints/1"):
      at_rename.extend(str(p) for p in (path, *path.rglob("*")) if p.name != "manifest.json")
      assert set(at_rename) <= set(synced)
      synced.clear()
    return rename(path, target)

  monkeypatch.setattr(os, "fsync", note_sync)
  monkeypatch.setattr(pathlib.Path, "rename", note_rename)
  save(tmp_path, 1)
  assert any(name.endswith("_CHECKPOINT_METADATA") for name in at_rename)
  assert str(tmp_path / "checkpoints") in synced
  assert checkpoint.committed_steps(tmp_path) == [1]


def test_a_step_before_the_newest_is_refused(copy):
  checkpoints = open_checkpoints(copy)
  for step in (15, 20):
    with pytest.raises(DataError, match=f"step {step} cannot be saved, because step 20 exists"):
      checkpoints.save(step, make_state(), {})
  checkpoints.save(21, make_state(21), {"step": 21, "config": "c21"})
  checkpoints.close()
  assert_restores(copy, 21)


def test_due_by_steps_and_by_minutes(tmp_path, monkeypatch):
  checkpoints = open_checkpoints(tmp_path, every_steps=10)
  assert [s for s in range(1, 31) if checkpoints.is_due(s)] == [10, 20, 30]
  checkpoints.close()
  checkpoints = open_checkpoints(tmp_path, every_steps=10, keep_every_steps=15)
  assert [s for s in range(1, 31) if checkpoints.is_due(s)] == [10, 15, 20, 30]
  checkpoints.close()
  checkpoints = open_checkpoints(tmp_path, every_steps=0)
  assert not any(checkpoints.is_due(s) for s in range(1, 31))
  checkpoints.close()
  checkpoints = open_checkpoints(tmp_path, every_steps=0, every_minutes=60)
  assert not checkpoints.is_due(1)
  clock = time.monotonic
  monkeypatch.setattr(time, "monotonic", lambda: clock() + 3601)
  assert checkpoints.is_due(2)
  checkpoints.save(2, make_state(), {})
  assert not checkpoints.is_due(3)
  checkpoints.close()


# -------------------------------------------------------------- failed saves and kills


def check_full_disk(workdir, limit, reason):
  """Fills the disk before a save with `wait`, and before a save without."""
  process = start("""
      import pathlib, resource, time
      from bertgpt.errors import StorageError
      workdir, limit = pathlib.Path(sys.argv[1]), sys.argv[2]

      def fill():
        if limit == "file size":
          resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        else:
          with open(workdir / "ballast", "wb", buffering=0) as f:
            try:
              while True:
                f.write(bytes(2**16))
            except OSError:
              f.truncate(f.tell() - 2**18)

      def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (workdir / "ballast").unlink(missing_ok=True)

      for step, wait in ((2, True), (4, False)):
        checkpoints = open_checkpoints(workdir, every_steps=0)
        checkpoints.save(step - 1, make_state(step), {}, wait=True)
        fill()
        try:
          checkpoints.save(step, make_state(step), {}, wait=wait)
          while True:
            checkpoints.is_due(step + 1)
            time.sleep(0.05)
        except StorageError as e:
          print(e)
        checkpoints.close()
        empty()
        print(checkpoint.committed_steps(workdir))
      """, workdir, limit, stderr=subprocess.PIPE)
  out, err = process.communicate(timeout=1200)
  first, first_steps, second, second_steps = out.splitlines()
  assert process.returncode == 0
  assert "step 2 could not be saved" in first and reason in first
  assert "step 4 could not be saved" in second and reason in second
  assert (first_steps, second_steps) == ("[1]", "[1, 3]")
  assert "orbax/checkpoint/checkpoint_manager.py" not in err, "one line is enough"


def test_a_file_that_may_not_grow_is_reported_and_the_step_is_not_listed(tmp_path):
  check_full_disk(tmp_path, "file size", "File too large")


def test_a_full_disk_is_reported_and_the_step_is_not_listed(tmp_path):
  mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", tmp_path],
                         capture_output=True)
  if mount.returncode:
    pytest.skip("needs the right to mount a tmpfs")
  try:
    check_full_disk(tmp_path, "tmpfs", "No space left on device")
  finally:
    subprocess.run(["umount", tmp_path], check=True)


def test_a_writer_of_a_failed_save_may_make_its_folder_again(tmp_path, monkeypatch):
  unfinished, remove = tmp_path / "checkpoints" / "unfinished", shutil.rmtree
  (unfinished / "2").mkdir(parents=True)

  def remove_beside_a_writer(path, **how):
    remove(path, **how)
    monkeypatch.undo()
    (unfinished / "2" / "params").mkdir(parents=True)

  monkeypatch.setattr(shutil, "rmtree", remove_beside_a_writer)
  open_checkpoints(tmp_path).close()
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["unfinished"]
  assert not list(unfinished.iterdir())


def test_a_failed_save_is_reported_by_close(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(1, make_state(1), {"step": 1, "config": "c1"}, wait=True)
  shutil.rmtree(tmp_path / "checkpoints/unfinished")
  (tmp_path / "checkpoints/unfinished").write_text("in the way")
  with pytest.raises(StorageError, match="step 2 could not be saved"):
    checkpoints.save(2, make_state(2), {})
    checkpoints.close()
  (tmp_path / "checkpoints/unfinished").unlink()
  assert checkpoint.committed_steps(tmp_path) == [1]
  assert_restores(tmp_path, 1)


def take_over(folder):
  """Takes the lock of a workdir as another process, after the server of its disk released it."""
  (folder / ".lock").write_text("process 8 on other\n")


@pytest.mark.parametrize("inside", ["", "lr0.1-seed0/unfinished"])
def test_nothing_is_saved_after_the_lock_was_taken_over(tmp_path, inside):
  """The runs of a fine-tuning are locked by its workdir."""
  (tmp_path / inside).mkdir(parents=True, exist_ok=True)
  with workdir.lock(tmp_path), contextlib.suppress(StorageError), \
       open_checkpoints(tmp_path / inside) as checkpoints:
    checkpoints.save(1, make_state(1), {"step": 1, "config": "c1"}, wait=True)
    take_over(tmp_path)
    with pytest.raises(StorageError, match="process 8 on other has taken the lock over"):
      checkpoints.save(2, make_state(2), {}, wait=True)
  assert checkpoint.committed_steps(tmp_path / inside) == [1]


def test_a_save_whose_lock_is_taken_over_meanwhile_is_not_published(tmp_path, monkeypatch):
  write = step_folders.write_manifest

  def write_and_lose(*arguments, **options):
    write(*arguments, **options)
    take_over(tmp_path)

  monkeypatch.setattr(step_folders, "write_manifest", write_and_lose)
  with workdir.lock(tmp_path), contextlib.suppress(StorageError), \
       open_checkpoints(tmp_path) as checkpoints:
    with pytest.raises(StorageError, match="process 8 on other has taken the lock over"):
      checkpoints.save(1, make_state(1), {}, wait=True)
  assert not step_folders.named_like_steps(tmp_path / "checkpoints")


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StorageError, match="cannot be written"):
    open_checkpoints(tmp_path / "file")


def check_kills(workdir, kills, seed):
  """Kills processes that save without a pause, and checks the remaining steps."""
  rng = random.Random(seed)
  newest = 0
  for _ in range(kills):
    process = start("""
        checkpoints = open_checkpoints(sys.argv[1])
        like = jax.eval_shape(lambda: make_state(0))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                            like)
        restored = checkpoints.restore_latest(like)
        step = restored[1]["step"] if restored else 0
        print(step, flush=True)
        step += 1
        checkpoints.save(step, make_state(step), {"step": step}, wait=True)
        print(step, flush=True)
        while True:
          checkpoints.save(step + 1, make_state(step + 1), {"step": step + 1})
          print(step, flush=True)  # The save before this one is done.
          step += 1
        """, workdir)
    said = []
    reader = threading.Thread(target=lambda p=process, s=said: s.extend(int(x) for x in p.stdout))
    reader.start()
    while len(said) < 2 and process.poll() is None:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    reader.join()
    assert process.returncode == -signal.SIGKILL
    assert said[0] >= newest, "a complete step is lost"
    newest = max(checkpoint.committed_steps(workdir))
    assert newest >= said[-1]
    params, metadata = checkpoint.restore_params(workdir)
    assert metadata["step"] == newest
    assert all((x == newest).all() for x in jax.tree.leaves(params))
    assert not list((workdir / "checkpoints").glob("damaged-*")), "a kill damages nothing"


def test_a_step_that_is_deleted_while_it_is_listed_is_left_out(tmp_path, monkeypatch):
  for step in (5, 7):
    (tmp_path / str(step)).mkdir()
    (tmp_path / str(step) / "file").touch()
  iterdir = pathlib.Path.iterdir

  def deleting(path):
    if path.name == "5":
      shutil.rmtree(path)
    return iterdir(path)

  monkeypatch.setattr(pathlib.Path, "iterdir", deleting)
  assert checkpoint.find_steps(tmp_path) == [7]


def test_kill_during_a_save_leaves_the_step_before(tmp_path):
  check_kills(tmp_path, 2, seed=0)


@pytest.mark.slow
def test_many_kills_during_saves(tmp_path):
  check_kills(tmp_path, 12, seed=1)


def test_a_process_that_ends_with_an_error_finishes_its_save(tmp_path):
  process = start("""
      import contextlib
      with contextlib.closing(open_checkpoints(sys.argv[1])) as checkpoints:
        checkpoints.save(1, make_state(1), {"step": 1})
        raise SystemExit(3)
      """, tmp_path)
  assert process.wait(1200) == 3
  assert checkpoint.committed_steps(tmp_path) == [1]


def test_the_error_of_a_full_disk_is_the_only_line(tmp_path):
  """The test runs three times, because libraries print more if certain writes come first."""
  for i in range(3):
    process = start("""
        import resource
        try:
          with open_checkpoints(sys.argv[1]) as checkpoints:
            state = {"params": {f"w{i}": jnp.full((128, 1024), i, jnp.float32) for i in range(40)}}
            checkpoints.save(1, state, {}, wait=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            checkpoints.save(2, state, {}, wait=True)
        except checkpoint.StorageError as e:
          print("LINE", e, file=sys.stderr)
        """, tmp_path / str(i), stderr=subprocess.STDOUT)
    lines = process.communicate(timeout=1200)[0].splitlines()
    assert len(lines) == 1 and "could not be saved (File too large)" in lines[0], lines


# -------------------------------------------------------------- several processes


@contextlib.contextmanager
def two_processes(code, workdir):
  """Starts processes 0 and 1 of a run, with two CPU devices each; `make(step)` gives the state."""
  port = program.free_port()
  prelude = """
      import os, pathlib, resource
      import numpy as np
      from jax.experimental import multihost_utils
      from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
      jax.config.update("jax_cpu_collectives_implementation", "gloo")
      jax.config.update("jax_num_cpu_devices", 2)
      jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
      sharding = NamedSharding(Mesh(np.array(jax.devices()), "x"), P("x"))
      first = jax.process_index() == 0
      say = lambda *words: print("\\nSAID", *words, flush=True)
      make = jax.jit(lambda step: {"params": {"w": jnp.arange(2.**16) + step},
                                   "m": jnp.arange(8) * step}, out_shardings=sharding)
      """
  processes = [start(prelude + code, workdir, port, i) for i in range(2)]
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()


def read_lines(process):
  """Returns the marked lines of stdout, to which Gloo's threads print as well."""
  lines = process.communicate(timeout=1200)[0].splitlines()
  return [line.removeprefix("SAID ") for line in lines if line.startswith("SAID ")]


def test_two_processes_save_and_restore_and_one_restores_after_them(tmp_path):
  code = """
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          make(0))
      checkpoints = open_checkpoints(sys.argv[1], every_minutes=1e-9 if first else 1e9,
                                     every_steps=0)
      assert checkpoints.restore_latest(like) is None
      say("DUE", [s for s in range(1, 31) if checkpoints.is_due(s)])
      for step in (10, 20, 30):
        checkpoints.save(step, make(step), {"step": step}, wait=step == 30)
      say("STEPS", checkpoint.committed_steps(sys.argv[1]))
      checkpoints.close()
      multihost_utils.sync_global_devices("both have looked")
      if first:
        path = pathlib.Path(sys.argv[1], "checkpoints/30/params/manifest.ocdbt")
        path.write_bytes(path.read_bytes()[:-1])
      checkpoints = open_checkpoints(sys.argv[1])
      state, metadata = checkpoints.restore_latest(like)
      same = fingerprint(state) == fingerprint(make(20))
      say("RESTORED", metadata["step"], same)
      checkpoints.save(40, state, {"step": 40})
      checkpoints.close()
      """
  with two_processes(code, tmp_path) as processes:
    outs = [read_lines(process) for process in processes]
  assert [p.returncode for p in processes] == [0, 0], outs
  assert outs[0] == outs[1] == ["DUE [20, 30]", "STEPS [20, 30]", "RESTORED 20 True"]
  assert checkpoint.committed_steps(tmp_path) == [20, 40]
  one = NamedSharding(make_mesh(1, 1), PartitionSpec())
  like = {"params": {"w": jax.ShapeDtypeStruct((2**16,), jnp.float32, sharding=one)},
          "m": jax.ShapeDtypeStruct((8,), jnp.int32, sharding=one)}
  state, metadata = restore(tmp_path, like)
  assert metadata == {"step": 40}
  assert_same_bits(state, {"params": {"w": jnp.arange(2.**16) + 20}, "m": jnp.arange(8) * 20})


@pytest.mark.parametrize("is_late", [False, True])
def test_every_process_hashes_what_it_wrote_and_the_first_one_the_rest(tmp_path, is_late):
  """A process may see the name that process 0 has given to a folder late, as on NFS."""
  with two_processes(f"""
      from bertgpt.runs import manifest
      hashed, sha256_file = [], manifest.sha256_file

      def note(path):
        if {is_late} and not first:
          raise FileNotFoundError
        hashed.append(str(path).partition("/checkpoints/")[2].removeprefix("unfinished/"))
        return sha256_file(path)

      manifest.sha256_file = note
      state = make(1)
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          state)
      with open_checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, state, {{"step": 1}}, wait=True)
        say("HASHED", *sorted(hashed))
        hashed.clear()
        assert fingerprint(checkpoints.restore_latest(like)[0]) == fingerprint(state)
        say("HASHED", *sorted(hashed))
      """, tmp_path) as processes:
    outs = [[line.split()[1:] for line in read_lines(process)] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  step = tmp_path / "checkpoints" / "1"
  names = [f"1/{name}" for name in files_of(step) if name != "manifest.json"]
  own = [name for name in names if "/ocdbt.process_1/" in name and not is_late]
  assert bool(own) != is_late
  others = [name for name in names if name not in own]
  assert outs == [[others, others], [own, own]]
  manifest_lib.check_files(step, manifest_lib.ITEMS)


def test_a_process_that_ends_while_it_hashes_ends_the_others(tmp_path):
  with two_processes("""
      from bertgpt import errors
      from bertgpt.devices import shutdown
      from bertgpt.runs import manifest

      def fail(path):
        raise errors.StorageError("the disk is gone")

      try:
        with shutdown.end_together():
          if not first:
            manifest.sha256_file = fail
          open_checkpoints(sys.argv[1]).save(1, make(1), {"step": 1}, wait=True)
      except errors.UserError as e:
        os._exit(e.exit_code)
      """, tmp_path) as processes:
    assert [process.wait(1200) for process in processes] == [StorageError.exit_code] * 2
  assert checkpoint.committed_steps(tmp_path) == []


@pytest.mark.parametrize("affected", [0, 1])
def test_a_file_that_one_process_reads_wrongly_is_not_set_aside(tmp_path, affected):
  """Unless it is process 0, which reads again what another process finds wrong."""
  with two_processes(f"""
      from bertgpt.devices import shutdown
      from bertgpt.errors import PeerError
      from bertgpt.runs import manifest
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          make(0))
      with open_checkpoints(sys.argv[1]) as checkpoints:
        for step in (10, 20):
          checkpoints.save(step, make(step), {{"step": step}}, wait=True)
      right = manifest.sha256_file
      wrong = lambda path: "0" * 64 if "/20/" in str(path) else right(path)
      if jax.process_index() == {affected}:
        manifest.sha256_file = wrong
      try:
        with shutdown.end_together(), open_checkpoints(sys.argv[1]) as checkpoints:
          say("RESTORED", checkpoints.restore_latest(like)[1]["step"])
      except PeerError as e:
        say("PEER", e)
        os._exit(0)
      """, tmp_path) as processes:
    lines = [read_lines(process) for process in processes]
  damaged = (tmp_path / "checkpoints" / "damaged-20-0").is_dir()
  if affected == 0:
    assert damaged and lines == [["RESTORED 10"]] * 2
  else:
    assert not damaged and checkpoint.committed_steps(tmp_path) == [10, 20]
    assert ", as another process reads it; process 0 finds it good. That host" in lines[0][0]


@pytest.mark.parametrize("affected", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("function", ["read_manifest", "sum_leaves"])
def test_a_checkpoint_is_set_aside_only_if_all_processes_find_it_damaged(tmp_path, function,
                                                                         affected):
  """A host may not see a file, or its device may give wrong results."""
  with two_processes(f"""
      from bertgpt.errors import PeerError
      like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                          make(0))
      with open_checkpoints(sys.argv[1]) as checkpoints:
        for step in (10, 20):
          checkpoints.save(step, make(step), {{"step": step}}, wait=True)
      right, calls = checkpoint.{function}, []
      def wrong(found):
        calls.append(found)
        if len(calls) > 1:
          return right(found)
        if {function!r} == "read_manifest":
          raise checkpoint.Damaged("a file is missing")
        return np.asarray(right(found)) + np.uint32(1)
      with open_checkpoints(sys.argv[1]) as checkpoints:
        if jax.process_index() in {affected}:
          checkpoint.{function} = wrong
        try:
          say("RESTORED", checkpoints.restore_latest(like)[1]["step"])
        except PeerError as e:
          say("PEER", e)
      """, tmp_path) as processes:
    lines = [read_lines(process) for process in processes]
  assert [p.returncode for p in processes] == [0, 0], lines
  if len(affected) == 2:
    assert lines == [["RESTORED 10"]] * 2
    assert (tmp_path / "checkpoints" / "damaged-20-0").is_dir()
    return
  for (line,) in lines:
    found = ["'damaged'" if i in affected else "'good'" for i in range(2)]
    assert line.startswith(f"PEER {tmp_path}/checkpoints: step 20: {found[0]} in process 0, "
                           f"{found[1]} in process 1")
  assert checkpoint.committed_steps(tmp_path) == [10, 20]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_cannot_write_reports_it_at_once(tmp_path, failing):
  """The other process waits in Orbax until the run ends, which is tested elsewhere."""
  with two_processes(f"""
      checkpoints = open_checkpoints(sys.argv[1])
      checkpoints.save(1, make(1), {{"step": 1}}, wait=True)
      if jax.process_index() == {failing}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
      try:
        checkpoints.save(2, make(2), {{"step": 2}}, wait=True)
      except checkpoint.StorageError as e:
        say(e)
        os._exit(e.exit_code)
      """, tmp_path) as processes:
    assert "File too large" in read_lines(processes[failing])[0]
    assert processes[failing].returncode == StorageError.exit_code
  assert checkpoint.committed_steps(tmp_path) == [1]


def test_a_step_that_orbax_has_not_completed_is_not_published(tmp_path, monkeypatch):
  """Below a folder with brackets Orbax does not see the files that it should merge, and warns."""
  path = tmp_path / "a[b]"
  with pytest.raises(ConfigError, match=r"no checkpoint can be saved in .* path has a \["):
    open_checkpoints(path)
  monkeypatch.setattr(step_folders, "check_name", lambda path: None)
  with open_checkpoints(path) as checkpoints, pytest.raises(
      StorageError, match="step 1 could not be saved .*written no (params|rest)/manifest.ocdbt"):
    checkpoints.save(1, make_state(1), {"step": 1}, wait=True)
  assert checkpoint.committed_steps(path) == []


def test_a_link_to_a_disk_that_is_not_mounted_is_called_so(tmp_path):
  (tmp_path / "checkpoints").symlink_to(tmp_path / "none" / "disk")
  with pytest.raises(StorageError, match="is a link to .*/none/disk, which is not there. Mount it"):
    open_checkpoints(tmp_path)
