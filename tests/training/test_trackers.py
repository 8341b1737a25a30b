"""bertgpt.training.trackers: every point arrives, and no tracker can block or end training."""

import contextlib
import json
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from bertgpt import cli
from bertgpt.config import base, choices
from bertgpt.errors import ConfigError, DivergedError
from bertgpt.runs import history, metrics_file, workdir
from bertgpt.training import trackers
from bertgpt.training.step_log import StepLog
from bertgpt.training.writer import Writer

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_S = 1200  # Only a hang takes so long.
# A package `wandb` that writes its calls to a file.
RECORDER = """
import json, pathlib

class Run:
  def __init__(self, options):
    self.file = pathlib.Path(options["dir"], "told")
    self.tell("init", options)
  def tell(self, *line):
    with self.file.open("a") as file:
      file.write(json.dumps(line) + chr(10))
  def log(self, scalars, step):
    self.tell("log", step, scalars)
  def finish(self, exit_code):
    self.tell("finish", exit_code)

def init(**options):
  return Run(options)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Installs a module `wandb` with the given text."""
  folder = tmp_path / "packages"
  folder.mkdir()

  def install(text):
    (folder / "wandb.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")

  return install


@pytest.fixture(autouse=True)
def patience(monkeypatch):
  """On a busy machine, a tracker may need more than the usual time to start."""
  monkeypatch.setattr(trackers, "CLOSE_S", TIMEOUT_S)


def make_config(name="wandb"):
  config = base()
  config.log.update(trackers=name, project="a project", group="a group")
  return config


def make_writer(path, config, first_step=0):
  return Writer(path, first_step=first_step, last_step=99, tensorboard=False,
                trackers=trackers.start(config, path))


def told(path):
  return [json.loads(line) for line in (path / "told").read_text().splitlines()]


def test_every_point_arrives_and_attempts_are_one_run(tmp_path, package):
  package(RECORDER)
  trackers.check(make_config())
  for first in (0, 2):
    writer = make_writer(tmp_path, make_config(), first)
    for step in (first + 1, first + 2):
      writer.write(step, {"train/loss": step / 2})
    writer.close()
  first, second = told(tmp_path)[:4], told(tmp_path)[4:]
  (_, options) = first[0]
  assert options["id"] == (tmp_path / "run_id").read_text().strip() and options["resume"] == "allow"
  assert (options["project"], options["group"]) == ("a project", "a group")
  assert options["config"]["optimizer"] == json.loads(json.dumps(base().optimizer.to_dict()))
  assert first[1:] == [["log", 1, {"train/loss": 0.5}], ["log", 2, {"train/loss": 1.0}],
                       ["finish", 0]]
  assert second[0] == first[0] and second[1] == ["log", 3, {"train/loss": 1.5}]
  assert metrics_file.read_curves(tmp_path)["train/loss"] == [(i, i / 2) for i in (1, 2, 3, 4)]


def test_a_start_from_step_0_is_another_run_of_the_tracker(recipe, finished_bert, tmp_path):
  """The first attempt was killed before its first checkpoint, so that its points are repeated."""
  path = shutil.copytree(finished_bert, tmp_path / "run")
  shutil.rmtree(path / "checkpoints")
  (path / "history.jsonl").unlink()
  history.add(path, "start")
  (path / "run_id").write_text("first\n")
  assert cli.main(["train", f"--config={recipe}:mlm_nsp", f"--workdir={path}"]) == 0
  assert not (path / "run_id").exists()


def test_the_exit_code_of_the_training_arrives(tmp_path, package):
  package(RECORDER)
  with pytest.raises(DivergedError), contextlib.closing(make_writer(tmp_path, make_config())):
    raise DivergedError("")
  assert told(tmp_path)[-1] == ["finish", DivergedError.exit_code]


def test_a_log_that_is_closed_twice_keeps_its_first_exit_code(tmp_path, package):
  """Of runs that are trained together, one diverges long before the others end."""
  package(RECORDER)
  writer = make_writer(tmp_path, make_config())
  try:
    raise DivergedError("")
  except DivergedError:
    writer.close()
  writer.close()
  assert [said for said in told(tmp_path) if said[0] == "finish"] == [
      ["finish", DivergedError.exit_code]]


def test_a_tracker_that_hangs_costs_its_points_and_a_line(tmp_path, package, capfd, monkeypatch):
  package("import time\ndef init(**options):\n  time.sleep(3600)\n")
  monkeypatch.setattr(trackers, "CLOSE_S", 0.5)
  monkeypatch.setattr(trackers, "MAX_WAITING", 100)
  writer = make_writer(tmp_path, make_config())
  child = writer._sinks[0]._child
  for step in range(20_000):  # More than pipe and queue can hold.
    writer.write(step, {"train/loss": 1.0})
  writer.close()
  assert child.wait(TIMEOUT_S) == -9
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith("WARNING: log.trackers=wandb: cannot be written (it is slow, or blocked)")
  assert len(metrics_file.read_curves(tmp_path)["train/loss"]) == 20_000


def test_trackers_that_hang_are_waited_for_at_the_same_time(tmp_path, package, monkeypatch, capfd):
  """A mapped sweep has one per run."""
  package("import time\ndef init(**options):\n  time.sleep(3600)\n")
  monkeypatch.setattr(trackers, "CLOSE_S", 1)
  logs, waits, wait = [], [], subprocess.Popen.wait
  monkeypatch.setattr(subprocess.Popen, "wait", lambda child, timeout=None: (
      waits.append(timeout or 0), wait(child, timeout))[1])
  for i in range(4):
    (path := tmp_path / f"{i:03d}").mkdir()
    logs.append(StepLog(make_config(), path, 0))
  for log in logs:
    log.end()
  for log in logs:
    log.close()
  assert len(waits) >= 4 and sum(waits) < 1.5  # One after the other would be waited for 4 seconds.
  assert capfd.readouterr().err.count("had not sent its last points after 1 s") == 4


@pytest.mark.parametrize("text, reason", [
    ("import os\ndef init(**options):\n  os._exit(3)\n", "ended with exit code 3"),
    ("raise RuntimeError('no account')", "no account")])
def test_a_tracker_that_ends_costs_its_points_and_a_line(tmp_path, package, capfd, text, reason):
  package(text)
  writer = make_writer(tmp_path, make_config())
  writer._sinks[0]._child.wait(TIMEOUT_S)
  for step in range(3):
    writer.write(step, {"train/loss": 1.0})
    time.sleep(0.05)
  writer.close()
  writer._sinks[0]._thread.join(TIMEOUT_S)
  assert reason in capfd.readouterr().err
  assert len(metrics_file.read_curves(tmp_path)["train/loss"]) == 3


def test_a_tracker_ends_when_the_training_is_killed(tmp_path, package):
  package(RECORDER)
  script = ("import os, pathlib, sys, time\n"
            "from bertgpt.config import base\n"
            "from bertgpt.training import trackers\n"
            "config = base()\n"
            "config.log.trackers = 'wandb'\n"
            "path = pathlib.Path(sys.argv[1])\n"
            "sink, = trackers.start(config, path)\n"
            "sink.write(7, {'loss': 1.0})\n"
            "told = path / 'told'\n"
            "while not told.exists() or '\"log\", 7' not in told.read_text():\n"
            "  time.sleep(0.02)\n"
            "os.kill(os.getpid(), 9)\n")
  subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=TIMEOUT_S)
  deadline = time.monotonic() + TIMEOUT_S
  while told(tmp_path)[-1][0] != "finish":
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert told(tmp_path)[1:] == [["log", 7, {"loss": 1.0}], ["finish", 1]]


def test_a_tracker_that_hangs_ends_when_the_training_is_killed(tmp_path, package):
  package("import os, time\n"
          "class Run:\n"
          "  def log(self, scalars, step):\n"
          "    open('new', 'w').write(str(os.getpid())); os.rename('new', 'pid')\n"
          "    time.sleep(3600)\n"
          "def init(**options): return Run()\n")
  tracker = ("import os\nfrom bertgpt.training.trackers import child\n"
             "child.PATIENCE_S = 0.1\nos._exit(child.main('wandb'))")
  run = trackers.RunFacts("id", "name", "", "", str(tmp_path), {})._asdict()
  lines = "".join(f"{json.dumps(line)}\n" for line in (run, {"step": 1, "scalars": {}}))
  script = ("import os, pathlib, subprocess, sys, time\n"
            "command = [sys.executable, '-c', sys.argv[1]]\n"
            "process = subprocess.Popen(command, stdin=subprocess.PIPE)\n"
            "process.stdin.write(sys.argv[2].encode()); process.stdin.flush()\n"
            "while not pathlib.Path('pid').exists(): time.sleep(0.02)\n"
            "os.kill(os.getpid(), 9)\n")
  subprocess.run([sys.executable, "-c", script, tracker, lines], check=False, cwd=tmp_path,
                 timeout=TIMEOUT_S)
  deadline = time.monotonic() + TIMEOUT_S
  while is_alive((tmp_path / "pid").read_text()):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def is_alive(pid):
  try:
    return ") Z " not in pathlib.Path("/proc", pid, "stat").read_text()
  except OSError:
    return False


def test_a_missing_package_is_one_line(monkeypatch):
  monkeypatch.setitem(choices.TRACKERS, "wandb", "no_such_package")
  expected = r"no_such_package is not installed. Install bertgpt\[wandb\], or leave wandb out"
  with pytest.raises(ConfigError, match=expected):
    trackers.check(make_config())
  trackers.check(base())


def test_the_choices_of_the_config_are_the_trackers():
  """A tracker is one file and one line: its module has its name."""
  modules = {file.stem for file in pathlib.Path(trackers.__file__).parent.glob("*.py")}
  assert choices.TRACKERS.keys() == modules - {"__init__", "child"}


def test_an_id_that_cannot_be_kept_costs_a_line(tmp_path, capsys):
  (tmp_path / workdir.ID_FILE).mkdir()
  assert trackers.find_id(tmp_path)
  assert capsys.readouterr().err.count("WARNING") == 1


# ------------------------------------------------------------- real packages


def test_wandb_itself_keeps_the_points(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  writer = make_writer(tmp_path, make_config())
  for step in (1, 2):
    writer.write(step, {"train/loss": step / 2})
  writer.close()
  assert writer._sinks[0]._child.wait(TIMEOUT_S) == 0
  (file,) = tmp_path.glob(f"wandb/offline-run-*/run-{trackers.find_id(tmp_path)}.wandb")
  content = file.read_bytes()
  assert content.count(b"train/loss") >= 2 and b"a project" in content


def test_trackio_itself_keeps_the_points(tmp_path, monkeypatch):
  pytest.importorskip("trackio")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  writer = make_writer(tmp_path, make_config("trackio"))
  for step in (1, 2):
    writer.write(step, {"train/loss": step / 2})
  writer.close()
  assert writer._sinks[0]._child.wait(TIMEOUT_S) == 0
  (file,) = (tmp_path / "trackio").glob("*.db")
  with contextlib.closing(sqlite3.connect(file)) as database:
    rows = database.execute("select step, metrics, run_name from metrics order by step").fetchall()
  found = [(step, json.loads(values)["train/loss"]) for step, values, _ in rows]
  assert found == [(1, 0.5), (2, 1.0)]
  assert {name for *_, name in rows} == {f"{tmp_path.name}-{trackers.find_id(tmp_path)}"}
