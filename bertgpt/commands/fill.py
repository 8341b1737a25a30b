"""`bertgpt fill`: guesses of masked words."""

import argparse

from bertgpt.commands import flags

HELP = "Guess masked words with an encoder, such as a BERT."
USES = ("bertgpt.data.text.texts", "bertgpt.inference.fill")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt fill`."""
  flags.add_workdir(parser, flags.OR_MODEL)
  parser.add_argument("text", metavar="TEXT", help="text with one or more words replaced by [MASK]")
  parser.add_argument("--top", type=flags.number(int, 1), default=5, metavar="N",
                      help="words shown per [MASK]; default: 5")
  flags.add_dtype(parser)


def run(arguments: argparse.Namespace) -> None:
  """Prints the guesses."""
  from bertgpt.data.text import texts
  from bertgpt.inference import fill
  text = texts.clean_text(arguments.text, "TEXT")
  for line in fill.run(arguments.workdir, text, arguments.top, arguments.dtype):
    print(line)
