"""`bertgpt sweep`: training of all runs of a recipe's get_sweep(), one after the other."""

import argparse

from bertgpt.commands import flags

HELP = "Train every run of a recipe's get_sweep(), one after the other."
USES = ("bertgpt.training.sweep",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt sweep`."""
  flags.add_config(parser)
  flags.add_workdir(parser)
  parser.add_argument("--run", default=(0, 1), type=read_share, dest="share", metavar="I/N",
                      help="train only the runs I, I + N, I + 2N, ..., counted from 0, as one of N "
                           "commands, which may run on different hosts; default: all")


def resumes(arguments: argparse.Namespace) -> bool:
  """Returns that the runs continue from their checkpoints."""
  del arguments
  return True


def read_share(text: str) -> tuple[int, int]:
  """Returns the share of the runs that --run names.

  Args:
    text: value of the flag, as '0/4'.
  Raises:
    argparse.ArgumentTypeError: it is not I/N with 0 <= I < N.
  """
  first, _, every = text.partition("/")
  if first.isdecimal() and every.isdecimal() and int(first) < int(every):
    return int(first), int(every)
  raise argparse.ArgumentTypeError(f"{text}: give I/N with 0 <= I < N, as 0/4")


def run(arguments: argparse.Namespace) -> None:
  """Trains the runs in order."""
  from bertgpt.training import sweep
  sweep.run(arguments.recipe, arguments.workdir, arguments.overrides, arguments.share)
