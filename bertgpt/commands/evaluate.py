"""`bertgpt evaluate`: scores on the validation split or on zero-shot protocols."""

import argparse

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

HELP = "Score a trained model on the validation split, or zero-shot."
USES = ("bertgpt.devices.watchdog", "bertgpt.training.evaluate_run", "bertgpt.inference.zero_shot")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt evaluate`."""
  flags.add_workdir(parser, "; with --suite, also that of a model of transformers")
  flags.add_config_fields(parser, "eval.batch_size=8")
  flags.add_distributed(parser)
  parser.add_argument("--suite", metavar="NAME=FILE,...",
                      help="zero-shot protocols with their files: text, wikitext2, wikitext103, "
                           "lambada, lambada_stop_words, lambada_last_token, pairs, choices")
  parser.add_argument("--window", type=flags.number(int, 0), default=0, metavar="N",
                      help="for --suite: tokens per window; default: as in training")
  parser.add_argument("--stride", type=flags.number(int, 0), default=0, metavar="N",
                      help="for --suite: tokens scored per window; default: half of --window")
  parser.add_argument("--limit", type=flags.number(int, 0), default=0, metavar="N",
                      help="for --suite: number of windows, passages, pairs, choices, or, for a "
                           "BERT, lines or parts of lines; default: all")
  parser.add_argument("--out", type=flags.local_path, metavar="FILE",
                      help="for --suite: new .jsonl file for the scores of every text; if the work "
                           "is interrupted, the same command resumes it")
  flags.add_batch_size(parser, "for --suite: ")
  flags.add_dtype(parser)
  parser.set_defaults(dtype=None)  # So that `check` knows whether it was given.


def check(arguments: argparse.Namespace) -> None:
  """Refuses flags that exclude each other. With --out, the work resumes."""
  if arguments.suite is None:
    for flag in ("window", "stride", "limit", "out", "batch_size"):
      if getattr(arguments, flag):
        raise ConfigError(f"--{flag} belongs to --suite, which is missing. Give both or neither")
    override = next((o for o in arguments.overrides if o.startswith("--config.model.dtype=")), "")
    if override and arguments.dtype:
      raise ConfigError(f"--dtype and {override} name the dtype twice. Leave one of them out")
    return
  if arguments.overrides:
    raise ConfigError(f"{arguments.overrides[0]}: evaluate takes no config fields with --suite. "
                      "Leave it out")
  if arguments.distributed:
    raise ConfigError("--suite runs in one process. Leave --distributed out")
  arguments.resumes = arguments.out is not None


def run(arguments: argparse.Namespace) -> None:
  """Prints the scores, one per line."""
  import jax

  from bertgpt.devices import watchdog
  from bertgpt.inference import zero_shot
  from bertgpt.training import evaluate_run
  dtype = arguments.dtype or flags.DTYPES[0]
  if arguments.suite is None:
    for name, value in evaluate_run.evaluate_workdir(
        arguments.workdir, arguments.overrides, dtype).items():
      if jax.process_index() == 0:
        print(f"{name} {value:.6g}")
    return
  watchdog.disarm()  # A suite takes any time, in one process, which waits for no other.
  settings = zero_shot.Settings(arguments.window, arguments.stride, arguments.limit,
                                arguments.batch_size or flags.BATCH_SIZE)
  for line in zero_shot.run(arguments.workdir, arguments.suite, settings, dtype,
                            arguments.out):
    print(line, flush=True)
