"""bertgpt.commands.generate: numbers fit into the integer types of the device."""

import argparse

import pytest

from bertgpt import cli
from bertgpt.commands import generate


def test_a_folder_that_does_not_exist_is_called_so(tmp_path, capsys):
  assert cli.main(["generate", f"--workdir={tmp_path / 'none'}", "--prompt=a"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert (f"--workdir {tmp_path / 'none'}: no such folder. Give the folder of a run, or of a model "
          "of transformers") in line


@pytest.mark.parametrize("flag, most", [
    ("seed", 4294967295), ("top_k", 2147483647), ("num_samples", 65536)])
def test_numbers_for_the_device_fit_into_its_words(flag, most):
  parser = argparse.ArgumentParser(exit_on_error=False)
  generate.add_flags(parser)
  argv = ["--workdir=w", "--prompt=a"]
  assert getattr(parser.parse_args([*argv, f"--{flag}={most}"]), flag) == most
  with pytest.raises(argparse.ArgumentError, match=f"and at most {most}"):
    parser.parse_args([*argv, f"--{flag}={most + 1}"])
