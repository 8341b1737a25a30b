"""`bertgpt train`: training, from the start or the newest checkpoint, and its report."""

import argparse
from typing import TYPE_CHECKING

from bertgpt.commands import flags
from bertgpt.errors import ConfigError, refuse

if TYPE_CHECKING:  # The config is slow to import.
  from bertgpt.config import ConfigDict

HELP = "Train a model, or continue the run in --workdir."
USES = ("bertgpt.devices.timeline", "bertgpt.report.end_of_run", "bertgpt.training.loop")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt train`."""
  flags.add_config(parser)
  flags.add_workdir(parser)
  flags.add_distributed(parser)
  parser.add_argument("--allow_change", default="", metavar="FIELD,FIELD",
                      help="config fields or groups that may differ from the existing run's")
  parser.set_defaults(resumes=True)


def check(arguments: argparse.Namespace) -> "tuple[ConfigDict, list[str]]":
  """Returns the config, and the fields that may differ from the existing run's.

  `training.open_run.open_run` validates the config with the devices.
  """
  from bertgpt import config as config_lib
  config, problems = flags.try_config(arguments)
  if arguments.distributed:  # The devices are known only when all processes have joined.
    refuse(problems + config_lib.find_problems(config))
  elif problems:
    refuse(problems + config_lib.find_problems(config, *own_devices()))
  return config, parse_fields(arguments.allow_change, config)


def run(arguments: argparse.Namespace, checked: "tuple[ConfigDict, list[str]]") -> None:
  """Trains, or continues, and writes the report."""
  from bertgpt.devices import timeline
  from bertgpt.report import end_of_run
  from bertgpt.training import loop
  config, fields = checked
  with timeline.recording():
    finished = loop.train(config, arguments.workdir, fields)
    with timeline.during("report"):
      end_of_run.write(finished)


def own_devices() -> tuple[int, str]:
  """Returns the number of devices of this process, and their platform, 'cpu', 'gpu' or 'tpu'."""
  import jax

  from bertgpt.devices import cluster
  return cluster.count_devices(), jax.default_backend()


def parse_fields(text: str, config: "ConfigDict") -> list[str]:
  """Returns the fields, or groups of fields, of --allow_change.

  Args:
    text: value of the flag, such as 'data,seed'.
    config: config of the run.
  Raises:
    ConfigError: the config has no such field or group.
  """
  from bertgpt.config import resuming
  fields = [field.strip() for field in text.split(",") if field.strip()]
  for field in fields:
    if not resuming.is_field(config, field):
      raise ConfigError(f"--allow_change={text}: the config has no field or group {field!r}. Name "
                        "one, such as data.source or optimizer")
  return fields
