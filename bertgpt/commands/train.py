"""`bertgpt train`: a training, from its start or its newest checkpoint to the report."""

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

HELP = "Train a model, or continue the run in --workdir."
USES = ("bertgpt.training.loop", "bertgpt.report.end_of_run")


def add_flags(parser):
  flags.add_config(parser)
  flags.add_workdir(parser)
  flags.add_distributed(parser)
  parser.add_argument("--allow_change", default="", metavar="FIELD,FIELD",
                      help="config fields that may differ from those the run was started with")


def check(arguments):
  if arguments.distributed:  # The devices of all are counted when the processes have joined.
    arguments.config = flags.read_config(arguments)
  else:
    arguments.config = flags.read_unvalidated(arguments, flags.own_devices)
  arguments.fields = parse_fields(arguments.allow_change, arguments.config)


def run(arguments):
  from bertgpt.report import end_of_run
  from bertgpt.training import loop
  path = arguments.workdir
  end_of_run.write(path, loop.train(arguments.config, path, arguments.fields))


def parse_fields(text: str, config) -> list[str]:
  """Returns the fields, or groups of fields, of --allow_change."""
  from bertgpt.config import recipes
  fields = [field.strip() for field in text.split(",") if field.strip()]
  for field in fields:
    if not recipes.is_field(config, field):
      raise ConfigError(f"--allow_change={text}: the config has no field or group {field!r}")
  return fields
