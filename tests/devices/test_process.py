"""bertgpt.devices.process: how processes find each other, signals, the watchdog."""

import os
import signal
import socket
import subprocess
import sys
import threading

import jax
import program
import pytest

from bertgpt.devices import process, signals
from bertgpt.errors import ConfigError, PeerError


@pytest.fixture
def port():
  return program.free_port()


@pytest.mark.parametrize("message, is_lost", [
    ("INTERNAL: [4] Gloo all-reduce failed: Connection closed by peer", True),
    ("UNAVAILABLE: Failed to send RPC to coordination service.", True),
    ("INTERNAL: Barrier timed out. Id: save/20. This usually happens because a task triggered the "
     "barrier too early or too slowly.", True),
    ("INTERNAL: Shutdown barrier has failed.", True),
    ("INTERNAL: task 1 is already in error before the barrier was called. Barrier Id: x", True),
    ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes. Operator: optimization_barrier", False),
    ("RESOURCE_EXHAUSTED: Out of memory\n%opt-barrier.3 = f32[8] opt-barrier(%x)", False),
    ("INTERNAL: ptxas failed at mbarrier.init in fusion OptimizationBarrier.7", False)])
def test_only_messages_about_other_processes_name_a_lost_peer(message, is_lost):
  with (pytest.raises(PeerError if is_lost else jax.errors.JaxRuntimeError),
        process.name_lost_peer()):
    raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize("spec", ["", "host", "host:1,2", "host:port,2,0", "host:1,2,2",
                                  "host:1,2,-1"])
def test_a_malformed_address_is_refused(spec):
  with pytest.raises(ConfigError, match="--distributed="):
    process.start_distributed(spec, 1)


def test_a_taken_port_is_refused(port):
  with socket.create_server(("", port)), pytest.raises(ConfigError, match=f"port {port} is taken"):
    process.start_distributed(f"127.0.0.1:{port},2,0", 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_processes_of_several_hosts_meet_at_addresses_of_both_kinds(port, address):
  """Process 0 listens at all addresses, as it does if HOST is not a loopback address."""
  try:
    socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
                         ).close()
  except OSError:
    pytest.skip("this machine has no such addresses")
  first = threading.Thread(target=process._await_peers, args=("", port, 2, 60))
  first.start()
  try:
    process._await_first(address, port, 1, 60)
  finally:
    first.join()


def test_process_0_names_who_is_missing(port):
  errors = []

  def report():
    try:
      process.start_distributed(f"127.0.0.1:{port},4,2", 1200)
    except PeerError as e:
      errors.append(str(e))

  peer = threading.Thread(target=report)
  peer.start()
  with pytest.raises(PeerError, match="no message from process 1, 3 of 4"):
    process.start_distributed(f"127.0.0.1:{port},4,0", 5)
  peer.join()
  assert len(errors) == 1 and "gave up" in errors[0]


def test_a_missing_process_0_is_an_error(port):
  with pytest.raises(PeerError, match="no answer from process 0"):
    process.start_distributed(f"127.0.0.1:{port},2,1", 1)


def test_the_first_ctrl_c_is_noted_and_the_second_is_not(monkeypatch):
  monkeypatch.setattr(signals, "REPEATED_S", 0)

  def leave(*_):
    raise InterruptedError

  before = signal.signal(signal.SIGINT, leave)
  try:
    with pytest.raises(InterruptedError), process.catch_signals() as should_stop:
      assert not should_stop()
      signal.raise_signal(signal.SIGINT)
      assert should_stop()
      signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is leave
  finally:
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number):
  result = run_python("import signal\nfrom bertgpt.devices import process, signals\n"
                      "signals.REPEATED_S = 0\n"
                      "with signals.hold() as release, process.catch_signals() as should_stop:\n"
                      f"  release(); signal.raise_signal({int(number)}); print(should_stop(),"
                      f" flush=True)\n  signal.raise_signal({int(number)})")
  assert (result.returncode, result.stdout) == (-number, "True\n"), result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_sent_twice_lets_the_run_save(number):
  """`timeout` signals a sweep and its run, and the sweep passes the signal on to the run."""
  result = run_python("import signal\nfrom bertgpt.devices import process, signals\n"
                      "signals.REPEATED_S = 1e9\n"
                      "with signals.hold() as release, process.catch_signals() as should_stop:\n"
                      "  release()\n"
                      f"  for _ in range(3): signal.raise_signal({int(number)})\n"
                      "  print('saved', should_stop())")
  assert (result.returncode, result.stdout) == (0, "saved True\n"), result.stderr


def test_sigterm_ends_one_of_several_processes_after_the_loop(port):
  """JAX's service, which notes the signal in the loop, would otherwise note it forever."""
  code = """
import os, signal, sys, jax
from bertgpt.devices import process
jax.config.update("jax_platforms", "cpu")
process.start_distributed(sys.argv[1], 600)
jax.devices()
def leave(*_):
  print("left", flush=True)
  sys.stdin.read()
  os._exit(7)
signal.signal(signal.SIGTERM, leave)
with process.catch_signals() as should_stop:
  assert not should_stop()
signal.raise_signal(signal.SIGTERM)
os._exit(1)
"""
  children = [subprocess.Popen([sys.executable, "-c", code, f"127.0.0.1:{port},2,{i}"], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE) for i in (0, 1)]
  # The end of process 0 ends the other wherever it is, so both arrive before either may end.
  arrived = [child.stdout.readline() for child in children]
  for child, line in reversed([*zip(children, arrived, strict=True)]):
    _, err = child.communicate("", timeout=1200)
    assert (child.returncode, line) == (7, "left\n"), err


def run_python(code):
  return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)


def test_the_compilation_cache_is_private(tmp_path):
  result = run_python("from bertgpt.devices import process\n"
                      f"process.use_compilation_cache('{tmp_path}/a/b')")
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("field, used", [("~/.cache/bertgpt/xla", "mine"), ("FOLDER/own", "own")])
def test_the_variable_of_jax_replaces_the_default_cache(tmp_path, field, used):
  folder = field.replace("FOLDER", str(tmp_path))
  result = run_python(f"import os; os.environ.update(JAX_COMPILATION_CACHE_DIR='{tmp_path}/mine', "
                      f"HOME='{tmp_path}/home')\nimport jax\nfrom bertgpt.devices import process\n"
                      f"process.use_compilation_cache('{folder}')\n"
                      "print(jax.config.jax_compilation_cache_dir)")
  assert result.stdout.strip() == f"{tmp_path}/{used}", result.stderr
  assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("host, found", [
    ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.0.1", True),
    ("0.0.0.0", False), ("10.1.2.3", False), ("no.such.host.invalid", False)])
def test_loopback_addresses(host, found):
  assert process.is_loopback(host) is found


def test_the_own_name_is_not_a_loopback_address(monkeypatch):
  """Debian writes it next to 127.0.1.1, and other hosts know it by another address."""
  monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [
      (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))])
  assert not process.is_loopback("node0")


def test_a_run_on_the_loopback_listens_there_only(port):
  """This holds for the port where the processes meet, and for JAX's coordinator."""
  code = ("import sys\nfrom bertgpt.devices import process\n"
          "def listening():\n"
          "  files = [open(f'/proc/net/{name}') for name in ('tcp', 'tcp6')]\n"
          "  rows = [line.split() for file in files for line in file]\n"
          f"  return {{row[1].split(':')[0] for row in rows if row[1].endswith(':{port:04X}')\n"
          "          and row[3] == '0A'}\n"
          "wait = process._await_peers\n"
          "def look(*arguments):\n"
          "  create = process.socket.create_server\n"
          "  def create_and_look(*a, **k):\n"
          "    server = create(*a, **k); print(sorted(listening())); return server\n"
          "  process.socket.create_server = create_and_look\n"
          "  wait(*arguments)\n"
          "process._await_peers = look\n"
          f"process.start_distributed('127.0.0.1:{port},1,0', 200)\n"
          "print(sorted(listening()))")
  result = run_python(code)
  assert result.returncode == 0, result.stderr
  addresses = result.stdout.split()
  # Little-endian; the second form is the same address as IPv6.
  assert addresses[0] == "['0100007F']"
  assert addresses[1] in ("['0100007F']", "['0000000000000000FFFF00000100007F']")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_compilation_cache_that_others_can_write_is_refused(tmp_path, mode):
  tmp_path.chmod(mode)
  with pytest.raises(ConfigError, match="other users can write to it"):
    process.use_compilation_cache(str(tmp_path))


def test_a_compilation_cache_of_another_user_is_refused(tmp_path):
  if os.geteuid():
    pytest.skip("only root can give a folder away")
  tmp_path.chmod(0o700)
  os.chown(tmp_path, 12345, 12345)
  with pytest.raises(ConfigError, match=f"belongs to the user with the number 12345, "
                                        f".*chown 0 {tmp_path}"):
    process.use_compilation_cache(str(tmp_path))


# ---------------------------------------------------------------- profiler


def visited(steps, path, first, last):
  """Visits steps as the loop does, and returns those before which it waits for the one before."""
  waits = []
  with process.tracer(steps, path) as visit:
    for step in range(first, last + 1):
      visit(step, lambda step=step: waits.append(step))
  return waits


def test_a_profile_that_cannot_be_written_costs_a_line(tmp_path, capfd):
  path = tmp_path / "profile"
  path.touch()
  assert visited((1, 2), path, 1, 5) == [1]
  (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("WARNING")]
  assert f"{path}: the trace could not be stored" in line


@pytest.mark.parametrize("last", [2, 5])
def test_a_profile_that_can_no_longer_be_written_costs_a_line(tmp_path, last):
  """The run ends within the steps of the profile, or after them."""
  result = run_python("import pathlib, shutil\nfrom bertgpt.devices import process\n"
                      f"path = pathlib.Path('{tmp_path}/profile')\n"
                      "with process.tracer((1, 2), path) as visit:\n"
                      "  visit(1, lambda: None); shutil.rmtree(path); path.touch()\n"
                      f"  for step in range(2, {last + 1}): visit(step, lambda: None)\n"
                      "print('done')")
  assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
  assert result.stderr.count("the trace could not be stored") == 1


def test_a_run_that_resumes_within_the_steps_of_the_profile_traces_the_rest(tmp_path, capfd):
  path = tmp_path / "profile"
  assert visited((10, 15), path, 13, 20) == [13, 16]
  assert list(path.rglob("*.xplane.pb"))
  assert visited((10, 15), path, 16, 20) == []
  assert "nothing is traced" not in capfd.readouterr().err


def test_a_run_that_resumes_after_the_steps_of_the_profile_says_so(tmp_path, capfd):
  assert visited((10, 15), tmp_path / "profile", 16, 20) == []
  (line,) = [line for line in capfd.readouterr().err.splitlines() if "profile" in line]
  assert line.startswith("note: profile.steps=(10, 15): these steps are done")


@pytest.mark.parametrize("index, written", [(0, "note: a\nnote: b\n"), (1, "")])
def test_only_process_0_says_what_all_know(monkeypatch, capsys, index, written):
  monkeypatch.setattr(jax, "process_index", lambda: index)
  process.say_once("note: a", "", "note: b")
  assert capsys.readouterr().err == written
