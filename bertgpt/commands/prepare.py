"""`bertgpt prepare`: a prepared corpus, made from text."""

import argparse
from typing import TYPE_CHECKING

from bertgpt import console
from bertgpt.commands import flags
from bertgpt.errors import ConfigError

if TYPE_CHECKING:  # The config is slow to import.
  from bertgpt.config import ConfigDict

HELP = "Turn text into a prepared corpus."
USES = ("bertgpt.data.corpus.corpus", "bertgpt.data.corpus.prepare",
        "bertgpt.data.corpus.machines", "bertgpt.data.corpus.beam", "bertgpt.data.text.pieces",
        "bertgpt.devices.watchdog")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt prepare`."""
  flags.add_config(parser, "data.invalid_text=skip")
  parser.add_argument("--out", type=flags.any_path, metavar="DIR",
                      help="new folder of the corpus; default: a folder in the cache of the config")
  step = parser.add_mutually_exclusive_group()
  step.add_argument("--part", type=flags.share, metavar="I/N",
                    help="prepare only part I of N, counted from 0, into DIR.parts; the parts may "
                         "be prepared on different hosts")
  step.add_argument("--merge", action="store_true",
                    help="make the corpus from all parts; it is the same as without parts")
  step.add_argument("--engine", choices=("beam",),
                    help="prepare the parts on the workers of Apache Beam, and merge them")
  parser.add_argument("--beam_args", default="", metavar="OPTIONS",
                      help="options of Beam, such as '--runner=FlinkRunner --parallelism=64'; "
                           "default: its DirectRunner, on this machine")
  parser.add_argument("--train_tokenizer", action="store_true",
                      help="only train the tokenizer that the parts need, into DIR.parts; with "
                           "--part I/N, only take part I of its sample; with --merge, train it on "
                           "all parts of the sample")


def check(arguments: argparse.Namespace) -> "ConfigDict":
  """Returns the config, which is validated; a prepared corpus, and parts of one, need --out."""
  config = flags.read_config(arguments)
  corpus = config.data.corpus
  if arguments.out is None and corpus:
    raise ConfigError(f"data.corpus={corpus} is already prepared. Leave it empty to prepare "
                      "data.source, or give --out")
  given = [flag for flag in ("part", "merge", "train_tokenizer", "engine")
           if getattr(arguments, flag)]
  if arguments.out is None and given:
    raise ConfigError(f"--{given[0]}: give --out, the folder of the corpus, to every command that "
                      "prepares a part of it")
  if arguments.out and not arguments.out.name:
    raise ConfigError(f"--out {arguments.out}: is not a new folder. Name a folder in it")
  if arguments.engine and arguments.train_tokenizer:
    raise ConfigError("--train_tokenizer: the engine trains the tokenizer by itself. Leave it out")
  if arguments.beam_args and not arguments.engine:
    raise ConfigError("--beam_args: give --engine beam too, or leave them out")
  return config


def run(arguments: argparse.Namespace, config: "ConfigDict") -> None:
  """Prepares the corpus, or a part of it, and prints its path."""
  from bertgpt.data.corpus import beam, corpus, machines, prepare
  from bertgpt.data.text import pieces
  from bertgpt.devices import watchdog
  out = arguments.out
  watchdog.arm(config.system.hang_timeout_minutes)
  if arguments.part:
    make = machines.sample_part if arguments.train_tokenizer else machines.prepare_part
    print(make(config, out, pieces.Part(*arguments.part)))
    return
  if arguments.train_tokenizer:
    print(machines.train_tokenizer(config, out, merges=arguments.merge))
    return
  if arguments.engine:
    with watchdog.paused():  # The engine has limits of its own.
      path = beam.prepare(config, out, arguments.beam_args)
  elif arguments.merge:
    path = machines.merge(config, out)
  else:
    path = prepare.prepare(config, out) if out else prepare.ensure_prepared(config)
  if warning := corpus.describe_unknown(corpus.read_manifest(path)):
    console.say(warning)
  print(path)
