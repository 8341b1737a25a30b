"""`bertgpt prepare`: text made into a prepared corpus."""

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

HELP = "Turn text into a prepared corpus."
USES = ("bertgpt.data.corpus.prepare",)


def add_flags(parser):
  flags.add_config(parser)
  parser.add_argument("--out", type=flags.local_path, metavar="DIR",
                      help="where to write the corpus; default: the cache of the config")


def check(arguments):
  arguments.config = flags.read_config(arguments)
  corpus = arguments.config.data.corpus
  if arguments.out is None and corpus:
    raise ConfigError(f"data.corpus={corpus} is prepared already; leave it empty to prepare "
                      "data.source, or give --out")


def run(arguments):
  from bertgpt.data.corpus import prepare
  if arguments.out is None:
    print(prepare.ensure_prepared(arguments.config))
  else:
    print(prepare.prepare(arguments.config, arguments.out))
