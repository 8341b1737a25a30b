"""Sweeps: every run of a recipe's get_sweep(), one process after the other."""

import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.config import ConfigDict, recipes, unread
from bertgpt.devices import children
from bertgpt.errors import INTERRUPTED, ConfigError, Preempted, UserError
from bertgpt.runs import former, workdir
from bertgpt.training import metrics


def run(recipe: str, path: pathlib.Path, overrides: Sequence[str],
        share: tuple[int, int] = (0, 1)) -> None:
  """Trains run i in `path`/<i>; a stopped run is resumed, a finished run is kept.

  Prints a table of overrides and final held-out metrics of all runs that are finished, which is
  also written to sweep.json.

  Args:
    recipe: name or path of the recipe.
    path: folder of the runs.
    overrides: '--config.FIELD=VALUE' arguments for all runs.
    share: (i, n): only the runs i, i + n, i + 2n, ... are trained. Several processes, also on
      different hosts, may train different shares in one folder.
  Raises:
    ConfigError: wrong overrides; lists every problem of every run, before the first run starts.
    UserError: a run failed; has the exit code of the run.
  """
  runs = recipes.load_sweep(recipe)
  flags = [[f"--config.{field}={value}" for field, value in changes.items()] for changes in runs]
  folders = [path / f"{i:03d}" for i in range(len(runs))]
  configs = check_runs(recipes.load(recipe), folders,
                       [[*overrides, *arguments] for arguments in flags])
  first, every = share
  for i in range(first, len(runs), every):
    print(f"[{i + 1}/{len(runs)}] {' '.join(flags[i])}", flush=True)
    if not is_done(folders[i], configs[i]):
      train([f"--config={recipe}", f"--workdir={folders[i]}", *overrides, *flags[i]], i)
    table = make_table(runs, folders, configs)
    files.write_json(path / "sweep.json", table)
  print("\n".join(format_table(make_table(runs, folders, configs))))


def make_table(runs: Sequence[Mapping[str, Any]], folders: Sequence[pathlib.Path],
               configs: Sequence[ConfigDict]) -> list[dict[str, Any]]:
  """Returns a row per finished run: its workdir, its overrides and its final held-out metrics.

  Args:
    runs: overrides of each run, as FIELD -> value.
    folders: workdirs of the runs.
    configs: configs of the runs.
  """
  table = []
  for changes, folder, config in zip(runs, folders, configs, strict=True):
    if is_done(folder, config):
      fields = dict(config_lib.leaves(config))  # Plain types, even if get_sweep() has others.
      table.append({"workdir": str(folder), **{field: fields[field] for field in changes},
                    **final_scores(folder)})
  return table


def check_runs(base: ConfigDict, folders: Sequence[pathlib.Path],
               arguments: Sequence[Sequence[str]]) -> list[ConfigDict]:
  """Returns the config of every run.

  Args:
    base: config of the recipe.
    folders: workdirs of the runs.
    arguments: for each run, its '--config.FIELD=VALUE' arguments.
  Raises:
    ConfigError: lists all problems of all runs.
  """
  configs, problems = [], []
  for i, overrides in enumerate(arguments):
    config, wrong = recipes.try_override(base, overrides)
    configs.append(config)
    found = [*wrong, *config_lib.find_problems(config)]
    # A run that was begun by a version that accepted unread fields continues.
    if not found and not workdir.is_run(folders[i]):
      found = unread.find_problems(config)
    problems += [f"run {i}: {line}" for line in found]
  if problems:
    raise ConfigError("\n".join(problems))
  return configs


def is_done(folder: pathlib.Path, config: ConfigDict) -> bool:
  """Returns whether a run has been trained to its end.

  Args:
    folder: workdir of the run; it need not exist.
    config: config of the run.
  """
  if not (folder / "report.md").is_file() or not (folder / "config.json").is_file():
    return False
  stored, config = workdir.read_config(folder), former.without_ignored(folder, config)
  return (not recipes.differences(stored, config, ["model.vocab_size"])
          and [p.steps for p in stored.phases] == [p.steps for p in config.phases])


def train(arguments: Sequence[str], number: int) -> None:
  """Runs `bertgpt train` in a process of its own, which releases its devices at the end.

  Args:
    arguments: arguments of the command.
    number: number of the run, for messages.
  Raises:
    UserError: the run failed; has the exit code of the run.
    Preempted: a signal stopped the run or the sweep, even if the run had just finished.
  """
  command = [sys.executable, "-m", "bertgpt", "train", *arguments]
  child, stopped = None, False

  def stop(*_) -> None:
    nonlocal stopped
    stopped = True
    if child:
      child.terminate()

  handler = signal.signal(signal.SIGTERM, stop)
  try:
    child = children.start(command)
    if stopped:  # The signal arrived before there was a child to pass it to.
      child.terminate()
    code, interrupted = wait(child)
  finally:
    signal.signal(signal.SIGTERM, handler)
  ended_by_signal = code in (0, INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)
  if code == Preempted.exit_code or ((stopped or interrupted) and ended_by_signal):
    raise Preempted(f"stopped in run {number} of the sweep. The same command resumes it")
  if code:
    error = UserError(f"run {number} of the sweep ended with exit code {code}. Fix its problem and "
                      "start the same sweep again: finished runs are kept")
    error.exit_code = code if code > 0 else 128 - code  # Below 0: killed by a signal.
    raise error


def wait(child: subprocess.Popen) -> tuple[int, bool]:
  """Waits for a process, even after Ctrl-C, which the process also gets and needs time to handle.

  Returns:
    The exit code of the process, and whether Ctrl-C was pressed.
  """
  interrupted = False
  while True:
    try:
      return child.wait(), interrupted
    except KeyboardInterrupt:
      interrupted = True


def final_scores(folder: pathlib.Path) -> dict[str, float]:
  """Returns the last value of every held-out metric of a run, by its tag.

  Args:
    folder: workdir of the run.
  """
  return {tag: points[-1][1] for tag, points in metrics.read_curves(folder).items()
          if tag.startswith("eval/")}


def format_table(table: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns a table as lines of text, the first with the names of the columns.

  Args:
    table: column -> value of each row; rows may have different columns.
  """
  cells = [list(dict.fromkeys(name for row in table for name in row))]
  for row in table:
    values = [row.get(name, "") for name in cells[0]]
    cells.append([f"{v:.5g}" if isinstance(v, float) else str(v) for v in values])
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
          for line in cells]
