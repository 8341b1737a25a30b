"""Flags that several commands share, the reading of their values, and the config they describe."""

import argparse
import contextlib
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from bertgpt.errors import ConfigError, refuse

if TYPE_CHECKING:  # The config is slow to import.
  from bertgpt.config import ConfigDict

MAX_WHOLE = 2**31 - 1  # Of whole numbers without another limit: they fit into an int32.
BATCH_SIZE = 8  # Rows computed at a time if --batch_size is not given.
DTYPES = ("float32", "bfloat16")  # Of scores and features; the first is the default.
OR_MODEL = ", or of a model of transformers"
FIELDS_NOTE = "Config fields are overridden with --config.FIELD=VALUE, for example {}."
FIELD_EXAMPLE = "model.num_layers=4"  # For commands that make a model, or its batches.


# ------------------------------------------------------------------ values


def local_path(text: str) -> pathlib.Path:
  """Returns the absolute path that a flag names.

  Args:
    text: value of the flag.
  Raises:
    argparse.ArgumentTypeError: the path is not on a file system, such as gs://bucket, which
      pathlib would turn into a local folder `gs:`.
  """
  from bertgpt import config as config_lib
  from bertgpt import files
  if problem := config_lib.remote_problem(text):
    raise argparse.ArgumentTypeError(problem)
  return files.expand(text).absolute()


def any_path(text: str) -> pathlib.Path:
  """Returns the absolute path that a flag names, on a file system or in a bucket of gs://.

  Args:
    text: value of the flag.
  Raises:
    argparse.ArgumentTypeError: the path is in another storage.
  """
  from bertgpt import files
  try:
    return files.make_path(text)
  except ConfigError as e:
    raise argparse.ArgumentTypeError(str(e)) from e


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], int | float]:
  """Returns a function that reads a number from the value of a flag.

  Args:
    kind: int or float.
    low: smallest allowed number.
    high: largest allowed number; infinity: for whole numbers, MAX_WHOLE.
  """
  most = MAX_WHOLE if kind is int and high == math.inf else high

  def read(text: str) -> int | float:
    value: int | float = math.nan
    with contextlib.suppress(ValueError):
      if low <= (value := kind(text)) <= most and value < math.inf:
        return value
    limit = "" if most == math.inf else f" and at most {most}"
    what = ("a whole number" if kind is int else
            "a finite number" if value == math.inf else "a number")
    raise argparse.ArgumentTypeError(f"{text}: give {what} of at least {low}{limit}")
  return read


def share(text: str) -> tuple[int, int]:
  """Returns (I, N) of a flag that names one of N shares of some work.

  Args:
    text: value of the flag, such as '0/4'.
  Raises:
    argparse.ArgumentTypeError: it is not I/N with 0 <= I < N.
  """
  first, _, every = text.partition("/")
  if first.isdecimal() and every.isdecimal() and int(first) < int(every):
    return int(first), int(every)
  raise argparse.ArgumentTypeError(f"{text}: give I/N with 0 <= I < N, such as 0/4")


# ------------------------------------------------------------------- flags


class Recipe(argparse.Action):
  """Stores the value of --config; `help` prints the recipes and ends the program at once."""

  def __call__(self, parser, namespace, values, option_string=None):
    """See argparse.Action."""
    if values == "help":
      from bertgpt.config import recipes
      print("\n".join(recipes.list_lines(parser.get_default("takes_fields"))))
      parser.exit()
    setattr(namespace, self.dest, values)


def add_config(parser: argparse.ArgumentParser, example: str = FIELD_EXAMPLE,
               fields: str = "bertgpt.config", recipe: str = "bert_base") -> None:
  """Adds the required flag --config, and lets the command take --config.FIELD=VALUE.

  Args:
    parser: parser of the command.
    example: see `add_config_fields`.
    fields: see `add_config_fields`.
    recipe: name of a recipe that the command accepts, for its help.
  """
  parser.add_argument("--config", required=True, metavar="RECIPE", dest="recipe", action=Recipe,
                      help="file of a recipe, or name of one that comes with bertgpt, such as "
                           f"{recipe}; `--config help` lists them")
  add_config_fields(parser, example, fields)


def add_config_fields(parser: argparse.ArgumentParser, example: str,
                      fields: str = "bertgpt.config") -> None:
  """Lets the command take --config.FIELD=VALUE, which other commands refuse.

  Args:
    parser: parser of the command.
    example: FIELD=VALUE that the command accepts, for its help.
    fields: name of the module whose `base()` has the fields.
  """
  parser.set_defaults(takes_fields=fields)
  parser.epilog = FIELDS_NOTE.format(f"--config.{example}")


def add_workdir(parser: argparse.ArgumentParser, also: str = "",
                what: str = "folder of the run") -> None:
  """Adds the required flag --workdir.

  Args:
    parser: parser of the command.
    also: end of the help, which says what the folder may be instead.
    what: start of the help, which says what the folder is.
  """
  parser.add_argument("--workdir", required=True, type=any_path, metavar="DIR",
                      help=f"{what}, on a disk or as gs://BUCKET/NAME{also}")


def add_distributed(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of commands that may use several hosts and, on a CPU, huge pages."""
  parser.set_defaults(is_heavy=True)
  parser.add_argument("--distributed", default="", metavar="auto|HOST:PORT,N,I",
                      help="how to find the other processes: auto on TPU pods, SLURM and "
                           "Kubernetes; or the address of process 0, the number of processes, and "
                           "the index of this one, from 0")
  parser.add_argument("--distributed_timeout", type=number(float, 1, 1e6), default=300,
                      metavar="SECONDS",
                      help="time in which all processes must join; default: 300")


def add_batch_size(parser: argparse.ArgumentParser, before: str = "") -> None:
  """Adds the flag --batch_size.

  Args:
    parser: parser of the command.
    before: start of the help.
  """
  parser.add_argument("--batch_size", type=number(int, 1), metavar="N",
                      help=f"{before}rows computed at a time; default: {BATCH_SIZE}")


def add_dtype(parser: argparse.ArgumentParser) -> None:
  """Adds the flag --dtype."""
  parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0],
                      help=f"type that the model computes in; default: {DTYPES[0]}, whatever type "
                           "it was trained in")


# ------------------------------------------------------------------ config


def try_config(arguments: argparse.Namespace) -> "tuple[ConfigDict, list[str]]":
  """Returns the recipe with its overrides, and the problems with these flags.

  Args:
    arguments: values of the flags.
  Returns:
    (config, one line per wrong override and for a wrong `data.source`).
  Raises:
    ConfigError: there is no such recipe, or it is broken.
  """
  from bertgpt.config import recipes
  from bertgpt.config.overrides import try_override
  from bertgpt.data.corpus import splits
  config, problems = try_override(recipes.load(arguments.recipe), arguments.overrides)
  try:
    if not config.data.corpus:
      splits.check(config.data.source, config.data.validation_fraction)
  except ConfigError as e:
    problems.append(str(e))
  return config, problems


def read_config(arguments: argparse.Namespace) -> "ConfigDict":
  """Returns the recipe with its overrides, validated except for the devices.

  Args:
    arguments: values of the flags.
  Raises:
    ConfigError: the config has problems; the message has one line per problem.
  """
  from bertgpt import config as config_lib
  config, problems = try_config(arguments)
  refuse(problems + config_lib.find_problems(config))
  return config
