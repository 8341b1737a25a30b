"""Replaces programs of a scheduler or a cloud by scripts, in a folder that is first in PATH."""

import os
import pathlib
import subprocess
import time

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
TIMEOUT_S = 1200  # Only a hang takes so long, even on a busy machine.


def add(folder, name, code):
  """Writes a program."""
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{code}\n")
  path.chmod(0o755)


def environment(folder, **variables):
  """Returns an environment in which the programs of a folder come first."""
  return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", **variables}


def run(folder, script, *arguments, **variables):
  """Runs a script of launch/ in a folder."""
  return subprocess.run(["bash", LAUNCH / script, *arguments], cwd=folder, timeout=TIMEOUT_S,
                        check=False, capture_output=True, text=True,
                        env=environment(folder, **variables))


def wait_for(is_so, describe=lambda: ""):
  """Returns when a condition holds, with its value."""
  deadline = time.monotonic() + TIMEOUT_S
  while not (found := is_so()):
    assert time.monotonic() < deadline, describe()
    time.sleep(0.02)
  return found
