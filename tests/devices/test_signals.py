"""bertgpt.devices.signals: a signal outside of a training loop is an exception, and a code."""

import fcntl
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading

import program as program_lib
import pytest
from program import finish

from bertgpt.devices import signals


@pytest.fixture(autouse=True)
def handlers():
  """Restores the handlers that a test or a signal has changed."""
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, *signals.ENDING)}
  yield before
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises_once_it_is_no_longer_held(number, handlers):
  with pytest.raises(signals.Terminated, match=number.name) as caught, signals.hold() as release:
    signal.raise_signal(number)
    release()
  assert caught.value.number == number
  with pytest.raises(signals.Terminated), signals.hold() as release:
    release()
    try:
      signal.raise_signal(number)
    except Exception:  # This must not catch the signal.
      raise AssertionError from None
  assert signal.getsignal(number) == handlers[number]


def test_ctrl_c_is_a_keyboard_interrupt():
  with pytest.raises(KeyboardInterrupt) as caught, signals.hold() as release:
    signal.raise_signal(signal.SIGINT)
    release()
  assert not isinstance(caught.value, signals.Terminated)


CODE_OF_SECOND_SIGNAL = """
import os, signal, time
from bertgpt.devices import signals
signals.REPEATED_S = 0.0
signal.raise_signal = lambda number: None  # As the kernel does in process 1 of a container.
signals.end_at_next(signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


def test_a_second_signal_ends_process_1_of_a_container_too():
  result = subprocess.run([sys.executable, "-c", CODE_OF_SECOND_SIGNAL], check=False,
                          cwd=pathlib.Path(signals.__file__).parents[2])
  assert result.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, *signals.ENDING])
def test_a_signal_during_garbage_collection_is_not_lost(number, capfd):
  """Python ignores exceptions in callbacks of the collector. JAX has such a callback."""
  def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(number)

  with pytest.raises(KeyboardInterrupt) as caught, signals.hold() as release:
    release()
    gc.callbacks.append(callback)
    gc.collect()
    threading.Event().wait(60)
  assert getattr(caught.value, "number", signal.SIGINT) == number
  assert "Exception ignored" not in capfd.readouterr().err


def test_an_exception_that_no_signal_raised_is_shown_if_it_is_ignored(monkeypatch):
  class Final:
    def __del__(self):
      raise ValueError

  shown = []
  monkeypatch.setattr(sys, "unraisablehook", shown.append)
  with signals.hold() as release:
    release()
    Final()
  assert [ignored.exc_type for ignored in shown] == [ValueError]


def test_nohup_is_respected():
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with signals.hold() as release:
    release()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_second_signal_ends_the_process_at_once():
  """This holds even if the first signal cannot be handled, because the main thread is stuck."""
  code = ("import signal\nfrom bertgpt.devices import signals\n"
          "signals.REPEATED_S = 0\nwith signals.hold():\n"
          "  for _ in range(2): signal.raise_signal(signal.SIGTERM)\n")
  result = subprocess.run([sys.executable, "-c", code], timeout=1200,
                          cwd=pathlib.Path(signals.__file__).parents[2])
  assert result.returncode == -signal.SIGTERM


# Python imports a module of this name at its start.
CUSTOMIZE = """
import signal, sys

class Finder:
  @staticmethod
  def find_spec(name, *_):
    if name == "jaxlib":
      sys.meta_path.remove(Finder)
      signal.raise_signal(NUMBER)

sys.meta_path.insert(0, Finder)
"""


def run_and_stop(folder, command, number, **variables):
  """Runs a command that gets a signal when it begins to import JAX."""
  (folder / "sitecustomize.py").write_text(CUSTOMIZE.replace("NUMBER", str(int(number))))
  env = os.environ | variables | {"PYTHONPATH": f"{folder}:{program_lib.ROOT}"}
  return subprocess.run(command, env=env, capture_output=True, text=True,
                        timeout=program_lib.TIMEOUT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_training_stopped_while_it_imports_ends_with_75(program, tmp_path, number):
  result = run_and_stop(tmp_path, program.command(tmp_path / "run"), number,
                        **program.variables(tmp_path / "run"))
  assert result.returncode == 75, result.stderr
  assert result.stderr.splitlines() == [
      f"bertgpt train: stopped by {number.name}. The same command continues where it stopped"]
  assert not (tmp_path / "run").exists()


def test_a_process_of_several_stopped_before_the_loop_ends_all_with_75(program, finished_run,
                                                                       tmp_path):
  """Process 0 waits for this test, which seems to prepare the corpus; process 1 waits for 0."""
  port, cache = program_lib.free_port(), tmp_path / "cache"
  cache.mkdir()
  (name,) = (path.name for path in (program.folder / "cache").glob(".*.lock"))
  with (cache / name).open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    both = [program.start(tmp_path / "run", f"--distributed=127.0.0.1:{port},2,{i}",
                          f"--config.data.cache_dir={cache}") for i in range(2)]
    while "waiting for" not in (line := both[0].stdout.readline()):
      assert line, finish(both[0])
    both[1].send_signal(signal.SIGTERM)
    results = [finish(process) for process in both]
  assert [result.returncode for result in results] == [75, 75], results
  assert ("stopped by SIGTERM. The same command continues where it stopped"
          in results[1].stderr), results[1].stderr
  assert "process 1 ended with exit code 75 (stopped by SIGTERM" in results[0].stderr


def test_a_command_that_begins_again_ends_as_if_the_signal_had_killed_it(tmp_path):
  result = run_and_stop(tmp_path, [sys.executable, "-m", "bertgpt", "export",
                                   f"--workdir={tmp_path}", f"--out={tmp_path}/out"],
                        signal.SIGTERM)
  assert result.returncode == 143, result.stderr
  assert "stopped by SIGTERM. The same command starts over" in result.stderr
