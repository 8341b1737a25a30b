"""`bertgpt embed`: features of texts, written to a file."""

import argparse

from bertgpt.commands import flags

HELP = "Write features of texts, computed by an encoder, such as a BERT."
USES = ("bertgpt.inference.embed",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt embed`."""
  flags.add_workdir(parser, flags.OR_MODEL)
  parser.add_argument("--input", required=True, type=flags.local_path, metavar="FILE",
                      help="file with one text per line; of JSON lines (.jsonl, .ndjson, "
                           ".json), the field text")
  parser.add_argument("--out", required=True, type=flags.local_path, metavar="FILE",
                      help="new .safetensors or .npy file")
  parser.add_argument("--layer", choices=("cls", "mean", "last", "last3", "last4"),
                      default="mean",
                      help="per text: the last layer at [CLS] (cls) or its mean (mean, the "
                           "default); per token: the last layer (last), or the last three "
                           "or four, concatenated (last3, last4)")
  flags.add_batch_size(parser)
  flags.add_dtype(parser)
  parser.set_defaults(resumes=True)  # Unfinished features are kept.


def run(arguments: argparse.Namespace) -> None:
  """Writes the features and prints their shape."""
  from bertgpt.inference import embed
  print(embed.run(arguments.workdir, arguments.input, arguments.out, arguments.layer,
                  arguments.batch_size or flags.BATCH_SIZE, arguments.dtype))
