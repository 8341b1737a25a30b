"""`bertgpt import`: a run made from the files of transformers."""

from bertgpt.commands import flags

HELP = "Make a run of a model of transformers, to evaluate or to train further."
USES = ("bertgpt.hub.export",)


def add_flags(parser):
  parser.add_argument("--from", required=True, type=flags.local_path, metavar="DIR",
                      dest="source", help="folder with config.json, model.safetensors and a "
                                          "tokenizer")
  flags.add_workdir(parser)


def run(arguments):
  from bertgpt.hub import export
  print(export.import_model(arguments.source, arguments.workdir))
