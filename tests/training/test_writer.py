"""The writer of what a run logs: curves have every step once, a terminal shows one live line."""

import json
import os
import subprocess
import sys
import termios

import pytest

from bertgpt.runs import metrics_file
from bertgpt.training import progress_line
from bertgpt.training.writer import Writer


def test_a_resumed_curve_has_every_step_once(tmp_path):
  def write(first, steps):
    writer = Writer(tmp_path, first_step=first, last_step=9, tensorboard=True)
    for step in steps:
      writer.write(step, {"train/loss": step / 10})
    writer.close()

  write(0, [1, 2, 3, 4])
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 5, "train/lo')  # Killed while writing.
  write(2, [3, 4, 5])
  points = metrics_file.read_curves(tmp_path)["train/loss"]
  assert points == [(s, s / 10) for s in (1, 2, 3, 4, 5)]


def test_the_curves_of_a_start_without_a_checkpoint_are_set_aside(tmp_path, capsys):
  for value in (1.0, 2.0, 3.0):
    writer = Writer(tmp_path, first_step=0, last_step=9, tensorboard=False)
    writer.write(1, {"train/loss": value})
    writer.close()
  assert metrics_file.read_curves(tmp_path) == {"train/loss": [(1, 3.0)]}
  assert (tmp_path / "metrics-before-1.jsonl").read_text() == '{"step": 1, "train/loss": 1.0}\n'
  assert (tmp_path / "metrics-before-2.jsonl").read_text() == '{"step": 1, "train/loss": 2.0}\n'
  assert capsys.readouterr().err.count("set aside") == 2


def test_tensorboard_reads_the_events(tmp_path):
  import event_files  # Skips the test without tensorboardX.
  writer = Writer(tmp_path, first_step=0, last_step=9, tensorboard=True)
  writer.write(3, {"eval/validation/mlm_loss": 2.5})
  writer.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  values = [(e.step, v.tag, v.simple_value) for e in event_files.read(path.read_bytes())
            for v in e.summary.value]
  assert values == [(3, "eval/validation/mlm_loss", 2.5)]


@pytest.mark.hf
def test_a_training_that_logs_does_not_import_pytorch(recipe, tmp_path):
  """Its import would stop the loop for seconds, and load its own CUDA libraries next to JAX's."""
  pytest.importorskip("torch")
  code = ("import sys; from bertgpt import cli; code = cli.main(sys.argv[1:]); "
          "sys.exit(code or ('torch was imported' if 'torch' in sys.modules else 0))")
  result = subprocess.run(
      [sys.executable, "-c", code, "train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}",
       "--config.phases[0].steps=4", "--config.log.tensorboard=True"],
      capture_output=True, text=True, timeout=1200)
  assert result.returncode == 0, result.stderr
  assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_only_the_first_process_writes(tmp_path):
  writer = Writer(tmp_path, first_step=0, last_step=9, tensorboard=True, active=False)
  writer.write(1, {"train/loss": 1.0})
  writer.close()
  assert list(tmp_path.iterdir()) == []


SCALARS = {"train/loss": 6.3125, "train/learning_rate": 1e-4, "train/grad_norm": 1.2,
           "train/skipped_steps": 0, "perf/step_seconds": 0.052,
           "perf/tokens_per_second": 78_000.0, "perf/mfu": 0.41}


@pytest.mark.parametrize("width, line", [
    (200, "step 120/4000  loss 6.312  lr 1.0e-04  |g| 1.20  52 ms  78.0k tok/s  MFU 41%  "
          "ETA 1:03:21"),
    (79, "step 120/4000  loss 6.312  lr 1.0e-04  52 ms  78.0k tok/s  MFU 41%  ETA 1:03:21"),
    (60, "step 120/4000  loss 6.312  78.0k tok/s  MFU 41%  ETA 1:03:21"),
    (40, "step 120/4000  loss 6.312  ETA 1:03:21"),
    (10, "step 120/4"), (-1, "")])
def test_progress_line_says_what_matters_in_the_room_there_is(width, line):
  assert progress_line.fit(progress_line.make_parts(120, 4000, SCALARS, 3801), width) == line


def screen_of(output):
  """Returns what a terminal shows: text after a carriage return overwrites the line."""
  lines = []
  for text in output.replace("\r\n", "\n").split("\n"):
    shown = ""
    for piece in text.split("\r"):
      shown = piece + shown[len(piece):]
    lines.append(shown.rstrip())
  return lines


def test_a_terminal_shows_one_live_line_and_messages_of_their_own(tmp_path):
  code = ("import pathlib, sys\nfrom bertgpt.training.writer import Writer\n"
          f"scalars = {SCALARS}\n"
          f"w = Writer(pathlib.Path({str(tmp_path)!r}), first_step=0, last_step=3000,"
          " tensorboard=False)\n"
          "w.progress(1, scalars | {'train/loss': 1e6})\nw.progress(1000, scalars)\n"
          "w.message('evaluated' + '  accuracy 0.1234' * 4)\n"
          "w.progress(2000, scalars)\nw.progress(3000, scalars)\n"
          "w.close()\nprint('bertgpt train: the end', file=sys.stderr)")
  ours, theirs = os.openpty()
  termios.tcsetwinsize(theirs, (24, 60))
  subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, timeout=1200)
  os.close(theirs)
  output = os.read(ours, 10_000).decode()
  os.close(ours)
  lines = screen_of(output)
  assert [line.strip().split("  ")[0] for line in lines] == [
      "step 1000/3000", "evaluated", "0.1234", "step 3000/3000", "bertgpt train: the end", ""]
  assert max(map(len, lines)) < 60, "the live line would wrap"
  assert lines[3].endswith("ETA 0:00:00")
  assert output.count("ETA") == 3, "the first line is too early for one"


def test_jsonl_is_one_object_a_line(tmp_path):
  writer = Writer(tmp_path, first_step=0, last_step=9, tensorboard=False)
  writer.write(1, {"a": 1.0})
  writer.close()
  assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": 1.0}
