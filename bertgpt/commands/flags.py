"""Flags of the commands that use trained models, and how values of flags are read."""

import argparse
import contextlib
import math
import pathlib
from collections.abc import Callable

from bertgpt import config as config_lib

BATCH_SIZE = 8  # Rows, where --batch_size is not given.


def folder(text: str) -> pathlib.Path:
  """The path of a flag; pathlib would make a local folder `gs:` of gs://bucket."""
  if problem := config_lib.remote_problem(text):
    raise argparse.ArgumentTypeError(problem)
  return pathlib.Path(text)


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], int | float]:
  """Reads the number of a flag, between two bounds."""
  def read(text):
    with contextlib.suppress(ValueError):
      if low <= (value := kind(text)) <= high and value < math.inf:
        return value
    limit = "" if high == math.inf else f" and at most {high}"
    what = "a whole number" if kind is int else "a number"
    raise argparse.ArgumentTypeError(f"{text}: give {what} of at least {low}{limit}")
  return read


def prompt_flags(command):
  given = command.add_mutually_exclusive_group(required=True)
  given.add_argument("--prompt", action="append", metavar="TEXT",
                     help="text to go on with; may be given several times")
  given.add_argument("--input", type=folder, metavar="FILE",
                     help="a prompt a line; of a .jsonl file the field text")


def sampling_flags(command):
  command.add_argument("--max_tokens", type=number(int, 1), metavar="N",
                       help="tokens added at most; default: 100, or what the rows of the training "
                            "leave")
  command.add_argument("--temperature", type=number(float, 0), default=1.0, metavar="T",
                       help="0 takes the likeliest token; default: 1")
  command.add_argument("--top_k", type=number(int, 0, 2**31 - 1), default=0, metavar="K",
                       help="draw among the K likeliest tokens; 0: among all")
  command.add_argument("--top_p", type=number(float, 1e-6, 1), default=1.0, metavar="P",
                       help="draw among the fewest likeliest tokens that have this probability "
                            "together")
  command.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N",
                       help="of the draws; default: 0")
  command.add_argument("--num_samples", type=number(int, 1, 2**16), default=1, metavar="N",
                       help="continuations of each prompt")


def batch_size_flag(command):
  command.add_argument("--batch_size", type=number(int, 1), metavar="N",
                       help=f"rows computed at a time; default: {BATCH_SIZE}")


def fill_flags(command):
  command.add_argument("text", metavar="TEXT", help="with [MASK] in place of one word or more")
  command.add_argument("--top", type=number(int, 1), default=5, metavar="N",
                       help="words shown for each; default: 5")


def embed_flags(command):
  command.add_argument("--input", required=True, type=folder, metavar="FILE",
                       help="a text a line; of a .jsonl file the field text")
  command.add_argument("--out", required=True, type=folder, metavar="FILE",
                       help="new .safetensors or .npy file")
  command.add_argument("--layer", choices=("cls", "mean", "last", "last4"), default="mean",
                       help="of each text the last layer at [CLS], or its mean (the default); of "
                            "each token the last layer, or the last four side by side")


def suite_flags(command):
  command.add_argument("--suite", metavar="NAME=FILE,...",
                       help="zero-shot protocols: text, wikitext2, wikitext103, lambada, "
                            "lambada_stop_words, lambada_last_token, pairs")
  command.add_argument("--window", type=number(int, 0), default=0, metavar="N",
                       help="of --suite: tokens seen at a time; default: as in training")
  command.add_argument("--stride", type=number(int, 0), default=0, metavar="N",
                       help="of --suite: tokens scored with each window; default: half of it")
  command.add_argument("--limit", type=number(int, 0), default=0, metavar="N",
                       help="of --suite: windows, passages, lines or pairs scored; default: all")
