"""One process at a time holds the lock of a bucket, and a killed one does not keep it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from bertgpt import files
from bertgpt.errors import ConfigError, StorageError
from bertgpt.files import lease

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from bertgpt import files
with files.lock(files.make_path(sys.argv[1]), lambda holder: None):
  print("held", flush=True)
  time.sleep(600)
"""


def refuse(holder):
  raise ConfigError(f"in use by {holder}")


def hold_elsewhere(path):
  process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE,
                             text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
  assert process.stdout.readline() == "held\n"
  return process


def test_a_second_holder_is_refused_and_a_killed_one_is_replaced(bucket):
  path = bucket / ".lock"
  process = hold_elsewhere(path)
  try:
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on "), \
         files.lock(path, refuse):
      pass
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert path.exists()  # The killed process could not clean up.
  with files.lock(path, refuse):
    files.check_lock(path)
  assert not path.exists()


def test_a_lock_of_another_machine_counts_until_it_is_silent(bucket, monkeypatch, capsys):
  monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
  path = bucket / ".lock"
  other = {"holder": "process 7 on far", "machine": "far", "pid": os.getpid()}
  path.write_bytes(json.dumps(other).encode())
  monkeypatch.setattr(lease, "EXPIRY_SECONDS", 600)
  is_over = threading.Event()

  def renew():
    while not is_over.wait(0.1):
      path.write_bytes(json.dumps(other).encode())

  renewal = threading.Thread(target=renew)
  renewal.start()
  for _ in range(2):
    with pytest.raises(ConfigError, match="process 7 on far"), files.lock(path, refuse):
      pass
  asked = []

  def wait(holder):
    asked.append(holder)
    if len(asked) == 3:
      refuse(holder)

  capsys.readouterr()
  with pytest.raises(ConfigError, match="process 7 on far"), files.lock(path, wait):
    pass
  assert capsys.readouterr().err.count("note: ") == 1  # Not again after every renewal.
  is_over.set()
  renewal.join()
  monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.5)
  with files.lock(path, refuse):
    assert b"far" not in path.read_bytes()


def test_a_storage_that_does_not_answer_does_not_make_a_holder_silent(bucket, monkeypatch):
  """The holder cannot renew its lock either; it does so a moment later."""
  monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
  monkeypatch.setattr(lease, "RENEW_SECONDS", 0.5)
  monkeypatch.setattr(lease, "EXPIRY_SECONDS", 2)
  path, read, calls = bucket / ".lock", lease._Lease._read, []
  other = json.dumps({"holder": "process 7 on far", "machine": "far", "pid": 1}).encode()
  path.write_bytes(other)

  def read_slowly(self):
    calls.append(1)
    if len(calls) == 3:
      time.sleep(2.5)
    if len(calls) == 5:
      path.write_bytes(other)
    return read(self)

  monkeypatch.setattr(lease._Lease, "_read", read_slowly)
  with pytest.raises(ConfigError, match="process 7 on far"), files.lock(path, refuse):
    pass
  assert path.read_bytes() == other and len(calls) >= 5


def test_a_lock_that_is_released_meanwhile_is_taken(bucket, monkeypatch):
  monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
  path = bucket / ".lock"
  path.write_bytes(json.dumps({"holder": "process 7", "machine": "far", "pid": 1}).encode())
  release = threading.Timer(0.5, path.unlink)
  release.start()
  with files.lock(path, refuse):
    release.join()
    assert b"far" not in path.read_bytes()


def test_of_many_that_find_a_dead_lock_one_gets_it(bucket):
  path = bucket / ".lock"
  path.write_bytes(json.dumps({"holder": "x", "machine": lease._describe_machine(),
                               "pid": 2**22 + 1, "started": "1"}).encode())
  won, lost, release = [], [], threading.Event()

  def take():
    try:
      with files.lock(path, refuse):
        won.append(True)
        release.wait(1200)
    except ConfigError:
      lost.append(True)
      if len(lost) == 7:
        release.set()

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(1200)
  assert (len(won), len(lost)) == (1, 7)


def test_the_holder_learns_that_its_lock_was_taken_over(bucket):
  path = bucket / ".lock"
  with files.lock(path, refuse):
    files.check_lock(path)
    path.write_bytes(b'{"holder": "process 8 on other", "key": "1"}')
    with pytest.raises(StorageError, match="process 8 on other has taken the lock over"):
      files.check_lock(path)
  assert path.exists()  # Another process owns it.


def test_a_lost_answer_to_a_write_is_not_taken_for_another_process(bucket):
  path = bucket / ".lock"
  with files.lock(path, refuse):
    path.write_bytes(path.read_bytes())  # As if a renewal had been stored twice.
    files.check_lock(path)
    files.check_lock(path)
