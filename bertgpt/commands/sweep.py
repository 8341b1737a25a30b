"""`bertgpt sweep`: training of all runs of a recipe's get_sweep()."""

import argparse

from bertgpt.commands import flags

HELP = "Train every run of a recipe's get_sweep(), one after the other or several at a time."
USES = ("bertgpt.training.sweep", "bertgpt.report.compare")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt sweep`."""
  flags.add_config(parser)
  flags.add_workdir(parser)
  parser.add_argument("--run", default=(0, 1), type=flags.share, dest="share", metavar="I/N",
                      help="train only the runs I, I + N, I + 2N, ..., counted from 0, as one of N "
                           "commands, which may run on different hosts; default: all")
  parser.add_argument("--max_parallel", type=flags.number(int, 1), default=1, metavar="N",
                      help="train N runs at a time on this host; default: 1")


def resumes(arguments: argparse.Namespace) -> bool:
  """Returns True: the runs continue from their checkpoints."""
  del arguments
  return True


def run(arguments: argparse.Namespace) -> None:
  """Trains the runs, and writes a page that compares them."""
  from bertgpt.report import compare
  from bertgpt.training import sweep
  sweep.run(arguments.recipe, arguments.workdir, arguments.overrides, arguments.share,
            arguments.max_parallel)
  if (runs := compare.find_runs([arguments.workdir])) != [arguments.workdir]:
    compare.write_page(compare.read(runs), arguments.workdir / "sweep.html",
                       f"Sweep {arguments.workdir.name}")
