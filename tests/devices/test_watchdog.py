"""bertgpt.devices.watchdog: a wait that is too long ends the process and shows where."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from bertgpt import cli
from bertgpt.commands import prepare
from bertgpt.devices import watchdog
from bertgpt.errors import DataError


def run_python(code):
  return subprocess.run([sys.executable, "-c", "from bertgpt.devices import watchdog\n" + code],
                        capture_output=True, text=True, timeout=1200,
                        cwd=pathlib.Path(watchdog.__file__).parents[2])


def test_a_process_that_hangs_is_ended_and_shows_where():
  result = run_python("import threading\n"
                      "def wait():\n  lock = threading.Lock(); lock.acquire(); lock.acquire()\n"
                      "watchdog.arm(0.02); wait()")
  assert result.returncode == 1
  assert "in wait" in result.stderr
  assert result.stderr.splitlines()[-1].startswith("bertgpt: Timeout: nothing was done for 0.02")


def test_a_process_that_can_run_no_python_is_ended_and_shows_where():
  """PyDLL does not release Python's lock while C code sleeps."""
  result = run_python("import ctypes\ndef wait(): ctypes.PyDLL(None).sleep(1000)\n"
                      "watchdog.arm(0.02); wait()")
  assert result.returncode == 1
  assert "Timeout" in result.stderr and "in wait" in result.stderr


def test_a_renewed_limit_starts_again_and_a_paused_one_does_not_count():
  """Only the last line exceeds the limit of 3 seconds while the limit is on."""
  result = run_python("import time\nwatchdog.renew(); watchdog.arm(3 / 60)\n"
                      "with watchdog.paused(): time.sleep(4)\n"
                      "watchdog.renew(); print('here', flush=True); time.sleep(1000)")
  assert (result.returncode, result.stdout) == (1, "here\n")


def test_a_limit_that_was_there_before_is_back_after_an_error(monkeypatch):
  armed = []
  monkeypatch.setattr(watchdog, "arm", armed.append)
  monkeypatch.setattr(watchdog, "_minutes", 7)
  with pytest.raises(ValueError), watchdog.restored():
    raise ValueError
  assert armed == [7]


def test_the_time_in_which_a_process_is_suspended_does_not_count():
  code = ("import time\nfrom bertgpt.devices import watchdog\n"
          "watchdog.arm(1); first = watchdog.deadline(); print('ready', flush=True)\n"
          "while watchdog.deadline() < first + 1: time.sleep(0.01)\n")
  with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                        cwd=pathlib.Path(watchdog.__file__).parents[2]) as child:
    child.stdout.readline()
    while child.poll() is None:  # Its thread may not have begun to wait before the first signal.
      child.send_signal(signal.SIGSTOP)
      time.sleep(4)
      child.send_signal(signal.SIGCONT)
      time.sleep(1)
  assert child.returncode == 0  # Otherwise, it is ended after a minute.


def test_a_limit_of_any_length_is_taken():
  result = run_python("for minutes in (1e9, 1e15, 1e300): watchdog.arm(minutes)")
  assert result.returncode == 0, result.stderr


def test_without_a_limit_nothing_happens():
  result = run_python("import time\nwatchdog.arm(2 / 60); watchdog.disarm(); watchdog.renew()\n"
                      "with watchdog.paused(): pass\ntime.sleep(3)")
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("hang, more, compiles, minutes", [
    (30, 120, False, 30), (30, 120, True, 150), (30, 0, False, 30), (30, 0, True, 0),
    (0, 120, True, 0), (0, 120, False, 0)])
def test_compilation_has_its_own_allowance(monkeypatch, hang, more, compiles, minutes):
  armed = []
  monkeypatch.setattr(watchdog, "arm", armed.append)
  watchdog.arm_for(ConfigDict({"hang_timeout_minutes": hang, "compile_timeout_minutes": more}),
                   compiles=compiles)
  assert armed == [minutes]


@pytest.mark.parametrize("fails", [False, True])
def test_a_command_leaves_no_limit_behind(monkeypatch, fails):
  """Otherwise the limit would end the caller's process, such as a notebook, half an hour later."""
  def arm_and_end(arguments):
    watchdog.arm(30)
    if fails:
      raise DataError("as it may happen")

  monkeypatch.setattr(prepare, "check", lambda arguments: None)
  monkeypatch.setattr(prepare, "run", arm_and_end)
  assert cli.main(["prepare", "--config=demo"]) == (65 if fails else 0)
  assert not watchdog._minutes
