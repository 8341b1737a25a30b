"""bertgpt.data.text.digests: an unchanged file is read once, a changed one again."""

import hashlib
import json
import math
import os
import pathlib
import time

import pytest

from bertgpt.data.text import digests
from bertgpt.devices import watchdog

SIZE = 4 * 2**20


@pytest.fixture
def file(tmp_path, monkeypatch):
  """A file that was changed so long ago that its digest is remembered."""
  monkeypatch.setattr(digests, "SETTLED_SECONDS", 0.05)
  path = tmp_path / "text.txt"
  path.write_bytes(os.urandom(SIZE))
  time.sleep(0.1)
  return path


def bytes_read():
  """Returns the bytes that this process has read so far."""
  return int(pathlib.Path("/proc/self/io").read_text().split()[1])


def digest(path, cache):
  """Returns (whether the file was read, whether its digest is right)."""
  before = bytes_read()
  found = digests.sha256_files([str(path)], cache)
  was_read = bytes_read() - before >= SIZE
  return was_read, found == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


def test_an_unchanged_file_is_read_once(file, tmp_path, monkeypatch):
  cache = tmp_path / "cache"
  assert digest(file, cache) == (True, True)
  assert digest(file, cache) == (False, True)
  monkeypatch.chdir(tmp_path)
  assert digest(pathlib.Path("text.txt"), cache) == (False, True)
  assert [path.name for path in cache.iterdir()] == [digests.CACHE]


def write_in_place(path):
  """Changes the content, but not the size, the inode and mtime."""
  times = path.stat().st_atime_ns, path.stat().st_mtime_ns
  with path.open("r+b") as f:
    f.write(b"changed")
  os.utime(path, ns=times)


def replace(path):
  other = path.with_name("other")
  other.write_bytes(bytes(SIZE))
  os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
  other.replace(path)


def append(path):
  with path.open("ab") as f:
    f.write(b"more")


def test_reading_a_file_restarts_the_limit_of_a_step(file, tmp_path):
  watchdog.arm(60)
  try:
    before = watchdog.deadline()
    assert digest(file, tmp_path) == (True, True)
    assert before < watchdog.deadline() < math.inf
  finally:
    watchdog.disarm()


@pytest.mark.parametrize("change", [write_in_place, replace, append])
def test_a_changed_file_is_read_again(file, tmp_path, change):
  digest(file, tmp_path)
  change(file)
  assert digest(file, tmp_path) == (True, True)


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, monkeypatch):
  monkeypatch.setattr(digests, "SETTLED_SECONDS", 3600)
  path = tmp_path / "text.txt"
  path.write_bytes(bytes(SIZE))
  assert digest(path, tmp_path) == (True, True)
  assert digest(path, tmp_path) == (True, True)


@pytest.mark.parametrize("content", ["", "[1]", '{"x": 1', "\x00", '{"KEY": 3}'])
def test_a_damaged_cache_is_ignored(file, tmp_path, content):
  (tmp_path / digests.CACHE).write_text(content.replace("KEY", str(file)))
  assert digest(file, tmp_path) == (True, True)
  assert digest(file, tmp_path) == (False, True)


def test_a_cache_that_cannot_be_written_is_ignored(file):
  assert digest(file, file / "no_folder") == (True, True)


def test_several_files_are_remembered(file, tmp_path):
  other = tmp_path / "other.txt"
  other.write_bytes(os.urandom(SIZE))
  time.sleep(0.1)
  assert digest(file, tmp_path) == digest(other, tmp_path) == (True, True)
  assert digest(file, tmp_path) == digest(other, tmp_path) == (False, True)
  assert len(json.loads((tmp_path / digests.CACHE).read_text())) == 2
