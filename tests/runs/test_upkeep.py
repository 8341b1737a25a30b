"""`bertgpt verify` and `bertgpt rollback`, through the command line."""

import json
import shutil

import pytest
from program import STEPS, curves, fingerprints, flip_bit

from bertgpt import cli
from bertgpt.config import finetuning
from bertgpt.config.stored import to_json
from bertgpt.runs import checkpoint, history, manifest, upkeep, workdir


@pytest.fixture
def copy(finished_run, tmp_path):
  """Returns a copy of a run with checkpoints at 20, 30 and 40."""
  return shutil.copytree(finished_run, tmp_path / "run")


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*"))
          if path.is_file()}


def verify(path):
  return cli.main(["verify", f"--workdir={path}"])


def roll_back(path, step):
  return cli.main(["rollback", f"--workdir={path}", f"--to={step}"])


def test_good_checkpoints_are_called_so_and_nothing_is_changed(copy, capsys):
  before = contents(copy)
  assert verify(copy) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(":")[0] for line in lines] == [f"checkpoints/{s}" for s in (20, 30, 40)]
  assert all(": good, " in line for line in lines)
  assert contents(copy) == before


def test_damage_is_found_wherever_it_is_and_nothing_is_changed(copy, capsys):
  """Kinds of damage: a flipped bit, wrong values with correct hashes, a folder without files."""
  flip_bit(copy / "checkpoints" / "20")
  path = copy / "checkpoints" / "30" / manifest.MANIFEST
  content = json.loads(path.read_text())["content"]
  content["leaves"]["params/mlm/bias"][1] ^= 1
  path.write_text(manifest.encode(content))
  (copy / "checkpoints" / "99").mkdir()
  (copy / "checkpoints" / "99" / "file").touch()
  before = contents(copy)
  assert verify(copy) == 65
  damaged = [line.partition(": ") for line in capsys.readouterr().out.splitlines()
             if "DAMAGED" in line]
  assert [name for name, _, _ in damaged] == [f"checkpoints/{s}" for s in (20, 30, 99)]
  assert "has changed since it was written" in damaged[0][2]
  assert "params/mlm/bias differs from the saved array" in damaged[1][2]
  assert contents(copy) == before


def test_links_are_as_good_as_their_files(copy, tmp_path):
  """As in a snapshot in the cache of huggingface_hub."""
  (tmp_path / "blobs").mkdir()
  files = [path for path in (copy / "checkpoints").rglob("*") if path.is_file()]
  for i, path in enumerate(files):
    path.rename(tmp_path / "blobs" / str(i))
    path.symlink_to(tmp_path / "blobs" / str(i))
  assert verify(copy) == 0
  (tmp_path / "blobs" / "0").unlink()
  assert verify(copy) == 65


def test_a_checkpoint_that_the_training_deletes_meanwhile_is_not_called_damaged(copy):
  lines = upkeep.verify(copy)
  assert next(lines)[0].startswith("checkpoints/20: good")
  shutil.rmtree(copy / "checkpoints" / "30")
  ((line, is_good),) = lines
  assert line.startswith("checkpoints/40: good") and is_good


def test_folders_without_a_run_or_a_checkpoint(copy, tmp_path, capsys):
  assert verify(tmp_path / "none") == 2
  shutil.rmtree(copy / "checkpoints")
  assert verify(copy) == 65
  assert "no such folder" in capsys.readouterr().err.splitlines()[0]


def test_a_rollback_sets_aside_what_is_later(copy, capsys):
  whole = (copy / "metrics.jsonl").read_bytes()
  reports = {name: (copy / name).read_bytes() for name in upkeep.REPORTS}
  (copy / workdir.ID_FILE).write_text("a1b2\n")
  assert roll_back(copy, 20) == 0
  assert checkpoint.committed_steps(copy) == [20]
  assert {path.name for path in (copy / "checkpoints").glob("rolled-back-*")} == {
      "rolled-back-30-0", "rolled-back-40-0"}
  assert max(step for step, _ in curves(copy)["train/loss"]) == 20
  assert (copy / "metrics-before-rollback-1.jsonl").read_bytes() == whole
  for name, content in reports.items():
    aside = "-before-rollback-1.".join(name.split("."))
    assert not (copy / name).exists() and (copy / aside).read_bytes() == content
  assert history.read(copy)[-1] == {"event": "rollback", "to": 20, "checkpoints": [40, 30]}
  out = capsys.readouterr().out
  assert "rolled-back-30-0" in out and "at step 20" in out
  assert "report-before-rollback-1.html, loss-before-rollback-1.png" in out
  assert not (copy / workdir.ID_FILE).exists(), "trackers take no points before their last one"
  assert roll_back(copy, 20) == 0  # Nothing is left to do.
  assert checkpoint.committed_steps(copy) == [20]


@pytest.mark.parametrize("step, code, fragment", [
    (25, 2, "Choose one of 20, 30, 40"), (30, 65, "checkpoints/30 is damaged")])
def test_a_rollback_to_what_is_not_there_changes_nothing(copy, capsys, step, code, fragment):
  flip_bit(copy / "checkpoints" / "30")
  before = contents(copy)
  assert roll_back(copy, step) == code
  assert fragment in capsys.readouterr().err
  assert {k: v for k, v in contents(copy).items() if k.name != ".lock"} == {
      k: v for k, v in before.items() if k.name != ".lock"}


def test_a_run_of_a_fine_tuning_is_not_rolled_back(copy, capsys, tmp_path):
  """`bertgpt train` refuses it, and `bertgpt finetune` would not continue from there."""
  (tmp_path / "tuning").mkdir()
  config = finetuning.base()
  (tmp_path / "tuning" / "config.json").write_text(to_json(config))
  run = copy.rename(tmp_path / "tuning" / "lr0.001-seed0")
  before = contents(run)
  assert roll_back(run, 20) == 2
  assert "is a run of a fine-tuning, which does not continue from" in capsys.readouterr().err
  assert contents(run) == before


def test_a_run_that_is_being_trained_is_not_rolled_back(copy, capsys):
  with workdir.lock(copy):
    assert roll_back(copy, 20) == 2
  assert "in use" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_trained_again_after_a_rollback_ends_the_same(program, copy, finished_run):
  assert roll_back(copy, 20) == 0
  assert program.train(copy).returncode == 0
  assert fingerprints(copy) == fingerprints(finished_run)
  assert curves(copy) == curves(finished_run)


@pytest.mark.slow
def test_steps_that_are_left_out_are_not_trained(program, copy):
  assert roll_back(copy, 20) == 0
  skip = "--config.train.skip_steps=((23, 25), (31, 38))"
  result = program.train(copy, skip)
  assert result.returncode == 0, result.stderr
  trained = [step for step, _ in curves(copy)["train/loss"]]
  assert trained == [*range(1, 23), *range(26, 31), 39, 40]
  assert checkpoint.committed_steps(copy)[-1] == STEPS
  assert program.train(copy).returncode == 2
  result = program.train(copy, skip)
  assert result.returncode == 0, result.stderr


def test_a_rollback_of_a_run_without_checkpoints_says_so(copy, capsys):
  shutil.rmtree(copy / "checkpoints")
  capsys.readouterr()
  assert roll_back(copy, 0) == 65
  assert "holds no checkpoint. Restore one from a backup" in capsys.readouterr().err
