"""`bertgpt import`: a run made from files of transformers."""

import argparse

from bertgpt.commands import flags

HELP = "Turn a model of transformers into a run, to evaluate it or train it further."
USES = ("bertgpt.hub.importing",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt import`."""
  parser.add_argument("--from", required=True, type=flags.local_path, metavar="DIR",
                      dest="source", help="folder with config.json, safetensors and a "
                                          "tokenizer")
  flags.add_workdir(parser, what="new folder of the run")


def run(arguments: argparse.Namespace) -> None:
  """Writes the run and prints a summary."""
  from bertgpt.hub import importing
  print(importing.import_model(arguments.source, arguments.workdir))
