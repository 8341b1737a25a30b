"""Several processes on one mesh: the losses of one process, their logs, and who is slow."""

import json
import os
import signal
import subprocess
import sys

import pytest
import small_runs
import together
from program import (
    ROOT,
    TIMEOUT_S,
    assert_close_losses,
    free_port,
    rows_read,
    stopped_step,
)

from bertgpt import cli
from bertgpt.runs import checkpoint, metrics_file

SLOW, SLOW_S = 2, 3.0  # The process of four that is slow, and its seconds between two steps.


@pytest.mark.slow
def test_four_processes_that_share_the_parameters_give_the_losses_of_one():
  """Along two axes of the mesh, so that every layer communicates."""
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, str(ROOT / "tests" / "helpers" / "together.py"), str(free_port()), "4"]
  four = [subprocess.Popen([*command, str(i), "2", "2"], env=env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(4)]
  try:
    expected = together.train((1, 1, 1))
    for process in four:
      out, err = process.communicate(timeout=TIMEOUT_S)
      assert process.returncode == 0, err
      assert json.loads(out.splitlines()[-1]) == pytest.approx(expected, abs=1e-5)
  finally:
    for process in four:
      process.kill()
  assert len(set(expected)) == together.STEPS


def split_over(fsdp=1, tensor=1):
  return f"--config.mesh.fsdp={fsdp}", f"--config.mesh.tensor={tensor}"


def assert_done(results):
  assert [result.returncode for result in results] == [0] * len(results), results


@pytest.fixture(scope="module")
def run_of_four(program):
  """The workdir of a short run with one slow process."""
  path = program.folder / "four"
  assert_done(program.train_together(path, 4, "--config.phases[0].steps=10",
                                     *split_over(fsdp=2, tensor=2), signal_to=SLOW, slow_s=SLOW_S))
  return path


@pytest.mark.slow
def test_the_process_that_the_others_wait_for_is_named(run_of_four):
  """The times of the other processes arrive late, so only the last point must have them."""
  found = metrics_file.read_curves(run_of_four)
  last = {name: found[f"perf/{name}"][-1][1]
          for name in ("slowest_process", "slowest_seconds", "input_seconds", "step_seconds")}
  assert last["slowest_process"] == SLOW
  assert last["slowest_seconds"] >= SLOW_S / 2 and last["slowest_seconds"] >= last["input_seconds"]
  assert last["step_seconds"] >= SLOW_S / 2  # Process 0 may itself have come late to this step.


@pytest.mark.slow
def test_every_process_has_its_log(run_of_four):
  logs = sorted((run_of_four / "logs").iterdir())
  assert [log.name for log in logs] == [f"process-{i}.log" for i in range(4)]
  for log in logs:
    first, *_, last = log.read_text().splitlines()
    assert first.startswith("--- ") and last.startswith("--- ") and last.endswith("exit code 0")
  assert "step 10/10" in logs[0].read_text()
  assert f"process {SLOW} slowest" in logs[0].read_text()


@pytest.mark.slow
@pytest.mark.parametrize("count, mesh", [
    (2, split_over(tensor=2)), (4, split_over(tensor=4)), (4, split_over(fsdp=2, tensor=2)),
    (8, split_over(fsdp=2, tensor=2))], ids=str)
def test_more_meshes_across_processes_give_the_losses_of_one(program, finished_run, tmp_path, count,
                                                             mesh):
  path = tmp_path / "run"
  assert_done(program.train_together(path, count, *mesh))
  assert_close_losses(path, finished_run)


@pytest.mark.slow
def test_two_processes_save_at_the_same_steps_by_the_clock(program, tmp_path):
  """If one of them did not, the other would wait in its save. They ask every 10 steps."""
  path = tmp_path / "run"
  assert_done(program.train_together(
      path, 2, "--config.phases[0].steps=65", "--config.checkpoint.every_steps=0",
      "--config.checkpoint.every_minutes=0.02", "--config.checkpoint.keep=99", slow_s=0.1))
  *timed, last = checkpoint.committed_steps(path)
  assert len(timed) >= 2 and last == 65
  assert not any(step % 10 for step in timed) and min(timed) >= 20


@pytest.mark.slow
def test_a_run_of_two_processes_is_continued_by_one_three_and_six(program, tmp_path):
  """Each process reads its part of the rows that one process would read."""
  whole, path = tmp_path / "whole", tmp_path / "run"
  twelve = "--config.phases[0].batch_size=12", "--config.eval.batch_size=12"
  assert_done([program.train(whole, *twelve)])
  steps = [0]
  for count, mesh in ((2, split_over(fsdp=2)), (1, ()), (3, ())):
    results = program.train_together(path, count, *twelve, *mesh,
                                     signal_at=(steps[-1] + 6, signal.SIGTERM))
    assert [result.returncode for result in results] == [75] * count, results
    steps.append(checkpoint.committed_steps(path)[-1])
    assert {stopped_step(result.stderr) for result in results} == {steps[-1]}
  assert steps == sorted(set(steps)) and steps[-1] < 40
  assert_done(program.train_together(path, 6, *twelve))
  assert rows_read(path) == rows_read(whole)
  assert_close_losses(path, whole)


@pytest.mark.slow
def test_two_processes_score_another_validation_set_as_one(program, tmp_path):
  (tmp_path / "own.txt").write_text(small_runs.make_text(13, seed=11))
  prepare = ["prepare", f"--config={program.folder}/recipe.py"]
  main, own = tmp_path / "main", tmp_path / "own"
  assert cli.main([*prepare, f"--out={main}"]) == 0
  assert cli.main([*prepare, f"--out={own}", f"--config.data.source=text:{tmp_path}/own.txt",
                   f"--config.tokenizer.path={main}/tokenizer",
                   "--config.data.validation_fraction=1"]) == 0
  flags = [f"--config.data.corpus={main}", f"--config.data.corpora=own={own}",
           "--config.eval.corpora=True"]
  assert_done([program.train(tmp_path / "one", *flags)])
  assert_done(program.train_together(tmp_path / "two", 2, *flags))
  one, two = (metrics_file.read_curves(tmp_path / name) for name in ("one", "two"))
  for tag in ("eval/own/mlm_loss", "eval/own/nsp_accuracy", "eval/validation/mlm_loss"):
    assert [step for step, _ in one[tag]] == [20, 40]
    assert dict(two[tag]) == pytest.approx(dict(one[tag]), abs=1e-4)
  assert_close_losses(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_are_refused(program, tmp_path):
  results = program.train_together(tmp_path / "run", 3)
  for result in results:
    assert result.returncode == 2
    first, *_ = result.stderr.splitlines()
    assert first.startswith("bertgpt train: phases[0]: ") and "data x fsdp = 3 devices" in first
    assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()
