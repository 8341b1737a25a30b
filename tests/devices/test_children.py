"""bertgpt.devices.children: nothing outlives its parent, and no child runs the caller's script."""

import contextlib
import gc
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import program as program_lib
import pytest

from bertgpt.devices import children
from bertgpt.runs import checkpoint

ROOT = pathlib.Path(children.__file__).parents[2]


def run_script(path, code, *arguments, way="file"):
  """Runs a script without a main guard, as a file, from stdin or with -c."""
  code = textwrap.dedent(code)
  (path / "script.py").write_text(code)
  command = {"file": [str(path / "script.py")], "stdin": ["-"], "-c": ["-c", code]}[way]
  return subprocess.run([sys.executable, *command, *map(str, arguments)], text=True,
                        input=code if way == "stdin" else None, capture_output=True,
                        timeout=program_lib.TIMEOUT_S, cwd=ROOT,
                        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize("way", ["file", "stdin", "-c"])
def test_a_script_without_a_main_guard_prepares_a_corpus(recipe, tmp_path, way):
  result = run_script(tmp_path, """
      import sys
      from bertgpt.config import recipes
      from bertgpt.data.corpus import prepare
      print("began")
      config = recipes.load(sys.argv[1])
      print("made", prepare.prepare(config, sys.argv[2]))
      """, recipe, tmp_path / "corpus", way=way)
  assert result.returncode == 0, result.stderr
  assert result.stdout.count("began") == result.stdout.count("made") == 1


@pytest.mark.slow
def test_a_script_without_a_main_guard_trains_with_reader_processes(recipe, tmp_path):
  result = run_script(tmp_path, """
      import sys
      from bertgpt.cli import main
      print("began")
      sys.exit(main(["train", f"--config={sys.argv[1]}", f"--workdir={sys.argv[2]}",
                     "--config.data.reader_workers=2"]))
      """, recipe, tmp_path / "run")
  assert result.returncode == 0, result.stderr
  assert result.stdout.count("began") == 1


def processes_with(text):
  """Returns the ids of the processes whose environment holds a text."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
      if text.encode() in path.read_bytes():
        found.append(int(path.parent.name))
    except OSError:
      pass
  return [pid for pid in found if pid != os.getpid()]


def assert_all_end(text):
  deadline = time.monotonic() + program_lib.TIMEOUT_S
  while left := processes_with(text):
    assert time.monotonic() < deadline, left
    time.sleep(0.05)


def test_reader_processes_do_not_outlive_their_parent(recipe, tmp_path):
  """The parent is killed while the readers wait for it to take their next batch."""
  mark = f"MARK={tmp_path}"
  process = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
      import sys, time
      from bertgpt.config import recipes
      from bertgpt.data.batches import loader
      from bertgpt.data.corpus import prepare
      from bertgpt.data.corpus.corpus import open_corpus
      config = recipes.load(sys.argv[1])
      with config.unlocked(): config.data.reader_workers = 2
      corpus = open_corpus(prepare.ensure_prepared(config), "train")
      batches = loader.make_train_batches(corpus, config, 0, 0, slice(0, 8))
      next(batches)
      print("READY", flush=True)
      time.sleep(1000)
      """), str(recipe)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
      env=os.environ | {"MARK": str(tmp_path)})
  while "READY" not in (line := process.stdout.readline()):
    assert line
  assert len(processes_with(mark)) >= 3
  process.kill()
  process.wait()
  assert_all_end(mark)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_whose_readers_get_its_signal_too_is_saved(program, tmp_path, number):
  """As from a terminal, or a scheduler that signals all processes of a job."""
  path = tmp_path / "run"
  process = subprocess.Popen(
      program.command(path, "--config.data.reader_workers=2"), text=True, start_new_session=True,
      env=os.environ | program.variables(path) | {"WATCH_SLOW": "0.2"}, stderr=subprocess.PIPE)
  program_lib.wait_for_save(process, path, 10)
  os.killpg(process.pid, number)
  result = program_lib.finish(process)
  assert result.returncode == 75, result.stderr
  assert "Traceback" not in result.stderr
  assert checkpoint.committed_steps(path)[-1] == program_lib.stopped_step(result.stderr)
  assert_all_end(f"WATCH_ROWS={program_lib.rows_path(path)}")


def test_commands_that_have_ended_leave_no_open_files():
  """A sweep starts thousands of runs, and 1,024 is a usual limit."""
  count = lambda: len(os.listdir("/proc/self/fd"))
  gc.collect()
  before = count()
  for command in ("true", "false", "/no/such/program"):
    with contextlib.suppress(FileNotFoundError):
      children.start([command]).wait()
  gc.collect()
  assert count() <= before


def test_a_command_that_was_started_is_stopped_when_its_parent_is_killed(tmp_path):
  child = ("import signal, time\nfrom bertgpt.devices import children\n"
           "def stop(*_):\n  open(PATH, 'w').close(); raise SystemExit\n"
           "signal.signal(signal.SIGTERM, stop); children.terminate_with_starter()\n"
           "print('READY', flush=True)\ntime.sleep(1000)".replace("PATH", repr(f"{tmp_path}/end")))
  process = subprocess.Popen(
      [sys.executable, "-c", "import sys\nfrom bertgpt.devices import children\n"
       f"children.start([sys.executable, '-c', {child!r}]).wait()"],
      stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"MARK": str(tmp_path)})
  assert process.stdout.readline() == "READY\n"
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  assert_all_end(f"MARK={tmp_path}")
  assert (tmp_path / "end").exists()
