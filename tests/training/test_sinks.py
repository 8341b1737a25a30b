"""bertgpt.training.sinks: logging and trackers can neither end nor block training."""

import os
import subprocess
import sys

from bertgpt.runs import metrics_file
from bertgpt.training.writer import Writer

# A limit on file sizes acts like a full disk: writes fail, even in the middle of a record.
LIMITED = """
import pathlib, resource, sys
from bertgpt.training.writer import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
writer = Writer(pathlib.Path(sys.argv[1]), first_step=0, last_step=500, tensorboard=True)
for step in range(1, 501):
  writer.write(step, {"train/loss": 1.0})
writer.close()
print("done")
"""


def make_writer(path, first_step=0, **options):
  return Writer(path, first_step=first_step, last_step=9, **{"tensorboard": True} | options)


def run_limited(path):
  return subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True,
                        timeout=1200)


def test_a_full_disk_costs_points_and_a_line_per_file(tmp_path):
  result = run_limited(tmp_path)
  assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
  lines = result.stderr.splitlines()
  assert len(lines) == 2 and all("cannot be written (File too large)" in line for line in lines)
  assert "metrics.jsonl" in lines[0] + lines[1] and "tensorboard" in lines[0] + lines[1]
  steps = [step for step, _ in metrics_file.read_curves(tmp_path)["train/loss"]]
  assert steps == list(range(1, len(steps) + 1)) and len(steps) > 20


def test_places_that_cannot_be_written_cost_a_line_each(tmp_path, capsys):
  (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
  (tmp_path / "tensorboard").write_text("a file")
  writer = make_writer(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, {"train/loss": 1.0})
  writer.close()
  assert capsys.readouterr().err.count("WARNING") == 2


def test_after_a_failed_write_the_next_line_is_whole(tmp_path):
  writer = make_writer(tmp_path, tensorboard=False)
  writer.write(1, {"train/loss": 1.0})
  (sink,) = writer._sinks
  sink._file.write(b'{"step": 2, "train/lo')
  sink._has_failed = True
  writer.write(3, {"train/loss": 3.0})
  writer.close()
  assert metrics_file.read_curves(tmp_path) == {"train/loss": [(1, 1.0), (3, 3.0)]}


def test_a_closed_terminal_does_not_end_the_work(tmp_path):
  code = ("import os, pathlib, sys\nfrom bertgpt import console\n"
          "sys.stdin.read()\n"  # Until the terminal is closed.
          "for _ in range(3): console.say('x' * 5000)\n"
          f"print('lost', flush=True)\npathlib.Path({str(tmp_path / 'end')!r}).touch()")
  ours, theirs = os.openpty()
  process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=theirs,
                             stderr=theirs)
  os.close(theirs)
  os.close(ours)
  process.communicate(timeout=1200)
  assert process.returncode == 0 and (tmp_path / "end").exists()
