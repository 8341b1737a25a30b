"""`bertgpt export`: a trained model as files of transformers."""

import argparse

from bertgpt.commands import flags

HELP = "Write a trained model as a folder that transformers can load."
USES = ("bertgpt.hub.export",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt export`."""
  flags.add_workdir(parser, "; or a fine-tuning workdir, whose best run is used")
  parser.add_argument("--out", required=True, type=flags.any_path, metavar="DIR",
                      help="new folder for config.json, model.safetensors, tokenizer.json etc.")


def run(arguments: argparse.Namespace) -> None:
  """Writes the folder and prints a summary."""
  from bertgpt.hub import export
  print(export.export(arguments.workdir, arguments.out))
