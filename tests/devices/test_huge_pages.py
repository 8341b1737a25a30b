"""bertgpt.devices.huge_pages: a program restarts once, and then asks for huge pages."""

import os
import subprocess
import sys

import pytest

from bertgpt.devices import huge_pages

PROGRAM = """
import os, pathlib, sys
from bertgpt.devices import huge_pages
huge_pages.SETTING = pathlib.Path(sys.argv[1])
print("started", os.getpid(), flush=True)
if sys.argv[2:]:
  sys.executable = sys.argv[2]
huge_pages.restart()
held = b"x" * 2**27
kib = asked = 0  # "hg": huge pages were asked for. How many there are depends on free memory.
for line in open("/proc/self/smaps"):
  name, *values = line.split()
  if name == "Size:":
    kib = int(values[0])
  elif name == "VmFlags:" and "hg" in values:
    asked += kib
print(os.environ.get("GLIBC_TUNABLES"), asked // 1024)
"""


@pytest.fixture
def setting(tmp_path):
  path = tmp_path / "enabled"
  path.write_text("always [madvise] never\n")
  return path


def run(setting, *arguments, **environment):
  clean = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
  result = subprocess.run([sys.executable, "-c", PROGRAM, str(setting), *arguments], text=True,
                          check=True, stdout=subprocess.PIPE, env=clean | environment)
  return [line.split() for line in result.stdout.splitlines()]


@pytest.mark.skipif(not huge_pages.is_on_request(),
                    reason="this system does not grant huge pages on request")
def test_a_program_restarts_once_and_asks_for_huge_pages(setting):
  first, second, (variable, mebibytes) = run(setting)
  assert first == second, "the same process"
  assert variable == "None", "child processes would inherit the variable"
  assert int(mebibytes) >= 128


@pytest.mark.parametrize("text, environment, expected", [
    ("[always] madvise never", {}, "None"),
    ("always madvise [never]", {}, "None"),
    ("always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "glibc.malloc.check=0"),
    ("always [madvise] never", {"GLIBC_TUNABLES": huge_pages.TUNABLE}, huge_pages.TUNABLE),
    (None, {}, "None")])
def test_a_program_continues_if_there_is_nothing_to_gain(setting, text, environment, expected):
  setting.unlink() if text is None else setting.write_text(text)
  (started, (variable, _)) = run(setting, **environment)
  assert started[0] == "started" and variable == expected


def test_a_program_continues_if_it_cannot_restart(setting):
  (started, (variable, _)) = run(setting, "/none/python")
  assert started[0] == "started" and variable == "None"
