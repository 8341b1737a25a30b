"""Flags that several commands have, how values of flags are read, and the config they name."""

import argparse
import contextlib
import math
import pathlib
from collections.abc import Callable

from bertgpt.errors import ConfigError

BATCH_SIZE = 8  # Rows, if --batch_size is not given.
FIELDS_NOTE = ("Config fields are overridden by --config.FIELD=VALUE, as in "
               "--config.model.num_layers=4.")


# ------------------------------------------------------------------ values


def local_path(text: str) -> pathlib.Path:
  """Returns the absolute path of a flag; pathlib would make a local folder `gs:` of gs://bucket.

  Raises:
    argparse.ArgumentTypeError: the path is not on a file system.
  """
  from bertgpt import config as config_lib
  if problem := config_lib.remote_problem(text):
    raise argparse.ArgumentTypeError(problem)
  return pathlib.Path(text).expanduser().absolute()


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], int | float]:
  """Returns a function that reads the number of a flag, between two bounds."""
  def read(text):
    with contextlib.suppress(ValueError):
      if low <= (value := kind(text)) <= high and value < math.inf:
        return value
    limit = "" if high == math.inf else f" and at most {high}"
    what = "a whole number" if kind is int else "a number"
    raise argparse.ArgumentTypeError(f"{text}: give {what} of at least {low}{limit}")
  return read


# ------------------------------------------------------------------- flags


def add_config(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, metavar="RECIPE", dest="recipe",
                      help="the file of a recipe, or the name of one that comes with bertgpt, as "
                           "bert_base; `--config help` lists them")
  add_config_fields(parser)


def add_config_fields(parser: argparse.ArgumentParser) -> None:
  """Lets the command take --config.FIELD=VALUE; others refuse them."""
  parser.set_defaults(takes_fields=True)
  parser.epilog = FIELDS_NOTE


def add_workdir(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, type=local_path, metavar="DIR",
                      help="folder of the run")


def add_distributed(parser: argparse.ArgumentParser) -> None:
  """Flags of a command that computes for long: on many hosts, and with huge pages on a CPU."""
  parser.set_defaults(is_heavy=True)
  parser.add_argument("--distributed", default="", metavar="auto|HOST:PORT,N,I",
                      help="join several processes: auto on TPU pods, SLURM and Kubernetes")
  parser.add_argument("--distributed_timeout", type=float, default=300, metavar="SECONDS",
                      help="for all processes to find each other")


def add_batch_size(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--batch_size", type=number(int, 1), metavar="N",
                      help=f"rows computed at a time; default: {BATCH_SIZE}")


# ------------------------------------------------------------------ config


def try_config(arguments: argparse.Namespace):
  """Returns the recipe with its overrides, and a line per wrong override and for a wrong source.

  Raises:
    ConfigError: there is no such recipe, or it is broken.
  """
  from bertgpt.config import recipes
  from bertgpt.data.text import sources
  config, problems = recipes.try_override(recipes.load(arguments.recipe), arguments.overrides)
  try:
    if not config.data.corpus:
      sources.parse(config.data.source)
  except ConfigError as e:
    problems.append(str(e))
  return config, problems


def read_config(arguments: argparse.Namespace):
  """Returns the recipe with its overrides, validated as far as that needs no devices.

  Raises:
    ConfigError: every problem, one per line.
  """
  from bertgpt import config as config_lib
  config, problems = try_config(arguments)
  refuse(problems + config_lib.find_problems(config))
  return config


def read_unvalidated(arguments: argparse.Namespace, devices: Callable[[], tuple[int, str]]):
  """Returns the recipe with its overrides, for a function that validates it.

  Args:
    devices: returns the number and the platform of the devices; called only if an override or
      the source is wrong, to list all problems of the config together.
  Raises:
    ConfigError: every problem, one per line, if an override or the source is wrong.
  """
  from bertgpt import config as config_lib
  config, problems = try_config(arguments)
  if problems:
    refuse(problems + config_lib.find_problems(config, *devices()))
  return config


def own_devices() -> tuple[int, str]:
  """Returns the number of devices, and 'cpu', 'gpu' or 'tpu'."""
  import jax

  from bertgpt.devices import process
  return process.count_devices(), jax.default_backend()


def refuse(problems: list[str]) -> None:
  """Raises ConfigError if there are problems."""
  if problems:
    raise ConfigError("\n".join(problems))
