"""`bertgpt data`: a report on the batches of a config."""

import argparse
from typing import TYPE_CHECKING

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

if TYPE_CHECKING:  # The config is slow to import.
  from bertgpt.config import ConfigDict

HELP = "Show the batches that a config makes."
USES = ("bertgpt.report.batches",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt data`."""
  flags.add_config(parser)
  parser.add_argument("--steps", metavar="N,N",
                      help="steps whose batches are hashed, counted from 0; default: the first "
                           "three")


def check(arguments: argparse.Namespace) -> "tuple[ConfigDict, list[int]]":
  """Returns the config, which is validated, and the steps whose batches are hashed."""
  from bertgpt import config as config_lib
  config = flags.read_config(arguments)
  num_steps = config_lib.total_steps(config)
  if arguments.steps is None:
    return config, list(range(min(3, num_steps)))
  return config, parse_steps(arguments.steps, num_steps)


def run(arguments: argparse.Namespace, checked: "tuple[ConfigDict, list[int]]") -> None:
  """Prints the report on the batches."""
  import jax

  from bertgpt.report import batches

  # Masks are the same on every platform, and a host of a pod cannot open its TPU alone.
  jax.config.update("jax_platforms", "cpu")
  print(batches.describe_data(*checked))


def parse_steps(text: str, num_steps: int) -> list[int]:
  """Returns the steps that --steps names.

  Args:
    text: value of the flag, such as '0,1,2'.
    num_steps: steps of the run, which are counted from 0.
  Raises:
    ConfigError: the text is not a list of numbers, or the run has no such step.
  """
  try:
    steps = [int(step) for step in text.split(",") if step.strip()]
  except ValueError:
    raise ConfigError(f"--steps={text}: give numbers, such as 0,1,2") from None
  for step in steps:
    if not 0 <= step < num_steps:
      raise ConfigError(f"--steps={text}: the run has steps 0 to {num_steps - 1}, not {step}")
  return steps
