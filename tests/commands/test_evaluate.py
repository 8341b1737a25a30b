"""bertgpt.commands.evaluate: flags of suites, and flags that exclude each other."""

import argparse
import math

import pytest

from bertgpt import cli
from bertgpt.commands import evaluate
from bertgpt.devices import watchdog
from bertgpt.inference import suites, zero_shot


def test_suites_are_those_that_there_are():
  """The suites are listed twice, so that --help does not wait for JAX."""
  parser = argparse.ArgumentParser()
  evaluate.add_flags(parser)
  (action,) = (action for action in parser._actions if action.dest == "suite")
  assert action.help.partition(": ")[2].split(", ") == list(suites.SUITES)


def test_a_suite_may_take_any_time(tmp_path, monkeypatch):
  """The limit of the start would end it after an hour."""
  left = []
  monkeypatch.setattr(zero_shot, "run", lambda *args: left.append(watchdog.deadline()) or ())
  assert cli.main(["evaluate", f"--workdir={tmp_path}", "--suite=text=a.txt"]) == 0
  assert left == [math.inf]


@pytest.mark.parametrize("arguments, fragment", [
    (["--window=8"], "--window belongs to --suite"),
    (["--suite=text=a.txt", "--distributed=auto"], "--suite runs in one process"),
])
def test_flags_that_exclude_each_other_are_refused_before_anything_is_opened(
    capsys, tmp_path, arguments, fragment):
  assert cli.main(["evaluate", f"--workdir={tmp_path / 'none'}", *arguments]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert fragment in line
