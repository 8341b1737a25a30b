"""`bertgpt sweep`: training of all runs of a recipe's get_sweep()."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bertgpt import console
from bertgpt.commands import flags
from bertgpt.errors import ConfigError

if TYPE_CHECKING:  # The config is slow to import.
  from bertgpt.config import ConfigDict

HELP = "Train every run of a recipe's get_sweep(), one after the other or several at a time."
USES = ("bertgpt.training.sweep", "bertgpt.report.compare")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt sweep`."""
  flags.add_config(parser)
  flags.add_workdir(parser, what="folder of the sweep, which holds those of its runs")
  parser.add_argument("--run", default=(0, 1), type=flags.share, dest="share", metavar="I/N",
                      help="train only the runs I, I + N, I + 2N, ..., counted from 0, as one of N "
                           "commands, which may run on different hosts; default: all")
  parser.add_argument("--max_parallel", type=flags.number(int, 1), default=1, metavar="N",
                      help="train N runs at a time on this host; default: 1")
  parser.add_argument("--mapped", action="store_true",
                      help="train all runs at the same time, in one program; they may differ only "
                           "in numbers such as seeds, learning rates, weight decay and dropout")
  parser.add_argument("--list", action="store_true", dest="only_lists",
                      help="train nothing: print the runs and how far each of them is")
  parser.set_defaults(resumes=True)


def check(arguments: argparse.Namespace) -> None:
  """Refuses flags that exclude each other."""
  if arguments.only_lists and arguments.max_parallel > 1:
    raise ConfigError("--max_parallel: with --list, nothing is trained. Leave one of them out")


def run(arguments: argparse.Namespace) -> None:
  """Trains the runs and writes a page that compares them, or lists the runs."""
  from bertgpt.report import compare
  from bertgpt.training import sweep
  if arguments.only_lists:
    sweep.print_runs(sweep.open_sweep(arguments.recipe, arguments.workdir, arguments.overrides,
                                      arguments.share, arguments.mapped))
    return
  page = arguments.workdir / "sweep.html"
  compare.check_replaceable(page, "--workdir")  # Before anything is trained.
  diverged = sweep.run(arguments.recipe, arguments.workdir, arguments.overrides, arguments.share,
                       arguments.max_parallel, train_mapped if arguments.mapped else None)
  if write_page(arguments.workdir):
    console.print_stdout(f"\nCurves, configs and samples: {page}")
  if diverged:
    raise diverged[0]


def write_page(path: pathlib.Path) -> bool:
  """Writes the page that compares the runs of a sweep; returns False if none has begun.

  Args:
    path: folder of the sweep.
  """
  from bertgpt.report import compare
  from bertgpt.training import sweep
  with sweep.taking_turns(path):
    if (runs := compare.find_runs([path])) == [path]:
      return False
    compare.write_page(compare.read(runs), path / "sweep.html", f"Sweep {path.name}")
  return True


def train_mapped(configs: "Sequence[ConfigDict]", paths: Sequence[pathlib.Path]) -> None:
  """Trains runs by one program, and writes their reports.

  Args:
    configs: configs of the runs.
    paths: workdirs of the runs.
  """
  from bertgpt.report import end_of_run
  from bertgpt.training import mapped
  mapped.train(configs, paths, end_of_run.write)
