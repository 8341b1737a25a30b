"""bertgpt.commands.flags: numbers are within bounds, paths are absolute and local."""

import argparse
import math
import pathlib

import pytest

from bertgpt.commands import flags


@pytest.mark.parametrize("kind, low, high, text, value", [
    (int, 1, 9, "1", 1), (int, 1, 9, "9", 9), (float, 0, 1, "0.5", 0.5),
    (float, 0, 1, "1e-3", 1e-3)])
def test_numbers_in_their_bounds(kind, low, high, text, value):
  found = flags.number(kind, low, high)(text)
  assert found == value and isinstance(found, kind)


@pytest.mark.parametrize("kind, low, high, text, fragment", [
    (int, 1, 9, "0", "0: give a whole number of at least 1 and at most 9"),
    (int, 1, math.inf, str(2**63), "a whole number of at least 1"),
    (int, 1, 9, "10", "at most 9"), (int, 0, 9, "1.5", "a whole number"), (int, 0, 9, "", "whole"),
    (float, 0, 1, "1.01", "give a number of at least 0 and at most 1"),
    (float, 0, 1, "nan", "nan: give a number"), (float, 0, 1, "x", "x: give a number")])
def test_others_are_refused(kind, low, high, text, fragment):
  with pytest.raises(argparse.ArgumentTypeError, match=fragment):
    flags.number(kind, low, high)(text)


@pytest.mark.parametrize("text", ["inf", "-inf"])
def test_without_an_upper_bound_infinity_is_still_no_number(text):
  with pytest.raises(argparse.ArgumentTypeError):
    flags.number(float, 0)(text)


def test_paths_are_absolute(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", "/home/someone")
  assert flags.local_path("runs/a") == tmp_path / "runs/a"
  assert flags.local_path("~/a") == pathlib.Path("/home/someone/a")


def test_a_bucket_is_a_path_where_it_is_supported():
  with pytest.raises(argparse.ArgumentTypeError, match="gs://b/run: only local paths"):
    flags.local_path("gs://b/run")
  assert str(flags.any_path("gs://b/run/")) == "gs://b/run"
  with pytest.raises(argparse.ArgumentTypeError, match="s3://b/run: s3:// is not read or written"):
    flags.any_path("s3://b/run")
