"""bertgpt.errors: exit codes are as documented, and every exception fits on one line."""

import errno
import gzip
import json
import os
import re

import pytest

from bertgpt import errors

# Tests of benchmarks define more of them.
CLASSES = [c for c in errors.UserError.__subclasses__() if c.__module__ == errors.__name__]


def test_documented_exit_codes_are_those_of_the_classes():
  rows = re.findall(r"^\| (\d+) +\| `(\w+)`", errors.__doc__, flags=re.MULTILINE)
  assert {name: int(code) for code, name in rows} == {
      error.__name__: error.exit_code for error in CLASSES}


def test_exit_codes_tell_the_errors_apart():
  codes = [error.exit_code for error in CLASSES]
  assert len(set(codes)) == len(codes)
  assert 0 not in codes


@pytest.mark.parametrize("error, code", [
    (OSError(28, "No space left on device"), 74), (OSError(2, "No such file"), 1),
    (BrokenPipeError(), 74), (KeyboardInterrupt(), 130), (ValueError(), 1)])
def test_exit_codes_of_other_errors(error, code):
  assert errors.exit_code(error) == code


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
                                    errno.EREMOTEIO, errno.ESTALE])
def test_the_error_of_a_mount_whose_server_is_gone_is_no_bug(number):
  error = OSError(number, os.strerror(number), "/mnt/text.txt")
  assert errors.exit_code(error) == errors.StorageError.exit_code


# ---------------------------------------------------------------- one_line


def raised_by(function, *arguments) -> Exception:
  try:
    function(*arguments)
  except Exception as e:
    return e
  raise AssertionError("nothing was raised")


class Cluster(RuntimeError):
  pass


@pytest.mark.parametrize("e, line", [
    (raised_by(open, "/no/such file"), "No such file or directory: /no/such file"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    (raised_by(gzip.decompress, b"plain text"), "Not a gzipped file (b'pl')"),
    (OSError(), "OSError"),
    (RuntimeError("the first line\n\n  and the\tsecond "), "the first line and the second"),
    (Cluster("UNAVAILABLE: no answer"), "UNAVAILABLE: no answer"),
    (RuntimeError(), "RuntimeError"),
    (Cluster("  \n"), "Cluster"),
    (raised_by(json.loads, "{"), "Expecting property name enclosed in double quotes: line 1 "
                                 "column 2 (char 1)"),
    (raised_by(b"\xff".decode), "'utf-8' codec can't decode byte 0xff in position 0: invalid "
                                "start byte"),
    (Exception("data did not match"), "data did not match"),
    (errors.DataError("a.txt: damaged;\nfetch it again"), "a.txt: damaged; fetch it again"),
    (raised_by(dict().__getitem__, "name"), "KeyError: 'name'"),
    (raised_by(lambda: 1 / 0), "ZeroDivisionError: division by zero"),
    (raised_by(lambda: "a" + 1), 'TypeError: can only concatenate str (not "int") to str'),
    (AssertionError(), "AssertionError"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
], ids=repr)
def test_one_line_of_an_exception(e, line):
  assert errors.one_line(e) == line


def test_problems_are_refused_together_and_none_are_no_error():
  errors.refuse([])
  with pytest.raises(errors.ConfigError, match="^first\nsecond$"):
    errors.refuse(["first", "second"])


def test_a_page_is_cut_to_one_line():
  line = errors.one_line(RuntimeError("word\n" * 1000))
  assert len(line) == errors.MAX_LINE_CHARS
  assert line.endswith(" wo...")
  assert errors.one_line(RuntimeError("a" * errors.MAX_LINE_CHARS)) == "a" * errors.MAX_LINE_CHARS
