"""bertgpt.commands.data: --steps names steps of the run."""

import os
import subprocess
import sys

import pytest

from bertgpt.commands import data
from bertgpt.errors import ConfigError


@pytest.mark.parametrize("text, steps", [("0", [0]), ("3, 1,", [3, 1]), ("", [])])
def test_steps_in_their_order(text, steps):
  assert data.parse_steps(text, 4) == steps


@pytest.mark.parametrize("text, fragment", [
    ("4", "--steps=4: the run has steps 0 to 3, not 4"), ("1.0", "--steps=1.0: give numbers")])
def test_other_steps_are_refused(text, fragment):
  with pytest.raises(ConfigError, match=fragment):
    data.parse_steps(text, 4)


def test_it_needs_no_accelerator(recipe):
  """A host of a TPU pod cannot open its TPU alone; here, there is no such platform."""
  result = subprocess.run(
      [sys.executable, "-m", "bertgpt", "data", f"--config={recipe}"], check=False,
      capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "no_such_platform"})
  assert result.returncode == 0 and "corpus" in result.stdout, result.stderr
