"""The commands of `make soak` and `make recovery` work, shortened."""

import re
import subprocess
import sys

import pytest
from program import ROOT


def run(script, *arguments):
  result = subprocess.run([sys.executable, ROOT / "tests" / "helpers" / script, *arguments],
                          text=True, capture_output=True)
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.mark.slow
def test_a_soak_disturbs_a_run_and_compares_it():
  out = run("soak.py", "--minutes=0.3", "--seed=3")
  assert int(re.search(r"rounds, bit-identical: (\d+)", out)[1]) >= 1
  assert int(re.search(r"starts: (\d+)", out)[1]) >= 2


@pytest.mark.slow
def test_recovery_is_measured_for_the_faults_that_are_named():
  header, _, row = run("recovery.py", "--repetitions=1", "--only=SIGTERM").splitlines()
  assert len(header.split("|")) == len(row.split("|")) and row.startswith("| SIGTERM to process 1")
