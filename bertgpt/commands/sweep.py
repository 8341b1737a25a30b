"""`bertgpt sweep`: the runs of a recipe's get_sweep(), one after the other."""

from bertgpt.commands import flags

HELP = "Train every run of the config's get_sweep(), one after the other."
USES = ("bertgpt.training.sweep",)


def add_flags(parser):
  flags.add_config(parser)
  flags.add_workdir(parser)


def run(arguments):
  from bertgpt.training import sweep
  sweep.run(arguments.recipe, arguments.workdir, arguments.overrides)
