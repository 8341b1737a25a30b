"""bertgpt.devices.process: how processes find each other, signals, the watchdog."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from bertgpt.devices import process
from bertgpt.errors import ConfigError, PeerError


@pytest.fixture
def port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


@pytest.mark.parametrize("spec", ["", "host", "host:1,2", "host:port,2,0", "host:1,2,2",
                                  "host:1,2,-1"])
def test_a_malformed_address_is_refused(spec):
  with pytest.raises(ConfigError, match="--distributed="):
    process.start_distributed(spec, 1)


def test_a_taken_port_is_refused(port):
  with socket.create_server(("", port)), pytest.raises(ConfigError, match=f"port {port} is taken"):
    process.start_distributed(f"127.0.0.1:{port},2,0", 1)


def test_process_0_names_who_is_missing(port):
  errors = []

  def report():
    try:
      process.start_distributed(f"127.0.0.1:{port},4,2", 20)
    except PeerError as e:
      errors.append(str(e))

  peer = threading.Thread(target=report)
  peer.start()
  with pytest.raises(PeerError, match="no message from process 1, 3 of 4"):
    process.start_distributed(f"127.0.0.1:{port},4,0", 4)
  peer.join()
  assert len(errors) == 1 and "gave up" in errors[0]


def test_a_missing_process_0_is_an_error(port):
  with pytest.raises(PeerError, match="no answer from process 0"):
    process.start_distributed(f"127.0.0.1:{port},2,1", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number):
  def leave(*_):
    raise InterruptedError

  before = signal.signal(number, leave)
  try:
    with pytest.raises(InterruptedError), process.catch_signals() as should_stop:
      assert not should_stop(1)
      os.kill(os.getpid(), number)
      assert should_stop(2)
      os.kill(os.getpid(), number)
    assert signal.getsignal(number) is leave
  finally:
    signal.signal(number, before)


def run_python(code):
  return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_watchdog_ends_a_process_that_hangs_and_shows_where():
  result = run_python("import time; from bertgpt.devices import process\n"
                      "def stuck(): time.sleep(100)\n"
                      "process.arm_watchdog(0.01); stuck()")
  assert result.returncode != 0 and "stuck" in result.stderr


def test_a_disarmed_watchdog_does_nothing():
  result = run_python("import time; from bertgpt.devices import process\n"
                      "process.arm_watchdog(0.005); process.disarm_watchdog(); time.sleep(1)")
  assert result.returncode == 0, result.stderr


def test_the_compilation_cache_is_private(tmp_path):
  result = run_python("from bertgpt.devices import process\n"
                      f"process.use_compilation_cache('{tmp_path}/a/b')")
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
