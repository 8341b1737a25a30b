"""`bertgpt export`: a trained model in the files of transformers."""

from bertgpt.commands import flags

HELP = "Write a trained model as a folder that transformers reads."
USES = ("bertgpt.hub.export",)


def add_flags(parser):
  flags.add_workdir(parser)
  parser.add_argument("--out", required=True, type=flags.local_path, metavar="DIR",
                      help="new folder, for config.json, model.safetensors, tokenizer.json ...")


def run(arguments):
  from bertgpt.hub import export
  print(export.export(arguments.workdir, arguments.out))
