"""`bertgpt prepare`: a prepared corpus, made from text."""

import argparse

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

HELP = "Turn text into a prepared corpus."
USES = ("bertgpt.data.corpus.prepare", "bertgpt.devices.watchdog")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt prepare`."""
  flags.add_config(parser, "data.invalid_text=skip")
  parser.add_argument("--out", type=flags.local_path, metavar="DIR",
                      help="new folder of the corpus; default: a folder in the cache of the config")


def check(arguments: argparse.Namespace) -> None:
  """Validates the config; a prepared corpus needs --out."""
  arguments.config = flags.read_config(arguments)
  corpus = arguments.config.data.corpus
  if arguments.out is None and corpus:
    raise ConfigError(f"data.corpus={corpus} is already prepared. Leave it empty to prepare "
                      "data.source, or give --out")


def run(arguments: argparse.Namespace) -> None:
  """Prepares the corpus and prints its path."""
  from bertgpt.data.corpus import prepare
  from bertgpt.devices import watchdog
  watchdog.arm(arguments.config.system.hang_timeout_minutes)
  if arguments.out is None:
    print(prepare.ensure_prepared(arguments.config))
  else:
    print(prepare.prepare(arguments.config, arguments.out))
