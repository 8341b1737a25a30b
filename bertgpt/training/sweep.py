"""Sweeps: every run of a recipe's get_sweep(), in processes of their own or in one program."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt import config as config_lib
from bertgpt import console, files
from bertgpt.config import ConfigDict, choices, recipes, resuming, unread
from bertgpt.config.overrides import try_override
from bertgpt.errors import ConfigError, DivergedError
from bertgpt.runs import folder_kinds, former, metrics_file, step_folders, workdir
from bertgpt.training import mapped_fields, sweep_processes

TrainMapped = Callable[[Sequence[ConfigDict], Sequence[pathlib.Path]], None]


@dataclasses.dataclass
class SweepRun:
  """One run of a sweep, trained by this command or by another one.

  Attributes:
    index: its index in get_sweep().
    changes: its overrides in get_sweep(), as FIELD -> value.
    flags: '--config.FIELD=VALUE' arguments, including those for all runs.
    folder: workdir; it need not exist.
    config: resolved config.
    name: line that announces the run: its number and its own flags.
    row: its row of the table; None until `make_table` has found it finished.
  """

  index: int
  changes: dict[str, Any]
  flags: list[str]
  folder: pathlib.Path
  config: ConfigDict
  name: str
  row: dict[str, Any] | None = None


class Sweep(NamedTuple):
  """The runs of a sweep, checked.

  Attributes:
    runs: all runs.
    chosen: those that are trained by this command.
  """

  runs: list[SweepRun]
  chosen: list[SweepRun]


def open_sweep(recipe: str, path: pathlib.Path, overrides: Sequence[str],
               share: tuple[int, int] = (0, 1), is_mapped: bool = False) -> Sweep:
  """Returns the runs of a sweep. Writes nothing.

  Args:
    recipe, path, overrides, share: see `run`.
    is_mapped: whether one program shall train the runs.
  Raises:
    ConfigError: wrong overrides; lists every problem of every run. Or the runs cannot be trained by
      one program, or `path` holds other files.
  """
  changes, base = recipes.load_sweep(recipe), recipes.load(recipe)
  check_unset(overrides, changes)
  shared = [*overrides, *group_of(recipe, path, overrides)]
  chosen = range(share[0], len(changes), share[1])
  runs, problems = [], []
  for i, fields in enumerate(changes):
    own = [f"--config.{field}={value}" for field, value in fields.items()]
    config, wrong = try_override(base, [*shared, *own])
    runs.append(SweepRun(i, fields, [*shared, *own], path / f"{i:03d}", config,
                         name=f"[{i + 1}/{len(changes)}] {' '.join(own)}"))
    problems += [f"run {i}: {line}" for line in find_problems(runs[i], wrong, i in chosen)]
  if problems:
    raise ConfigError("\n".join(problems))
  folder_kinds.check_unused(path, folder_kinds.SWEEP_FILES)
  check_table(path / "sweep.json")
  if is_mapped and chosen:
    mapped_fields.find([runs[i].config for i in chosen])
  return Sweep(runs, [runs[i] for i in chosen])


def run(recipe: str, path: pathlib.Path, overrides: Sequence[str],
        share: tuple[int, int] = (0, 1), max_parallel: int = 1,
        train_mapped: TrainMapped | None = None) -> list[DivergedError]:
  """Trains run i in `path`/<i>; a stopped run is resumed, a finished run is kept.

  Prints a table of overrides and final held-out metrics of all runs that are finished, which is
  also written to sweep.json. A run that diverges does not keep the others from being trained.

  Args:
    recipe: name or path of the recipe.
    path: folder of the runs.
    overrides: '--config.FIELD=VALUE' arguments for all runs.
    share: (i, n): only the runs i, i + n, i + 2n, ... are trained. Several processes, even on
      different hosts, may train different shares in one folder.
    max_parallel: number of runs that are trained at the same time, each by its own program.
    train_mapped: trains runs by one program, in this process; None: each run has its own process.
  Returns:
    The errors of runs that have diverged, for the caller to raise.
  Raises:
    ConfigError: wrong overrides; lists every problem of every run, before the first run starts. Or
      runs cannot be trained by one program, or `path` holds other files.
    UserError: a run failed for another reason; has the exit code of the run.
  """
  sweep = open_sweep(recipe, path, overrides, share, is_mapped=bool(train_mapped))
  if max_parallel > 1:
    shared = [f"--config={recipe}", f"--workdir={path}", *overrides]
    parts = divide(share, max_parallel, is_mapped=bool(train_mapped))
    diverged = _train_in_parts([[*shared, *part] for part in parts], path)
  elif train_mapped:
    diverged = _train_together(sweep, train_mapped)
  else:
    diverged = _train_in_turn(sweep, recipe, path)
  path.mkdir(parents=True, exist_ok=True)  # A share may have no runs.
  write_table(sweep, path)
  print_table(make_table(sweep))
  return diverged


def _train_in_parts(parts: Sequence[Sequence[str]], path: pathlib.Path) -> list[DivergedError]:
  """Trains parts at the same time, each by a command; returns the error of one that diverged."""
  try:
    sweep_processes.train_parts(parts, path)
  except DivergedError as e:
    return [e]
  return []


def _train_together(sweep: Sweep, train_mapped: TrainMapped) -> list[DivergedError]:
  """Trains the chosen runs by one program; returns the error of one that diverged."""
  console.print_stdout("\n".join(run.name for run in sweep.chosen))
  waiting = [run for run in sweep.chosen if not is_done(run.folder, run.config)]
  try:
    if waiting:
      mapped_fields.check_number(len(waiting))
      train_mapped([run.config for run in waiting], [run.folder for run in waiting])
  except DivergedError as e:
    return [e]
  return []


def _train_in_turn(sweep: Sweep, recipe: str, path: pathlib.Path) -> list[DivergedError]:
  """Trains the chosen runs one after the other; returns the errors of those that diverged."""
  diverged = []
  for run in sweep.chosen:
    console.print_stdout(run.name)
    if is_done(run.folder, run.config):
      continue
    try:
      sweep_processes.train_run(
          [f"--config={recipe}", f"--workdir={run.folder}", *run.flags], run.index)
    except DivergedError as e:
      diverged.append(e)
    write_table(sweep, path)
  return diverged


def print_runs(sweep: Sweep) -> None:
  """Prints the chosen runs of a sweep and how far each of them is, and the table of all runs.

  Args:
    sweep: the sweep.
  """
  if not sweep.chosen:
    console.print_stdout(f"none of the {len(sweep.runs)} runs is in this share")
  for run in sweep.chosen:
    console.print_stdout(f"{run.name}: {describe(run.folder, run.config)}")
  print_table(make_table(sweep))


def describe(folder: pathlib.Path, config: ConfigDict) -> str:
  """Returns how far a run is: 'finished', 'step 20/100' or 'not begun'.

  Args:
    folder: workdir of the run; it need not exist.
    config: config of the run.
  """
  if is_done(folder, config):
    return "finished"
  if not folder_kinds.is_run(folder):
    return "not begun"
  return f"step {newest_step(folder)}/{config_lib.total_steps(config)}"


def newest_step(folder: pathlib.Path) -> int:
  """Returns the step of the newest checkpoint of a run; 0 if it has none.

  Args:
    folder: workdir of the run; it need not exist.
  """
  return max(step_folders.find_steps(step_folders.checkpoints_path(folder)), default=0)


def print_table(table: Sequence[Mapping[str, Any]]) -> None:
  """Prints the table of a sweep, unless it is empty, and medians over seeds if there are several.

  Args:
    table: result of `make_table`.
  """
  if table:
    console.print_stdout("\n".join(console.format_table(table)))
  if medians := medians_over_seeds(table):
    console.print_stdout("\nMedians over seeds:\n" + "\n".join(console.format_table(medians)))


def divide(share: tuple[int, int], number: int, is_mapped: bool) -> list[list[str]]:
  """Returns the flags with which parts of a share are trained.

  Args:
    share: (i, n), see `run`.
    number: number of parts.
    is_mapped: whether one program trains all runs of a part.
  """
  first, step = share
  return [[f"--run={first + part * step}/{step * number}", *["--mapped"] * is_mapped]
          for part in range(number)]


def check_table(path: pathlib.Path) -> None:
  """Checks that the table of a sweep can be written, before anything is trained.

  Args:
    path: file of the table, which need not exist.
  Raises:
    ConfigError: there is something else at `path`.
  """
  with contextlib.suppress(FileNotFoundError):
    try:
      if isinstance(files.parse_json(path.read_bytes()), list):
        return
    except (IsADirectoryError, ValueError):
      pass
    raise ConfigError(f"--workdir {path.parent}: {path.name} in it is not the table of a sweep, so "
                      "it is not replaced. Move it away, or name another folder")


def medians_over_seeds(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns a row per setting that was trained with several seeds: its fields, and medians.

  Args:
    table: result of `make_table`.
  """
  groups: dict[str, list[Mapping[str, Any]]] = {}
  is_field = lambda name: name not in ("workdir", "seed") and not name.startswith("eval/")
  for row in table:
    groups.setdefault(repr({name: row[name] for name in row if is_field(name)}), []).append(row)
  return [{**{name: rows[0][name] for name in rows[0] if is_field(name)}, "seeds": len(rows),
           **{name: float(np.median([row[name] for row in rows])) for name in rows[0]
              if name.startswith("eval/") and all(name in row for row in rows)}}
          for rows in groups.values() if len(rows) > 1 and "seed" in rows[0]]


def group_of(recipe: str, path: pathlib.Path, overrides: Sequence[str]) -> list[str]:
  """Returns the override that shows the runs of a sweep as one group in the trackers, if any.

  Args:
    recipe, path, overrides: see `run`.
  """
  config, _ = try_override(recipes.load(recipe), overrides)
  is_needed = choices.names_of_trackers(config.log.trackers) and not config.log.group
  return [f"--config.log.group={path.name}"] if is_needed else []


def write_table(sweep: Sweep, path: pathlib.Path) -> None:
  """Writes the result of `make_table` to sweep.json in the folder of the sweep."""
  with taking_turns(path):
    files.write_json(path / "sweep.json", make_table(sweep))


def taking_turns(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Returns a context that one share of a sweep at a time is in, to read runs and write about them.

  Otherwise, of two shares that end together, the one that has read the runs first may write last.

  Args:
    path: folder of the sweep.
  """
  return files.lock(path / ".sweep.lock", lambda holder: None)


def make_table(sweep: Sweep) -> list[dict[str, Any]]:
  """Returns a row per finished run: its workdir, its overrides and its final held-out metrics.

  Args:
    sweep: the sweep.
  """
  for run in sweep.runs:
    if run.row is None and is_done(run.folder, run.config):  # A finished run does not change.
      fields = dict(config_lib.leaves(run.config))  # Plain types, even if get_sweep() has others.
      run.row = {"workdir": str(run.folder), **{field: fields[field] for field in run.changes},
                 **final_scores(run.folder)}
  return [run.row for run in sweep.runs if run.row is not None]


def check_unset(overrides: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> None:
  """Refuses a flag that no run would follow, because the sweep sets its field in every run.

  Args:
    overrides: '--config.FIELD=VALUE' arguments for all runs.
    runs: overrides of each run, as FIELD -> value.
  Raises:
    ConfigError: there are such flags; the message has one line for each.
  """
  of_sweep = set.intersection(*map(set, runs)) if runs else set()
  flags = [flag for flag in overrides
           if flag.partition("=")[0].removeprefix("--config.") in of_sweep]
  if flags:
    raise ConfigError("\n".join(f"{flag}: get_sweep() of the recipe sets this field in every run. "
                                "Leave the flag out, or change get_sweep()" for flag in flags))


def find_problems(run: SweepRun, wrong: Sequence[str], is_chosen: bool) -> list[str]:
  """Returns what keeps a run from being trained, one line for each problem.

  Args:
    run: the run.
    wrong: problems of its flags.
    is_chosen: whether it is trained by this command. A run of another host may name other files.
  """
  if problems := [*wrong, *config_lib.find_problems(run.config)]:
    return problems
  folder, config = run.folder, run.config
  stored = workdir.read_config(folder) if folder_kinds.is_run(folder) else None
  problems = unread.find_problems(config, stored)
  if stored is not None and is_chosen:
    problems += [f"{folder} holds another run, {line}. Set the field as before, add runs only at "
                 "the end of get_sweep(), or use another --workdir"
                 for line in workdir.find_changes(folder, former.as_begun(folder, config))]
    if problem := resuming.find_phase_problem(stored, config, newest_step(folder), folder):
      problems.append(problem)
  return problems


def is_done(folder: pathlib.Path, config: ConfigDict) -> bool:
  """Returns whether a run has been trained to its end.

  Args:
    folder: workdir of the run; it need not exist.
    config: config of the run.
  """
  if not (folder / "report.md").is_file() or not folder_kinds.is_run(folder):
    return False
  stored, config = workdir.read_config(folder), former.as_begun(folder, config)
  return (not resuming.differences(stored, config, ["model.vocab_size"])
          and [p.steps for p in stored.phases] == [p.steps for p in config.phases])


def final_scores(folder: pathlib.Path) -> dict[str, float]:
  """Returns the results of the last evaluation of a run, by their tags.

  Args:
    folder: workdir of the run.
  """
  return metrics_file.last_scores(metrics_file.read_curves(folder))
