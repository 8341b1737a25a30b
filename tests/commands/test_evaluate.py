"""bertgpt.commands.evaluate: flags of suites, and flags that exclude each other."""

import argparse

import pytest

from bertgpt import cli
from bertgpt.commands import evaluate
from bertgpt.inference import suites


def test_suites_are_those_that_there_are():
  """The suites are listed twice, so that --help does not wait for JAX."""
  parser = argparse.ArgumentParser()
  evaluate.add_flags(parser)
  (action,) = (action for action in parser._actions if action.dest == "suite")
  assert action.help.partition(": ")[2].split(", ") == list(suites.SUITES)


@pytest.mark.parametrize("arguments, fragment", [
    (["--window=8"], "--window belongs to --suite"),
    (["--suite=text=a.txt", "--distributed=auto"], "--suite runs in one process"),
])
def test_flags_that_exclude_each_other_are_refused_before_anything_is_opened(
    capsys, tmp_path, arguments, fragment):
  assert cli.main(["evaluate", f"--workdir={tmp_path / 'none'}", *arguments]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert fragment in line
