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


@pytest.mark.parametrize("written", [
    "Fatal Python error: Aborted", "malloc(): corrupted top size",
    "F0000 00:00:1 0.5 7 literal.cc:80] Check failed: a == b (1 vs. 2)"])
def test_a_worker_that_aborts_by_itself_has_lost_no_peer(written):
  """Code 134 counts as a failure in all launchers, so that it is not repeated for ever."""
  process = start(f"print({written!r}, file=sys.stderr)\nos.abort()")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == 134
  assert err.splitlines() == [written, "name: aborted; its messages are above"]


@pytest.mark.parametrize("is_printed", [False, True])
def test_a_worker_that_is_aborted_while_it_ends_has_announced_why(is_printed):
  """This happens if the coordinator is gone before the process has exited."""
  process = start(f"text = 'rate: 1 in process 0,\\n  2 in process 1'\n"
                  f"if {is_printed}: print(f'name: {{text}}', file=sys.stderr)\n"
                  "guard.announce_end(2, text)\nos.abort()")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == 2
  assert err == "name: rate: 1 in process 0,\n  2 in process 1\n"


MESSAGE = ("Terminating process because the JAX distributed service detected fatal errors. This "
           "most likely indicates that another task died; see the other task logs for more "
           "details. absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending "
           "heartbeats):\\n2\\nThe tasks have crashed.\\n\\nRPC: Poll\\n*** Check "
           "failure stack trace: ***\\n")


def test_the_line_about_an_abort_names_the_process_that_is_gone():
  process = start(f"os.write(2, b'{MESSAGE}')\nos.abort()")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == 69
  assert ("name: JAX has ended this process: process 2 of the run is gone: no heartbeats ("
          in err.splitlines()[-1])


def test_an_abort_with_a_message_about_a_lost_process_is_explained_too():
  """Not all versions of JAX introduce it with the same words."""
  process = start("os.write(2, b'terminate called after throwing an instance\\n  what():  Gloo: "
                  "connection closed by peer [10.0.0.7]:40211\\n')\nos.abort()")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == 69
  assert ("name: JAX has ended this process: another process of the run is gone ("
          in err.splitlines()[-1])


@pytest.mark.parametrize("end, code, last", [
    ("sys.exit(75)", 75, "exit code 75"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "ended by SIGKILL"),
    ("os.abort()", 134, "aborted; its messages are above"),
    ("import ctypes\nctypes.string_at(0)", 139, "ended by SIGSEGV"),
    ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", 163, "ended by signal 35")])
def test_the_log_has_all_that_was_written_and_how_it_ended(tmp_path, end, code, last):
  path = tmp_path / "logs" / "process-0.log"
  process = start("print('before', file=sys.stderr)\n"
                  f"guard.keep_log({str(path)!r})\n"
                  f"os.write(2, b'from C++\\n')\n{end}")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == code
  assert err.splitlines()[:2] == ["before", "from C++"]
  log = path.read_text()
  first, *lines = log.splitlines()
  assert first.startswith("--- ") and "started on" in first
  assert lines[:2] == ["before", "from C++"]
  assert last in log and f"exit code {code}" in lines[-1]


def test_a_second_start_appends_to_the_log(tmp_path):
  for text in ("one", "two"):
    start(f"guard.keep_log({str(tmp_path / 'log')!r})\nprint({text!r}, file=sys.stderr)"
          ).communicate(timeout=1200)
  lines = (tmp_path / "log").read_text().splitlines()
  assert [line for line in lines if not line.startswith("---")] == ["one", "two"]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").touch()
  process = start(f"guard.keep_log({str(tmp_path / 'file' / 'log')!r})\n"
                  "print('after', file=sys.stderr)\nsys.exit(3)")
  _, err = process.communicate(timeout=1200)
  assert process.returncode == 3
  warning, after = sorted(err.splitlines())
  assert "cannot be written" in warning and after == "after"


def test_a_child_that_outlives_the_worker_does_not_hold_the_parent():
  process = start("import subprocess\n"
                  "other = subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL)\n"
                  "print(other.pid)\nsys.exit(4)")
  out, _ = process.communicate(timeout=1200)
  os.kill(int(out.split()[-1]), signal.SIGKILL)
  assert process.returncode == 4


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_when_the_worker_is_gone_is_ignored(number):
  code = ("import os, signal, sys\nfrom bertgpt.devices import guard\n"
          "wait = os.waitpid\n"
          "def wait_and_be_hit(*arguments):\n"
          "  found = wait(*arguments)\n"
          f"  os.kill(os.getpid(), {int(number)})\n"
          "  return found\n"
          "os.waitpid = wait_and_be_hit\n"
          "guard.fork_worker('name')\n"
          "sys.exit(7)")
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True,
                          timeout=1200)
  assert (result.returncode, result.stderr) == (7, "")


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
