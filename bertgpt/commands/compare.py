"""`bertgpt compare`: a table and a page of several runs."""

import argparse
import pathlib

from bertgpt.commands import flags

HELP = "Compare runs: their curves, scores and configs, as a table and as one HTML page."
USES = ("bertgpt.report.compare", "bertgpt.report.curves")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt compare`."""
  parser.add_argument("runs", nargs="+", type=flags.local_path, metavar="RUN",
                      help="folder of a run, finished or not, or of a sweep")
  parser.add_argument("--reference", action="append", default=[], metavar="NAME",
                      help="also show the curves of a recipe as it was trained before, such as "
                           "demo, or of a file of --save_reference; may be repeated")
  parser.add_argument("--out", type=flags.local_path, default=pathlib.Path("compare.html"),
                      metavar="FILE", help="page to write; default: compare.html")
  parser.add_argument("--save_reference", type=flags.local_path, metavar="FILE",
                      help="write the first run as a reference for later ones, a few KB")


def run(arguments: argparse.Namespace) -> None:
  """Prints the table and writes the page."""
  from bertgpt.report import compare, curves
  runs = compare.read(arguments.runs, arguments.reference)
  if arguments.save_reference:
    curves.save_reference(runs[0], arguments.save_reference)
  print("\n".join(compare.lines(runs)))
  compare.write_page(runs, arguments.out, "Comparison of " + ", ".join(map(compare.label, runs)))
  print(f"\nCurves, configs and samples: {arguments.out}")
