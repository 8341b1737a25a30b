"""`bertgpt embed`: features of texts, written to a file."""

from bertgpt.commands import flags

HELP = "Write the features that a BERT computes for texts."
USES = ("bertgpt.inference.embed",)


def add_flags(parser):
  flags.add_workdir(parser)
  parser.add_argument("--input", required=True, type=flags.local_path, metavar="FILE",
                      help="one text per line; in a .jsonl file the field text")
  parser.add_argument("--out", required=True, type=flags.local_path, metavar="FILE",
                      help="new .safetensors or .npy file")
  parser.add_argument("--layer", choices=("cls", "mean", "last", "last4"), default="mean",
                      help="per text, the last layer at [CLS] or its mean (the default); per "
                           "token, the last layer or the last four side by side")
  flags.add_batch_size(parser)


def run(arguments):
  from bertgpt.inference import embed
  print(embed.run(arguments.workdir, arguments.input, arguments.out, arguments.layer,
                  arguments.batch_size or flags.BATCH_SIZE))
