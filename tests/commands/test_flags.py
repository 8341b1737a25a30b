"""bertgpt.commands.flags: a number outside its bounds, or none, is refused with the bounds."""

import argparse

import pytest

from bertgpt.commands import flags
from bertgpt.inference import embed, zero_shot


@pytest.mark.parametrize("kind, low, high, text, value", [
    (int, 1, 9, "1", 1), (int, 1, 9, "9", 9), (float, 0, 1, "0.5", 0.5),
    (float, 0, 1, "1e-3", 1e-3)])
def test_numbers_in_their_bounds(kind, low, high, text, value):
  found = flags.number(kind, low, high)(text)
  assert found == value and isinstance(found, kind)


@pytest.mark.parametrize("kind, low, high, text, fragment", [
    (int, 1, 9, "0", "0: give a whole number of at least 1 and at most 9"),
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


def read(add_flags, *argv):
  command = argparse.ArgumentParser(exit_on_error=False)
  add_flags(command)
  return command.parse_args(argv)


@pytest.mark.parametrize("flag, most", [
    ("seed", 4294967295), ("top_k", 2147483647), ("num_samples", 65536)])
def test_numbers_for_the_device_fit_into_its_words(flag, most):
  assert getattr(read(flags.sampling_flags, f"--{flag}={most}"), flag) == most
  with pytest.raises(argparse.ArgumentError, match=f"and at most {most}"):
    read(flags.sampling_flags, f"--{flag}={most + 1}")


def test_layers_and_suites_are_those_that_there_are():
  """Written twice, so that --help need not wait for JAX."""
  command = argparse.ArgumentParser()
  flags.embed_flags(command)
  flags.suite_flags(command)
  actions = {action.dest: action for action in command._actions}
  assert tuple(actions["layer"].choices) == tuple(embed.LAYERS)
  assert actions["suite"].help.partition(": ")[2].split(", ") == list(zero_shot.SUITES)


def test_a_bucket_is_no_folder():
  assert str(flags.folder("runs/a")) == "runs/a"
  with pytest.raises(argparse.ArgumentTypeError, match="gs://b/run: only local paths"):
    flags.folder("gs://b/run")
