"""Runs that are stopped, killed, moved, damaged or started twice end like an undisturbed run."""

import json
import random
import shutil
import signal

import pytest
from disturbances import fill_disk
from program import (
    STEPS,
    assert_close_losses,
    curves,
    evaluation_path,
    fingerprints,
    finish,
    flip_bit,
    kill_in_save,
    rows_read,
    stopped_step,
    wait_for,
    wait_for_save,
)

from bertgpt.report import goodput
from bertgpt.runs import checkpoint
from bertgpt.runs import manifest as manifest_lib

CHECKPOINTS = [20, 30, 40]


@pytest.fixture
def copy(finished_run, tmp_path):
  """Returns a copy of the finished run, which a test may change."""
  return shutil.copytree(finished_run, tmp_path / "run")


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*"))
          if path.is_file() and path.name != ".lock"}


def test_a_start_that_keeps_fewer_checkpoints_deletes_the_others_before_it_saves(program, copy):
  """Here, it saves none. On a full disk, the first save would end it before any is deleted."""
  assert program.train(copy, "--config.checkpoint.keep=1").returncode == 0
  assert checkpoint.committed_steps(copy) == CHECKPOINTS[-1:]


# -------------------------------------------------------------------- signals


@pytest.fixture(scope="module")
def stopped_run(program, finished_run, tmp_path_factory):
  """Returns a run that was stopped by SIGTERM and Ctrl-C before it ended."""
  path = tmp_path_factory.mktemp("stopped") / "run"
  return path, [program.train(path, signal_at=at)
                for at in ((13, signal.SIGTERM), (20, signal.SIGINT), None)]


def test_the_events_tell_how_each_start_ended_and_what_it_did(stopped_run):
  path, _ = stopped_run
  attempts = goodput.summarize(path).attempts
  assert [attempt.code for attempt in attempts] == [75, 75, 0]
  assert [attempt.first_step for attempt in attempts] == [0, 13, 20]
  assert [attempt.last_step for attempt in attempts] == [13, 20, STEPS]
  assert all(attempt.message.startswith("stopped at step") for attempt in attempts[:2])
  for attempt in attempts:  # Every second is counted once.
    assert sum(attempt.seconds.values()) == pytest.approx(attempt.end - attempt.start, abs=0.1)
    assert attempt.seconds.keys() >= {"start", "restore", "compile", "steps", "saving"}
    assert "repeated" not in attempt.seconds  # No step was lost.
  assert attempts[-1].seconds["report"] > 0


def test_a_signal_saves_the_step_and_exits_with_75(stopped_run):
  path, results = stopped_run
  assert [result.returncode for result in results] == [75, 75, 0]
  assert [stopped_step(result.stderr) for result in results[:2]] == [13, 20]
  assert "Traceback" not in "".join(result.stderr for result in results)
  assert "resuming after" not in results[0].stderr
  assert f"{path}: resuming after step 13\n" in results[1].stderr
  assert f"{path}: resuming after step 20\n" in results[2].stderr


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(stopped_run, finished_run):
  assert fingerprints(stopped_run[0]) == fingerprints(finished_run)


def test_a_resumed_run_logs_every_step_once_with_the_same_values(stopped_run, finished_run):
  found = curves(stopped_run[0])
  assert [step for step, _ in found["train/loss"]] == list(range(1, STEPS + 1))
  assert found == curves(finished_run)


def test_a_resumed_run_reads_the_same_rows(stopped_run, finished_run):
  assert rows_read(stopped_run[0]) == rows_read(finished_run)


def test_a_finished_run_may_be_started_again(program, copy):
  before = contents(copy / "checkpoints"), curves(copy)
  result = program.train(copy)
  assert result.returncode == 0 and f"{copy}: done, {STEPS} steps\n" in result.stderr
  assert (contents(copy / "checkpoints"), curves(copy)) == before


def test_no_deprecated_call_is_made(finished_run):
  text = finished_run.with_suffix(".stderr").read_text()
  assert f"step {STEPS}/{STEPS} " in text and "DeprecationWarning" not in text


@pytest.mark.slow
def test_a_finished_run_may_be_made_longer(program, tmp_path, finished_run):
  path = tmp_path / "run"
  assert program.train(path, "--config.phases[0].steps=11").returncode == 0
  assert checkpoint.committed_steps(path) == [10, 11]
  assert program.train(path).returncode == 0
  assert fingerprints(path) == fingerprints(finished_run)


def test_a_run_cannot_be_made_shorter_than_it_is(program, copy):
  result = program.train(copy, "--config.phases[0].steps=30")
  assert result.returncode == 2 and "phases[].steps" in result.stderr


@pytest.mark.slow
def test_a_closed_terminal_stops_a_run_as_a_signal_does(program, tmp_path, finished_run):
  path = tmp_path / "run"
  result = program.train(path, signal_at=(25, signal.SIGHUP))
  assert result.returncode == 75 and stopped_step(result.stderr) == 25
  assert program.train(path).returncode == 0
  assert fingerprints(path) == fingerprints(finished_run)


@pytest.mark.slow
def test_a_signal_in_a_save_waits_for_it(program, tmp_path, finished_run):
  path = tmp_path / "run"
  process = program.start(path)
  wait_for_save(process, path, 20)
  process.send_signal(signal.SIGTERM)
  result = finish(process)
  assert result.returncode == 75, result.stderr
  assert {20, stopped_step(result.stderr)} <= set(checkpoint.committed_steps(path))
  assert program.train(path).returncode == 0
  assert fingerprints(path) == fingerprints(finished_run)
  assert curves(path) == curves(finished_run)


@pytest.mark.slow
@pytest.mark.parametrize("every_steps, stops_at", [(20, 20), (0, STEPS)])
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(program, tmp_path, finished_run,
                                                             every_steps, stops_at):
  """At its evaluation, step 20 has no checkpoint yet, but the last step, 40, has one."""
  path = tmp_path / "run"
  arguments = (f"--config.eval.every_steps={every_steps}", "--config.checkpoint.every_steps=15",
               "--config.eval.batch_size=1")
  result = program.train(path, *arguments, signal_in_evaluation=(3, signal.SIGTERM, 0))
  assert result.returncode == 75, result.stderr
  assert stopped_step(result.stderr) == stops_at == checkpoint.committed_steps(path)[-1]
  assert evaluation_path(path).read_text().split() == ["0", "1", "2", "3"]
  assert program.train(path, *arguments).returncode == 0
  assert len(evaluation_path(path).read_text().split()) > 4 + 10
  assert fingerprints(path) == fingerprints(finished_run)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_stops_two_processes_at_one_batch(program, tmp_path):
  """The processes need a moment to agree, so each batch is made to take a second."""
  path = tmp_path / "run"
  results = program.train_together(path, 2, "--config.eval.batch_size=2", signal_to=1,
                                   signal_in_evaluation=(3, signal.SIGTERM, 1))
  assert [result.returncode for result in results] == [75, 75], results
  assert {stopped_step(result.stderr) for result in results} == {20}
  assert checkpoint.committed_steps(path)[-1] == 20


# -------------------------------------------------------------------- kill -9


@pytest.mark.slow
def test_a_run_killed_in_a_save_resumes(program, tmp_path, finished_run):
  process = program.start(tmp_path / "run")
  assert kill_in_save(process, tmp_path / "run", 20, 0.02).returncode == -signal.SIGKILL
  assert program.train(tmp_path / "run").returncode == 0
  assert fingerprints(tmp_path / "run") == fingerprints(finished_run)
  assert curves(tmp_path / "run") == curves(finished_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_ends_the_same(program, tmp_path, finished_run, seed):
  rng, path = random.Random(seed), tmp_path / "run"
  for step in (10, 20, 30):
    kill_in_save(program.start(path), path, step, rng.uniform(0, 0.3))
    program.train(path, signal_at=(step + rng.randint(1, 9), signal.SIGKILL))
  assert program.train(path).returncode == 0
  assert fingerprints(path) == fingerprints(finished_run)
  assert curves(path) == curves(finished_run)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_74_and_it_resumes(program, tmp_path, finished_run):
  path = tmp_path / "run"
  process = program.start(path)
  wait_for(lambda: checkpoint.committed_steps(path), process)
  fill_disk(process)
  result = finish(process)
  assert result.returncode == 74, result.stderr
  assert "could not be saved (File too large)" in result.stderr.splitlines()[-1]
  assert program.train(path).returncode == 0
  assert fingerprints(path) == fingerprints(finished_run)
  assert curves(path) == curves(finished_run)


# ------------------------------------------------------- meshes and processes


@pytest.mark.slow  # The test compiles for two meshes.
def test_another_mesh_gives_the_same_losses_from_the_same_rows(program, tmp_path, finished_run):
  path = tmp_path / "run"
  assert program.train(path, devices=8, signal_at=(13, signal.SIGTERM)).returncode == 75
  result = program.train(path, "--config.mesh.fsdp=2", "--config.mesh.tensor=2", devices=8)
  assert result.returncode == 0, result.stderr
  assert rows_read(path) == rows_read(finished_run)
  assert_close_losses(path, finished_run)


def test_two_processes_stop_together_and_one_resumes(program, tmp_path, finished_run):
  """Each of the two holds one half of the parameters."""
  path = tmp_path / "run"
  # JAX looks for the signal once a second, so the steps that are left must take longer.
  results = program.train_together(path, 2, "--config.mesh.fsdp=2",
                                   signal_at=(13, signal.SIGTERM), signal_to=1, slow_s=0.1)
  assert [result.returncode for result in results] == [75, 75], results
  stopped = {stopped_step(result.stderr) for result in results}
  assert stopped == {checkpoint.committed_steps(path)[-1]} and max(stopped) < STEPS
  assert program.train(path).returncode == 0
  assert rows_read(path) == rows_read(finished_run)
  assert_close_losses(path, finished_run)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_peer_ends_the_other_with_69_and_both_resume(program, tmp_path, finished_run,
                                                            victim):
  path = tmp_path / "run"
  results = program.train_together(path, 2, signal_at=(13, signal.SIGKILL), signal_to=victim)
  assert [results[victim].returncode, results[1 - victim].returncode] == [137, 69], results
  # The message is not always the last line, because JAX's threads write messages too.
  assert "another process of the run is gone" in results[1 - victim].stderr
  results = program.train_together(path, 2)
  assert [result.returncode for result in results] == [0, 0], results
  assert rows_read(path) == rows_read(finished_run)
  assert_close_losses(path, finished_run)


@pytest.mark.slow
def test_four_processes_finish_what_two_began(program, tmp_path, finished_run):
  path = tmp_path / "run"
  in_two = "--config.phases[0].micro_batches=2"
  results = program.train_together(path, 2, in_two, signal_at=(13, signal.SIGINT))
  assert [result.returncode for result in results] == [75] * 2, results
  results = program.train_together(path, 4, in_two)
  assert [result.returncode for result in results] == [0] * 4, results
  assert rows_read(path) == rows_read(finished_run)
  assert_close_losses(path, finished_run)


# ------------------------------------------------------------------- refusals


def test_a_second_run_is_refused_while_the_first_lives(program, tmp_path):
  lock = tmp_path / "run" / ".lock"
  first = program.start(tmp_path / "run")
  wait_for(lambda: lock.exists() and lock.read_text(), first)
  first.send_signal(signal.SIGSTOP)
  second = program.train(tmp_path / "run")
  first.kill()
  finish(first)
  assert second.returncode == 2
  assert len(second.stderr.splitlines()) == 1 and "in use" in second.stderr


def test_a_changed_config_is_refused_field_by_field(program, copy):
  before = contents(copy)
  result = program.train(copy, "--config.seed=1", "--config.model.dropout=0.2",
                         "--config.log.every_steps=5")
  assert result.returncode == 2
  assert "seed: 0 -> 1" in result.stderr and "model.dropout: 0.1 -> 0.2" in result.stderr
  assert "log.every_steps" not in result.stderr
  assert contents(copy) == before


def test_a_change_that_is_named_or_harmless_is_allowed(program, copy):
  result = program.train(copy, "--config.seed=1", "--config.log.every_steps=5",
                         "--allow_change=seed")
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("field, fragment", [
    ("log.group=a", "log.group='a': log.trackers='' does not read it"),
    ("optimizer.freeze=encodr", "optimizer.freeze='encodr': matches no parameter"),
    ("optimizer.freeze=^embeddings/", "  optimizer.freeze: '' -> '^embeddings/'")])
def test_a_change_without_effect_or_of_another_state_is_refused(program, copy, field, fragment):
  before = contents(copy)
  result = program.train(copy, f"--config.{field}", "--allow_change=optimizer.freeze")
  assert result.returncode == 2 and fragment in result.stderr.splitlines()[-1]
  assert contents(copy) == before


@pytest.mark.parametrize("name, fragment", [
    ("corpus", "another corpus"), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("tokenizer", "another tokenizer"), ("data_order", "in order 0")))])
def test_a_run_resumes_only_with_its_own_data_and_config(program, copy, name, fragment):
  for step in CHECKPOINTS:
    manifest = copy / "checkpoints" / str(step) / manifest_lib.MANIFEST
    content = json.loads(manifest.read_text())["content"]
    content["metadata"][name] = type(content["metadata"][name])()
    manifest.write_text(manifest_lib.encode(content))
  before = contents(copy)
  result = program.train(copy)
  assert result.returncode == 65 and fragment in result.stderr.splitlines()[-1]
  assert contents(copy) == before


# --------------------------------------------------------- damage, divergence


def test_the_checkpoint_before_a_damaged_one_is_used(program, copy, finished_run):
  flip_bit(copy / "checkpoints" / "40")
  result = program.train(copy)
  assert result.returncode == 0, result.stderr
  assert "WARNING" in result.stderr and "damaged" in result.stderr
  assert fingerprints(copy) == fingerprints(finished_run)


def test_nothing_is_overwritten_if_all_checkpoints_are_damaged(program, copy):
  for step in CHECKPOINTS:
    flip_bit(copy / "checkpoints" / str(step))
  before = sorted(contents(copy / "checkpoints").values())
  curves_before = curves(copy)
  for _ in range(2):
    assert program.train(copy).returncode == 65
  assert sorted(contents(copy / "checkpoints").values()) == before
  assert curves(copy) == curves_before


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(program, copy, finished_run):
  result = program.train(copy, "--config.phases[0].learning_rate=1e30",
                         "--config.phases[0].steps=80", "--config.train.max_bad_steps=10",
                         "--config.checkpoint.every_steps=2", "--config.checkpoint.keep=1",
                         "--allow_change=phases[0].learning_rate")
  assert result.returncode == 70
  assert "not finite" in result.stderr.splitlines()[-1]
  assert checkpoint.committed_steps(copy)[-1] == STEPS
  assert fingerprints(copy) == fingerprints(finished_run)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(program, copy):
  shutil.rmtree(copy / "checkpoints")
  before = curves(copy)
  result = program.train(copy)
  assert result.returncode == 65 and "has saved checkpoints" in result.stderr.splitlines()[-1]
  assert curves(copy) == before


@pytest.mark.slow
def test_a_run_that_is_begun_again_does_not_count_the_steps_of_the_former(program, copy):
  shutil.rmtree(copy / "checkpoints")
  (copy / "config.json").unlink()
  (copy / "skipped.jsonl").write_text('{"step": 1}\n')
  result = program.train(copy, "--config.phases[0].steps=4")
  assert result.returncode == 0, result.stderr
  (attempt,) = goodput.summarize(copy).attempts
  assert "repeated" not in attempt.seconds
  assert not (copy / "skipped.jsonl").exists()
  assert all((copy / f"{name}-before-1.jsonl").exists() for name in ("events", "skipped"))


@pytest.mark.slow
def test_observers_that_fail_change_nothing(program, tmp_path, finished_run):
  path = tmp_path / "run"
  (path / "metrics.jsonl").mkdir(parents=True)
  (path / "tensorboard").write_text("a file")
  result = program.train(path, "--config.log.tensorboard=True")
  assert result.returncode == 0, result.stderr
  assert result.stderr.count("WARNING") == 2
  assert fingerprints(path) == fingerprints(finished_run)
