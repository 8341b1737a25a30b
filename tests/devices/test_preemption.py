"""bertgpt.devices.preemption: signals that stop a run after its current step."""

import signal
import subprocess
import sys
import threading

import program
import pytest

from bertgpt.devices import preemption, signals


def test_the_first_ctrl_c_is_noted_and_the_second_is_not(monkeypatch):
  monkeypatch.setattr(signals, "REPEATED_S", 0)

  def leave(*_):
    raise InterruptedError

  before = signal.signal(signal.SIGINT, leave)
  try:
    with pytest.raises(InterruptedError), preemption.catch_signals() as should_stop:
      assert not should_stop()
      signal.raise_signal(signal.SIGINT)
      assert should_stop()
      signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is leave
  finally:
    signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_signals_keep_their_meaning(capsys):
  """Python refuses to set handlers there, and a training may run in a thread."""
  before, found = signal.getsignal(signal.SIGINT), []

  def work():
    with preemption.catch_signals() as should_stop:
      found.append((should_stop(), signal.getsignal(signal.SIGINT)))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [(False, before)]
  assert "not in the main thread, so a signal saves no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number):
  result = program.run_python(f"""
import signal
from bertgpt.devices import preemption, signals
signals.REPEATED_S = 0
with signals.hold() as release, preemption.catch_signals() as should_stop:
  release()
  signal.raise_signal({int(number)})
  print(should_stop(), flush=True)
  signal.raise_signal({int(number)})""")
  assert (result.returncode, result.stdout) == (-number, "True\n"), result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_sent_twice_lets_the_run_save(number):
  """`timeout` signals a sweep and its run, and the sweep passes the signal on to the run."""
  result = program.run_python(f"""
import signal
from bertgpt.devices import preemption, signals
signals.REPEATED_S = 1e9
with signals.hold() as release, preemption.catch_signals() as should_stop:
  release()
  for _ in range(3):
    signal.raise_signal({int(number)})
  print("saved", should_stop())""")
  assert (result.returncode, result.stdout) == (0, "saved True\n"), result.stderr


def test_sigterm_ends_one_of_several_processes_after_the_loop():
  """JAX's service, which notes the signal in the loop, would otherwise note it forever."""
  port = program.free_port()
  code = """
import os, signal, sys, jax
from bertgpt.devices import cluster, preemption
jax.config.update("jax_platforms", "cpu")
cluster.start_distributed(sys.argv[1], 600)
jax.devices()
def leave(*_):
  print("left", flush=True)
  sys.stdin.read()
  os._exit(7)
signal.signal(signal.SIGTERM, leave)
with preemption.catch_signals() as should_stop:
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
