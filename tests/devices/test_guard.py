"""bertgpt.devices.guard: a parent exits like its worker, and reports a lost peer."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def start(work):
  """Starts a guarded process whose worker runs the code `work`."""
  code = ("import os, signal, sys, time\nfrom bertgpt.devices import guard\n"
          "guard.fork_worker('name')\nprint(os.getpid(), os.getppid(), flush=True)\n" + work)
  return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def is_alive(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


@pytest.mark.parametrize("work, code", [
    ("", 0), ("sys.exit(75)", 75), ("raise ValueError('x')", 1),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_parent_exits_as_the_worker(work, code):
  process = start(work)
  out, err = process.communicate(timeout=1200)
  assert process.returncode == code
  assert int(out.split()[1]) == process.pid
  assert "name:" not in err


def test_a_worker_that_is_aborted_has_lost_a_peer():
  process = start("os.abort()")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == 69
  assert len(err.splitlines()) == 1 and "name: JAX has ended this process" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_worker_once(number):
  process = start(f"got = []\nsignal.signal({int(number)}, lambda *a: got.append(1))\n"
                  "print('ready', flush=True)\nwhile not got: time.sleep(0.01)\n"
                  "time.sleep(0.3)\nsys.exit(10 + len(got))")
  process.stdout.readline()
  process.stdout.readline()
  process.send_signal(number)
  process.communicate(timeout=1200)
  assert process.returncode == 11


def test_ctrl_c_of_the_terminal_reaches_only_the_parent():
  process = start("print(os.getpgid(0), os.getpgid(os.getppid()))")
  groups = process.communicate(timeout=1200)[0].splitlines()[1].split()
  assert groups[0] != groups[1]


def test_a_worker_does_not_outlive_its_parent():
  process = start("time.sleep(300)")
  worker = int(process.stdout.readline().split()[0])
  assert is_alive(worker)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + 1200
  while is_alive(worker):
    assert time.monotonic() < deadline, "the worker is still alive"
    time.sleep(0.01)


def test_a_signal_right_after_the_fork_is_passed_on():
  """The parent has no handlers yet, so a signal could end it, and the worker with it."""
  code = ("import os, signal, sys, time\nfrom bertgpt.devices import guard\n"
          "fork = os.fork\n"
          "def fork_and_be_hit():\n"
          "  child = fork()\n"
          "  if child: os.kill(os.getpid(), signal.SIGTERM)\n"
          "  else: signal.signal(signal.SIGTERM, lambda *a: os._exit(75))\n"
          "  return child\n"
          "os.fork = fork_and_be_hit\n"
          "guard.fork_worker('name')\n"
          "time.sleep(300)")
  process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  process.communicate(timeout=1200)
  assert process.returncode == 75
