"""`bertgpt rollback`: a run as it was at an earlier checkpoint."""

import argparse

from bertgpt.commands import flags

HELP = "Take a run back to an earlier checkpoint; later ones are set aside."
USES = ("bertgpt.runs.upkeep",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt rollback`."""
  flags.add_workdir(parser)
  parser.add_argument("--to", required=True, type=flags.number(int, 0), metavar="STEP",
                      help="checkpoint from which the next `bertgpt train` continues")
  parser.set_defaults(resumes=True)


def run(arguments: argparse.Namespace) -> None:
  """Sets the later checkpoints and the curves beyond the step aside."""
  from bertgpt.runs import upkeep
  path, step = arguments.workdir, arguments.to
  aside = upkeep.roll_back(path, step)
  print(f"{path}: at step {step}. Set aside: {', '.join(aside) or 'nothing'}. `bertgpt train` "
        "continues from here. To skip batches, set --config.train.skip_steps")
