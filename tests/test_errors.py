"""bertgpt.errors: the documented exit codes are those that a command ends with."""

import re

from bertgpt import errors


def test_documented_exit_codes_are_those_of_the_classes():
  rows = re.findall(r"^\| (\d+) +\| `(\w+)`", errors.__doc__, flags=re.MULTILINE)
  assert {name: int(code) for code, name in rows} == {
      error.__name__: error.exit_code for error in errors.UserError.__subclasses__()}


def test_exit_codes_tell_the_errors_apart():
  codes = [error.exit_code for error in errors.UserError.__subclasses__()]
  assert len(set(codes)) == len(codes)
  assert 0 not in codes
