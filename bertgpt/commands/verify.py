"""`bertgpt verify`: whether the checkpoints of a run are what was saved."""

import argparse

from bertgpt.commands import flags

HELP = "Check every checkpoint of a run, without training and without changing anything."
USES = ("bertgpt.runs.upkeep",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt verify`."""
  flags.add_workdir(parser, "; or a fine-tuning workdir")


def run(arguments: argparse.Namespace) -> int:
  """Prints a line per checkpoint."""
  from bertgpt.runs import upkeep
  code = 0
  for line, is_good in upkeep.verify(arguments.workdir):
    print(line, flush=True)
    code = code if is_good else upkeep.DAMAGED_CODE
  return code
