"""bertgpt.runs.folder_kinds: messages say what a folder is, and what to give instead."""

import pathlib
import shutil

import pytest

from bertgpt import cli
from bertgpt.errors import ConfigError
from bertgpt.runs import folder_kinds


@pytest.fixture
def sweep(finished_bert, tmp_path):
  """The folder of a sweep with one run."""
  shutil.copytree(finished_bert, tmp_path / "sweep" / "000")
  (tmp_path / "sweep" / "sweep.json").write_text("[]")
  return tmp_path / "sweep"


def error(capsys, *argv) -> str:
  capsys.readouterr()
  assert cli.main([str(a) for a in argv]) == 2
  return capsys.readouterr().err


def test_the_folder_of_a_sweep_is_called_so(sweep, capsys):
  for command in ("verify", "goodput", "fill"):
    text = ["a [MASK]"] if command == "fill" else []
    line = error(capsys, command, f"--workdir={sweep}", *text)
    assert f"is the folder of a sweep. Give one of its runs, such as {sweep}/000" in line
  with pytest.raises(ConfigError, match="is the folder of a sweep .*Name a new or an empty folder"):
    folder_kinds.check_unused(sweep)


@pytest.mark.parametrize("command", ["verify", "goodput", "evaluate", "export", "rollback"])
def test_a_model_of_transformers_is_called_so(command, tmp_path, capsys):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  flags = {"export": [f"--out={tmp_path}/out"], "rollback": ["--to=1"]}.get(command, [])
  line = error(capsys, command, f"--workdir={tmp_path}", *flags)
  assert f"--workdir {tmp_path}: holds a model of transformers. Turn it into a run with" in line


def test_a_sweep_is_not_put_into_a_run(finished_bert, recipe, capsys):
  line = error(capsys, "sweep", f"--config={recipe}", f"--workdir={finished_bert}")
  assert "is the folder of a run" in line


def test_a_fine_tuning_is_not_trained_on(tuned, recipe, capsys):
  line = error(capsys, "train", f"--config={recipe}", f"--workdir={tuned}/lr0.01-seed0")
  assert "holds the weights of a fine-tuning run. Name another folder" in line
  line = error(capsys, "train", f"--config={recipe}", f"--workdir={tuned}")
  assert "is a fine-tuning workdir" in line


def test_what_this_program_made_is_known(finished_bert, tuned, tmp_path):
  made = [finished_bert, tuned, tuned / "lr0.01-seed0"]
  assert all(map(folder_kinds.is_ours, made))
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  assert not folder_kinds.is_ours(tmp_path) and not folder_kinds.is_ours(pathlib.Path("none"))
