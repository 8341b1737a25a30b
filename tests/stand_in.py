"""Replaces programs of a scheduler or a cloud by scripts, in a folder that is first in PATH."""

import os
import pathlib
import subprocess

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"


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
  return subprocess.run(["bash", LAUNCH / script, *arguments], cwd=folder, timeout=300, check=False,
                        capture_output=True, text=True, env=environment(folder, **variables))
