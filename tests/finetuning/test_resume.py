"""A run that was stopped or killed continues, and its end is the same bit for bit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import program
import pytest

from bertgpt import cli
from bertgpt.config import finetuning as finetune_config
from bertgpt.finetuning import resume
from bertgpt.runs import checkpoint, manifest, metrics_file

# Two batches per epoch, twelve steps, with dropout.
FIELDS = ("--config.batch_size=8", "--config.epochs=6", "--config.dropout=0.1",
          "--config.eval.every_epoch=true", "--config.log.every_steps=1", "--config.seeds=0,1",
          "--config.save=all", "--config.checkpoint.every_steps=4", "--config.eval.batch_size=8")
NAME = "lr0.01-seed1"
# The program gets a signal in its second run: after a step was started, or when the evaluation
# after this step reads its first batch.
SCRIPT = """
import signal, sys
from bertgpt import cli
from bertgpt.finetuning import evaluation
from bertgpt.training.metrics import LateMetrics
push, put_batch = LateMetrics.push, evaluation.put_batch
step, number, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
runs = last = 0
def send(here):
  if (runs, last, here) == (2, step, place):
    signal.raise_signal(number)
def push_and_send(self, at, sums):
  global runs, last
  runs, last = runs + (at == 1), at
  push(self, at, sums)
  send("step")
def put_and_send(*arguments):
  send("evaluation")
  return put_batch(*arguments)
LateMetrics.push, evaluation.put_batch = push_and_send, put_and_send
sys.exit(cli.main(sys.argv[4:]))
"""


def arguments(tuning, init, out, *fields):
  return ["finetune", f"--config={tuning}", f"--init={init}", f"--workdir={out}", *FIELDS, *fields]


@pytest.fixture(scope="module")
def undisturbed(tuning, finished_bert, tmp_path_factory):
  out = tmp_path_factory.mktemp("undisturbed") / "out"
  assert cli.main(arguments(tuning, finished_bert, out)) == 0
  return out


def start(tuning, init, out, step, number, place="step"):
  environment = os.environ | {"PYTHONPATH": str(program.ROOT)}
  return subprocess.run([sys.executable, "-c", SCRIPT, str(step), str(int(number)), place,
                         *arguments(tuning, init, out)], env=environment, text=True,
                        capture_output=True, check=False)


def leaves_of(out: pathlib.Path) -> dict:
  """Name, type and fingerprint of all parameters after the last step."""
  return manifest.read_manifest(out / NAME / "checkpoints" / "12")["leaves"]


def curves_of(out: pathlib.Path) -> dict:
  return {tag: points for tag, points in metrics_file.read_curves(out / NAME).items()
          if not tag.startswith("perf/")}


def results_of(out: pathlib.Path) -> list:
  return [{k: v for k, v in run.items() if k != "seconds"}
          for run in json.loads((out / "results.json").read_text())["runs"]]


@pytest.mark.parametrize("number, place, step, code, least", [
    pytest.param(signal.SIGTERM, "step", 7, 75, 7, marks=pytest.mark.slow),
    # An epoch ends here; its evaluation is still to be done.
    pytest.param(signal.SIGTERM, "step", 8, 75, 8, marks=pytest.mark.slow),
    # There is no checkpoint of this step yet.
    pytest.param(signal.SIGTERM, "evaluation", 10, 75, 10, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, "evaluation", 12, 75, 12, marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, "step", 12, 75, 12, marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, "step", 11, -9, 4, marks=pytest.mark.slow),
])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    undisturbed, tuning, finished_bert, tmp_path, capsys, number, place, step, code, least):
  out = tmp_path / "out"
  stopped = start(tuning, finished_bert, out, step, number, place)
  assert stopped.returncode == code, stopped.stderr
  if number == signal.SIGTERM:
    assert f"stopped in run {NAME} at step {step} with a checkpoint saved" in stopped.stderr
  assert len(results_of(out)) == 1 and not (out / NAME / "config.json").exists()

  capsys.readouterr()
  assert cli.main(arguments(tuning, finished_bert, out)) == 0
  resumed = [int(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().err.splitlines()
             if f"{NAME}: resuming after step " in line]
  assert len(resumed) == 1 and least <= resumed[0] <= step
  assert leaves_of(out) == leaves_of(undisturbed)
  assert results_of(out) == results_of(undisturbed)
  assert curves_of(out) == curves_of(undisturbed)
  written = sorted(p.name for p in (undisturbed / NAME / "predictions").iterdir())
  assert sorted(p.name for p in (out / NAME / "predictions").iterdir()) == written
  for name in written:
    assert (out / NAME / "predictions" / name).read_bytes() == (
        undisturbed / NAME / "predictions" / name).read_bytes()
  assert not list(out.glob(f"*/{resume.FOLDER}"))


def test_a_state_that_is_removed_is_named(tmp_path, capsys):
  """Another version of the program writes another fingerprint."""
  config, folder = finetune_config.base(), tmp_path / "lr1"
  with resume.open_saves(folder, config) as saves:
    saves.save(3, {"x": jnp.zeros(2)}, {"fingerprint": "a"}, wait=True)
  resume.clear(folder, {"fingerprint": "a"})
  assert checkpoint.committed_steps(folder / resume.FOLDER) == [3]
  assert not capsys.readouterr().err
  resume.clear(folder, {"fingerprint": "b"})
  assert f"note: {folder}: this run starts over, because" in capsys.readouterr().err
  assert not list(folder.iterdir())
  resume.clear(folder, {"fingerprint": "b"})
  assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_state_of_other_rows_is_not_continued(undisturbed, tuning, finished_bert, glue, tmp_path,
                                                capsys):
  """The command is refused. After the stopped run is deleted, it trains with the new rows."""
  out, moved = tmp_path / "out", tmp_path / "moved"
  stopped = start(tuning, finished_bert, out, 7, signal.SIGTERM)
  assert stopped.returncode == 75, stopped.stderr
  (out / "results.json").unlink()  # As if the first run had been stopped.
  shutil.copytree(glue, moved)
  path = moved / "SST-2" / "train.tsv"
  path.write_text(path.read_text().replace("The", "A", 1))
  capsys.readouterr()
  again = arguments(tuning, finished_bert, out, f"--config.task.data={moved}")
  assert cli.main(again) == 2
  assert f"{NAME}, which was stopped, began with another task.data" in capsys.readouterr().err
  assert (out / NAME / resume.FOLDER).is_dir()
  shutil.rmtree(out / NAME)
  assert cli.main(again) == 0
  assert "resuming" not in capsys.readouterr().err
  assert leaves_of(out) != leaves_of(undisturbed)
