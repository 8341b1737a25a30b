"""`bertgpt compare`: a table and a page of several runs."""

import argparse

from bertgpt.commands import flags
from bertgpt.errors import ConfigError

HELP = "Compare runs: their curves, scores and configs, as a table and as one HTML page."
USES = ("bertgpt.files", "bertgpt.report.bands", "bertgpt.report.compare", "bertgpt.report.curves")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt compare`."""
  parser.add_argument("runs", nargs="+", type=flags.local_path, metavar="RUN",
                      help="folder of a run, finished or not, or of a sweep")
  parser.add_argument("--reference", action="append", default=[], metavar="NAME",
                      help="also show the curves of an earlier training, and say whether the runs "
                           "are on course: name of a recipe, such as demo, or a file of "
                           "--save_reference; may be repeated")
  parser.add_argument("--out", type=flags.local_path, default="compare.html",
                      metavar="FILE", help="page to write; default: compare.html")
  parser.add_argument("--save_reference", type=flags.local_path, metavar="FILE",
                      help="write a reference for later runs (a few KB): the mean and the band of "
                           "these runs, which may differ only in their seed")
  parser.add_argument("--about", default="", metavar="TEXT",
                      help="for --save_reference: what the runs were trained on, in a few words")


def check(arguments: argparse.Namespace) -> None:
  """Checks which flags belong together."""
  if arguments.about and not arguments.save_reference:
    raise ConfigError("--about belongs to --save_reference, which is missing. Give both or neither")


def run(arguments: argparse.Namespace) -> None:
  """Prints the table and writes the page."""
  from bertgpt import files
  from bertgpt.report import bands, compare, curves
  for flag in ("out", "save_reference"):
    if path := getattr(arguments, flag):
      files.require_parent(path, f"--{flag}")
  if arguments.save_reference == arguments.out:
    raise ConfigError(f"--save_reference {arguments.save_reference}: is also the --out of the "
                      "page. Name two files")
  compare.check_replaceable(arguments.out)  # Before anything is written or printed.
  runs = compare.read(arguments.runs, arguments.reference)
  trained, summary = [run for run in runs if not run.is_reference], ""
  if arguments.save_reference:
    mean = bands.average(trained)
    curves.save_reference(mean, arguments.save_reference, arguments.about)
    summary = (f"{arguments.save_reference}: reference of {mean.seeds} "
               f"run{'s' * (mean.seeds > 1)}, steps 0 to {mean.steps} of {mean.total_steps}\n")
    if unfinished := [run.name for run in trained if run.steps < run.total_steps]:
      summary += (f"note: not finished: {', '.join(unfinished)}. Later runs are compared with this "
                  f"reference up to step {mean.steps} only\n")
  print("\n".join(compare.lines(runs)))
  compare.write_page(runs, arguments.out, "Comparison of " + ", ".join(map(compare.label, runs)))
  print(f"\n{summary}Curves, configs and samples: {arguments.out}")
