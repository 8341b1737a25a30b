"""`bertgpt predict`: predictions of a fine-tuned model on new examples."""

import argparse

from bertgpt.commands import flags

HELP = "Apply a fine-tuned model to new examples."
USES = ("bertgpt.finetuning.predict",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt predict`."""
  parser.add_argument("--workdir", required=True, type=flags.local_path, metavar="DIR",
                      help="folder of a fine-tuning run, or a fine-tuning workdir, whose best run "
                           "is used")
  parser.add_argument("--input", required=True, type=flags.local_path, metavar="FILE",
                      help="file of examples: .jsonl, or in the format of the task, such as a TSV "
                           "file, a CoNLL file or SQuAD's JSON")
  parser.add_argument("--out", type=flags.local_path, metavar="FILE",
                      help="new file of the predictions; default: they are printed")
  parser.add_argument("--format", choices=("text", "jsonl"), default="",
                      help="tables (text) or JSON lines (jsonl); default: jsonl if --out ends "
                           "in .jsonl, otherwise text")
  flags.add_batch_size(parser)
  flags.add_dtype(parser)


def run(arguments: argparse.Namespace) -> None:
  """Writes the predictions."""
  from bertgpt.finetuning import predict
  predict.run(arguments.workdir, arguments.input, arguments.out, arguments.format,
              arguments.batch_size or flags.BATCH_SIZE, arguments.dtype)
