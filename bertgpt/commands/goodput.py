"""`bertgpt goodput`: what the time of a run was spent on."""

import argparse
import json

from bertgpt.commands import flags

HELP = "Print what the time of a run was spent on, over all its attempts, and how each one ended."
USES = ("bertgpt.report.goodput",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt goodput`."""
  flags.add_workdir(parser)
  parser.add_argument("--json", action="store_true", help="print JSON, with times in seconds")


def run(arguments: argparse.Namespace) -> None:
  """Prints the summary."""
  from bertgpt.report import goodput
  if arguments.json:
    print(json.dumps(goodput.as_json(arguments.workdir), indent=2))
  else:
    print("\n".join(goodput.report(arguments.workdir)))
