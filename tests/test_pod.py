"""benchmarks/pod.py: its checks find faults, and it says yes or no, also with two processes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import ROOT, finish, free_port

from benchmarks import device_checks, pod, pod_checks, step_bertgpt
from bertgpt.config import recipes
from bertgpt.devices import sharding
from bertgpt.errors import ConfigError, PeerError

DEVICES = 8  # As tests/conftest.py has it.


@pytest.fixture
def config(tmp_path):
  found = recipes.load("bert_base")
  found.system.compilation_cache = ""
  return pod_checks.start(found, rehearse=True, folder=tmp_path)


@pytest.fixture
def two_variants(monkeypatch):
  """Leaves only the data and the fsdp mesh, one layer, and few steps."""
  variants = pod_checks.make_variants()
  few = {name: step_bertgpt.with_fields(variants[name], {"model.num_layers": 1})
         for name in ("data", "fsdp")}
  monkeypatch.setattr(pod_checks, "make_variants", lambda: few)
  monkeypatch.setattr(pod_checks, "LOSS_STEPS", 3)


def test_all_kinds_of_meshes_are_tried():
  shapes = {name: (variant.mesh.fsdp, variant.mesh.tensor, variant.phases[0].micro_batches)
            for name, variant in pod_checks.make_variants().items()}
  assert shapes == {"data": (1, 1, 1), "fsdp": (8, 1, 1), "tensor": (1, 2, 1),
                    "4 micro-batches": (1, 1, 4)}  # The model has two heads.


def test_devices_are_counted(config):
  ok, text = pod_checks.check_devices(config, DEVICES)
  assert ok and text == ("8 x cpu; processes: 1, with 8 devices each; slices or nodes: 1; "
                         "mesh: data=8, fsdp=1, tensor=1")
  ok, text = pod_checks.check_devices(config, 2 * DEVICES)
  assert not ok and text.startswith("8 devices instead of 16. Were all hosts started")


def test_a_wrong_sum_of_the_devices_is_seen(config, monkeypatch):
  """Two devices that hold the same number stand for one that is counted twice."""
  right = pod_checks._make_rows
  monkeypatch.setattr(pod_checks, "_make_rows", lambda mesh, size: right(mesh, size).at[3].set(2))
  ok, text = pod_checks.check_devices(config, None)
  assert not ok and "a sum over all devices is wrong" in text
  monkeypatch.setattr(pod_checks, "REHEARSED_BYTES", 64)
  ok, text = pod_checks.check_all_reduce(config, rehearse=True)
  assert not ok and "WRONG SUM" in text


def test_groups_are_those_of_the_mesh():
  """An independent oracle: the devices whose other coordinates in the mesh are equal."""
  mesh = sharding.make_mesh(pod_checks.make_variants()["tensor"])
  flat, grid = list(mesh.devices.flat), mesh.devices
  for place, axis in enumerate(mesh.axis_names):
    others = [size for i, size in enumerate(grid.shape) if i != place]
    expected = {frozenset(flat.index(device) for device in np.moveaxis(grid, place, -1)[index])
                for index in np.ndindex(*others)}
    assert {frozenset(group) for group in pod_checks.groups_along(mesh, axis)} == expected


@pytest.mark.parametrize("losses, problem", [
    ([7.0, 6.5], ""), ([7.0, 6.50005], ""), ([7.0, 6.501], "fsdp 1.0e-03"),
    ([7.0, float("nan")], "fsdp nan")])
def test_losses_that_differ_fail(losses, problem):
  ok, text = pod_checks.compare_losses({"data": [7.0, 6.5], "fsdp": losses})
  assert ok is not bool(problem) and problem in text


def test_losses_that_do_not_fall_fail():
  ok, text = pod_checks.compare_losses({"data": [7.0, 7.0], "fsdp": [7.0, 7.0]})
  assert not ok and text.endswith("the loss does not fall")


def test_the_losses_of_two_meshes_are_equal(config, two_variants):
  ok, text = pod_checks.check_losses(config)
  assert ok and "in 3 steps on data=8; differences, at most 0.0001: fsdp=8 " in text


@pytest.mark.slow
def test_another_batch_on_one_mesh_is_seen(config, two_variants, monkeypatch):
  make_batch, calls = device_checks.make_batch, []

  def other_row(variant):
    batch = make_batch(variant)
    batch["tokens"][0] += len(calls)  # As if one host read another row.
    calls.append(1)
    return batch

  monkeypatch.setattr(device_checks, "make_batch", other_row)
  ok, text = pod_checks.check_losses(config)
  assert not ok and "the loss does not fall" not in text


def test_a_changed_bit_is_seen():
  saved = {"a": jnp.array([0.0, jnp.nan]), "b": jnp.ones(3)}
  assert pod_checks.find_changed(saved, dict(saved)) == []
  assert pod_checks.find_changed(saved, saved | {"a": jnp.array([-0.0, jnp.nan])}) == ["a"]
  assert pod_checks.find_changed(saved, None) == ["nothing was restored"]


def test_a_checkpoint_is_read_back_and_a_damaged_one_fails(config, two_variants, tmp_path,
                                                           monkeypatch):
  path = tmp_path / "new" / "pod-check"
  ok, text = pod_checks.check_checkpoint(config, path)
  assert ok and "; 0 arrays differ after reading" in text
  assert not path.exists()
  save = pod_checks.checkpoint.Checkpoints.save

  def damage(self, *arguments, **how):
    save(self, *arguments, **how)
    file = max(path.glob("checkpoints/1/params/**/d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

  monkeypatch.setattr(pod_checks.checkpoint.Checkpoints, "save", damage)
  check = lambda: pod_checks.check_checkpoint(config, path)
  ok, text = pod.run_check("checkpoint", check, has_peers=False)
  assert not ok and "checkpoints" in text


def test_an_error_is_a_line_and_ends_the_peers():
  def fail():
    raise ValueError("no such\nkernel")

  assert pod.run_check("step", fail, has_peers=False) == (False, "no such kernel")
  with pytest.raises(pod.CheckFailed, match="FAILED  step        no such kernel") as e:
    pod.run_check("step", fail, has_peers=True)
  assert e.value.exit_code == 1

  def lose():
    raise PeerError("process 1 is lost")

  with pytest.raises(PeerError):
    pod.run_check("step", lose, has_peers=True)


def test_a_slow_network_fails_if_the_planner_knows_the_device(config, monkeypatch):
  monkeypatch.setattr(pod_checks, "REHEARSED_BYTES", 2**12)
  assert pod_checks.check_all_reduce(config, rehearse=False).text.endswith(
      "the planner does not know 'cpu': not compared")
  h100 = pod_checks.hardware.CHIPS["h100"]
  monkeypatch.setattr(pod_checks.hardware, "find_chip", lambda kind: h100)
  ok, text = pod_checks.check_all_reduce(config, rehearse=False)
  assert not ok and "(planner 360)" in text  # 450 GB/s, of which 80% are reached.
  slow = h100._replace(link_bandwidth=1.0)
  monkeypatch.setattr(pod_checks.hardware, "find_chip", lambda kind: slow)
  assert pod_checks.check_all_reduce(config, rehearse=False).ok


@pytest.mark.parametrize("flags, problem", [
    (["--rehearse"], "--workdir"), (["--workdir=x", "--devises=8"], "--devises=8"),
    (["--workdir=x", "--config=bert_bases"], "bert_bases"),
    (["--workdir=x", "--rehearse", "--config.mesh.fsdp=3"], "fsdp")])
def test_wrong_flags_are_one_message(flags, problem, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert pod.main(flags) == ConfigError.exit_code
  error = capsys.readouterr().err
  assert error.startswith("benchmarks.pod: ") and problem in error


def test_the_step_is_timed_next_to_its_prediction(config):
  ok, text = pod_checks.check_step(config, rehearse=True)
  assert ok and "16 x 32 tokens: " in text and ", planner " in text
  assert jax.device_count() == DEVICES


@pytest.mark.slow
def test_two_processes_agree_and_a_missing_device_is_a_no(tmp_path):
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "benchmarks.pod", "--rehearse", f"--workdir={tmp_path / 'w'}",
             "--devices=9"]
  port = free_port()
  two = [subprocess.Popen([*command, f"--distributed=127.0.0.1:{port},2,{i}"], env=env, text=True,
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
         for i in range(2)]
  try:
    first, second = map(finish, two)
  finally:
    for process in two:
      process.kill()
  assert first.returncode == second.returncode == 1, (first, second)
  # Gloo, the library of CPUs for collectives, writes to stdout too.
  lines, others = ([line for line in result.stdout.splitlines()
                    if line.startswith(("ok ", "FAILED ", "YES:", "NO:"))]
                   for result in (first, second))
  assert [line.split()[:2] for line in lines[:-1]] == [
      ["ok" if name != "devices" else "FAILED", name] for name in pod.NAMES], first
  assert "8 x cpu; processes: 2, with 4 devices each" in lines[0]
  assert lines[-1] == "NO: devices failed"
  assert not others and not list((tmp_path / "w").iterdir())
