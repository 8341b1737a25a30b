"""`bertgpt sweep`: training of all runs of a recipe's get_sweep(), one after the other."""

import argparse

from bertgpt.commands import flags

HELP = "Train every run of a recipe's get_sweep(), one after the other."
USES = ("bertgpt.training.sweep",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt sweep`."""
  flags.add_config(parser)
  flags.add_workdir(parser)
  parser.add_argument("--run", default=(0, 1), type=flags.share, dest="share", metavar="I/N",
                      help="train only the runs I, I + N, I + 2N, ..., counted from 0, as one of N "
                           "commands, which may run on different hosts; default: all")


def resumes(arguments: argparse.Namespace) -> bool:
  """Returns that the runs continue from their checkpoints."""
  del arguments
  return True


def run(arguments: argparse.Namespace) -> None:
  """Trains the runs in order."""
  from bertgpt.training import sweep
  sweep.run(arguments.recipe, arguments.workdir, arguments.overrides, arguments.share)
