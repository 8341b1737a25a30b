"""`bertgpt fill`: guesses of masked words."""

from bertgpt.commands import flags

HELP = "Guess masked words with a BERT."
USES = ("bertgpt.inference.fill",)


def add_flags(parser):
  flags.add_workdir(parser)
  parser.add_argument("text", metavar="TEXT", help="with [MASK] in place of one word or more")
  parser.add_argument("--top", type=flags.number(int, 1), default=5, metavar="N",
                      help="words shown for each; default: 5")


def run(arguments):
  from bertgpt.inference import fill
  for line in fill.run(arguments.workdir, arguments.text, arguments.top):
    print(line)
