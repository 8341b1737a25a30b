"""`bertgpt evaluate`: scores on the validation split, or on zero-shot protocols."""

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

HELP = "Score a trained model on the validation split, or zero-shot."
USES = ("bertgpt.training.evaluate", "bertgpt.inference.zero_shot")


def add_flags(parser):
  flags.add_workdir(parser)
  flags.add_config_fields(parser)
  flags.add_distributed(parser)
  parser.add_argument("--suite", metavar="NAME=FILE,...",
                      help="zero-shot protocols: text, wikitext2, wikitext103, lambada, "
                           "lambada_stop_words, lambada_last_token, pairs")
  parser.add_argument("--window", type=flags.number(int, 0), default=0, metavar="N",
                      help="for --suite: tokens seen at a time; default: as in training")
  parser.add_argument("--stride", type=flags.number(int, 0), default=0, metavar="N",
                      help="for --suite: tokens scored with each window; default: half of it")
  parser.add_argument("--limit", type=flags.number(int, 0), default=0, metavar="N",
                      help="for --suite: windows, passages, lines or pairs scored; default: all")
  flags.add_batch_size(parser)


def check(arguments):
  if arguments.suite is None:
    for flag in ("window", "stride", "limit", "batch_size"):
      if getattr(arguments, flag):
        raise ConfigError(f"--{flag} belongs to --suite, which is not given")
    return
  if arguments.overrides:
    raise ConfigError(f"{arguments.overrides[0]}: evaluate takes no config fields with --suite")
  if arguments.distributed:
    raise ConfigError("--suite runs in one process; leave --distributed out")


def run(arguments):
  from bertgpt.inference import zero_shot
  from bertgpt.training import evaluate
  if arguments.suite is None:
    for name, value in evaluate.evaluate_workdir(arguments.workdir, arguments.overrides).items():
      print(f"{name} {value:.6g}")
    return
  settings = zero_shot.Settings(arguments.window, arguments.stride, arguments.limit,
                                arguments.batch_size or flags.BATCH_SIZE)
  for line in zero_shot.run(arguments.workdir, arguments.suite, settings):
    print(line, flush=True)
