"""Sweeps: every run of a recipe's get_sweep(), in processes of their own or in one program."""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bertgpt import config as config_lib
from bertgpt import console, files
from bertgpt.config import ConfigDict, choices, recipes, resuming, unread
from bertgpt.config.overrides import try_override
from bertgpt.devices import children
from bertgpt.errors import INTERRUPTED, ConfigError, DivergedError, Preempted, UserError
from bertgpt.runs import folder_kinds, former, metrics_file, workdir

# Fields that may differ between runs which one program trains. The initial state, the step and the
# order of the rows depend on them; no shape and no evaluation does.
MAPPED_FIELDS = re.compile(
    r"seed|model\.(attention_)?dropout"
    r"|optimizer\.(b1|b2|epsilon|weight_decay|layer_decay|clip_norm|momentum|initial_accumulator)"
    r"|phases\[\d+\]\.(learning_rate|end_fraction|warmup_steps|warmup_fraction|decay_fraction"
    r"|power)")

# Names by which the folder of a sweep is known.
SWEEP_FILES = re.compile(r"\d{3,}|sweep\.json")

TrainMapped = Callable[[Sequence[ConfigDict], Sequence[pathlib.Path]], None]


def run(recipe: str, path: pathlib.Path, overrides: Sequence[str],
        share: tuple[int, int] = (0, 1), max_parallel: int = 1,
        train_mapped: TrainMapped | None = None) -> list[UserError]:
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
  runs = recipes.load_sweep(recipe)
  flags = [[f"--config.{field}={value}" for field, value in changes.items()] for changes in runs]
  check_unset(overrides, runs)
  shared = [*overrides, *group_of(recipe, path, overrides)]
  folders = [path / f"{i:03d}" for i in range(len(runs))]
  chosen = range(share[0], len(runs), share[1])
  configs = check_runs(recipes.load(recipe), folders,
                       [[*shared, *arguments] for arguments in flags], chosen)
  folder_kinds.check_unused(path, SWEEP_FILES)
  check_table(path / "sweep.json")
  write_table = lambda: files.write_json(path / "sweep.json", make_table(runs, folders, configs))
  names = [f"[{i + 1}/{len(runs)}] {' '.join(flags[i])}" for i in range(len(runs))]
  diverged: list[UserError] = []
  if train_mapped and chosen:
    find_mapped_fields([configs[i] for i in chosen])
  if max_parallel > 1:
    with collect_diverged(diverged):
      train_parts([[f"--config={recipe}", f"--workdir={path}", *overrides,
                    f"--run={share[0] + part * share[1]}/{share[1] * max_parallel}",
                    *["--mapped"] * bool(train_mapped)] for part in range(max_parallel)], path)
    chosen = range(0)
  elif train_mapped:
    console.print_stdout("\n".join(names[i] for i in chosen))
    if waiting := [i for i in chosen if not is_done(folders[i], configs[i])]:
      with collect_diverged(diverged):
        train_mapped([configs[i] for i in waiting], [folders[i] for i in waiting])
    chosen = range(0)
  for i in chosen:
    console.print_stdout(names[i])
    with collect_diverged(diverged):
      if not is_done(folders[i], configs[i]):
        train([f"--config={recipe}", f"--workdir={folders[i]}", *shared, *flags[i]], i)
    write_table()
  path.mkdir(parents=True, exist_ok=True)  # A share may have no runs.
  write_table()
  print_table(make_table(runs, folders, configs))
  return diverged


def print_table(table: Sequence[Mapping[str, Any]]) -> None:
  """Prints the table of a sweep, and medians over seeds if there are several.

  Args:
    table: result of `make_table`.
  """
  console.print_stdout("\n".join(console.format_table(table)))
  if medians := medians_over_seeds(table):
    console.print_stdout("\nMedians over seeds:\n" + "\n".join(console.format_table(medians)))


@contextlib.contextmanager
def collect_diverged(errors: list[UserError]) -> Iterator[None]:
  """Keeps the error of a run that diverges inside the context, so that the next run is trained.

  Args:
    errors: list that the error is added to.
  """
  try:
    yield
  except UserError as e:
    if e.exit_code != DivergedError.exit_code:
      raise
    errors.append(e)


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


def find_mapped_fields(configs: Sequence[ConfigDict]) -> dict[str, tuple[Any, ...]]:
  """Returns the fields that differ between runs which one program can train.

  Args:
    configs: configs of the runs, at least one.
  Returns:
    field -> its values, one per run.
  Raises:
    ConfigError: a field differs that the program depends on, or one program cannot draw the
      random numbers of several runs.
  """
  model = configs[0].model
  if len(configs) > 1 and model.dropout_rng == "rbg" and (model.dropout or model.attention_dropout):
    raise ConfigError("model.dropout_rng='rbg': JAX would draw the dropout of all runs from the "
                      "key of the first. Leave out --mapped, or set "
                      "--config.model.dropout_rng=hash")
  found = {}
  leaves = [dict(config_lib.leaves(config)) for config in configs]
  for field in dict.fromkeys(name for fields in leaves for name in fields):
    values = tuple(fields.get(field) for fields in leaves)
    if len(set(map(repr, values))) == 1:
      continue
    if not MAPPED_FIELDS.fullmatch(field):
      other = next(value for value in values if repr(value) != repr(values[0]))
      raise ConfigError(f"{field}: {values[0]!r} and {other!r} need different programs, so the "
                        "runs cannot be mapped into one. Leave out --mapped")
    if field == "model.attention_dropout" and configs[0].model.attention != "xla":
      raise ConfigError(f"{field}: no kernel but 'xla' has a rate per run. Leave "
                        "out --mapped, or set --config.model.attention=xla")
    found[field] = values
  return found


def train_parts(parts: Sequence[Sequence[str]], path: pathlib.Path) -> None:
  """Trains parts of a sweep at the same time, with `bertgpt sweep --run`, and waits for them.

  What part k prints goes to part-<k>.log; if that is in a bucket, to a local copy that is uploaded
  at the end. Each part has its share of the GPUs, if there are enough.

  Args:
    parts: arguments of the commands.
    path: folder of the runs.
  Raises:
    UserError: a part failed; has its exit code.
    Preempted: a signal stopped the parts or the sweep.
  """
  path.mkdir(parents=True, exist_ok=True)
  started: list[subprocess.Popen] = []
  with passed_on(started) as was_stopped, contextlib.ExitStack() as stack:
    for k, part in enumerate(parts):
      log = stack.enter_context(open_log(path / f"part-{k}.log"))
      console.print_stdout(f"part {k}: see {log.name}")
      started.append(children.start([sys.executable, "-m", "bertgpt", "sweep", *part],
                                    share_of_gpus(k, len(parts)), log))
      if was_stopped():  # The signal arrived before there was a child to pass it to.
        started[-1].terminate()
    ends = [wait(child) for child in started]
  # A part that has diverged comes last: its error does not end the sweep.
  for k, (code, interrupted) in sorted(
      enumerate(ends), key=lambda end: end[1][0] == DivergedError.exit_code):
    check_end(f"part {k} of the sweep", code, was_stopped() or interrupted)


@contextlib.contextmanager
def open_log(path: pathlib.Path) -> Iterator[io.FileIO]:
  """Yields a file that processes write to. If it cannot be uploaded at the end, a line says so.

  Args:
    path: path of the file, on a disk or in a bucket.
  """
  log = files.open_growing(path)
  try:
    yield log
  finally:
    try:
      log.close()
    except OSError as e:
      console.say(f"WARNING: {path}: cannot be written ({e.strerror or e}). The copy there is "
                  "missing or incomplete")


def share_of_gpus(k: int, number: int) -> dict[str, str]:
  """Returns the variables that give part k its share of the GPUs; {} if there are not enough.

  Args:
    k: index of the part.
    number: number of parts.
  """
  if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
    # CUDA numbers the GPUs of a container from 0, whatever their numbers in /dev.
    gpus = [str(i) for i, _ in enumerate(pathlib.Path("/dev").glob("nvidia[0-9]*"))]
  else:
    gpus = visible.split(",") if visible else []
  return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[k::number])} if len(gpus) >= number else {}


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


def check_runs(base: ConfigDict, folders: Sequence[pathlib.Path],
               arguments: Sequence[Sequence[str]], chosen: Sequence[int]) -> list[ConfigDict]:
  """Returns the config of every run.

  Args:
    base: config of the recipe.
    folders: workdirs of the runs.
    arguments: for each run, its '--config.FIELD=VALUE' arguments.
    chosen: the runs that will be trained here. Those of another host may name other files.
  Raises:
    ConfigError: lists all problems of all runs.
  """
  configs, problems = [], []
  for i, overrides in enumerate(arguments):
    config, wrong = try_override(base, overrides)
    configs.append(config)
    found = [*wrong, *config_lib.find_problems(config)]
    if not found:
      stored = workdir.read_config(folders[i]) if folder_kinds.is_run(folders[i]) else None
      found = unread.find_problems(config, stored)
      if stored is not None and i in chosen:
        found += [f"{folders[i]} holds another run, {line}. Set the field as before, add runs only "
                  "at the end of get_sweep(), or use another --workdir"
                  for line in workdir.find_changes(folders[i], former.as_begun(folders[i], config))]
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
  stored, config = workdir.read_config(folder), former.as_begun(folder, config)
  return (not resuming.differences(stored, config, ["model.vocab_size"])
          and [p.steps for p in stored.phases] == [p.steps for p in config.phases])


def train(arguments: Sequence[str], number: int) -> None:
  """Runs `bertgpt train` in a process of its own, which releases its devices at the end.

  Args:
    arguments: arguments of the command.
    number: index of the run, for messages.
  Raises:
    UserError: the run failed; has the exit code of the run.
    Preempted: a signal stopped the run or the sweep, even if the run had just finished.
  """
  started: list[subprocess.Popen] = []
  with passed_on(started) as was_stopped:
    started.append(children.start([sys.executable, "-m", "bertgpt", "train", *arguments]))
    if was_stopped():  # The signal arrived before there was a child to pass it to.
      started[0].terminate()
    code, interrupted = wait(started[0])
  check_end(f"run {number} of the sweep", code, was_stopped() or interrupted)


@contextlib.contextmanager
def passed_on(started: Sequence[subprocess.Popen]) -> Iterator[Callable[[], bool]]:
  """Passes SIGTERM and SIGHUP on to processes inside the context.

  Args:
    started: the processes; more may be added.
  Yields:
    A function that returns whether one of them has arrived.
  """
  is_stopped = False

  def stop(number: int, _) -> None:
    nonlocal is_stopped
    is_stopped = True
    for child in started:
      child.send_signal(number)  # A process that gets it twice, as one of a group, ignores one.

  # A program that was started with `nohup` ignores SIGHUP.
  numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
  handlers = {number: signal.signal(number, stop) for number in numbers}
  try:
    yield lambda: is_stopped
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def check_end(name: str, code: int, is_stopped: bool) -> None:
  """Raises an error if a process failed or was stopped.

  Args:
    name: what it trained.
    code: its exit code; below 0: the signal that killed it.
    is_stopped: whether the sweep was stopped.
  Raises:
    UserError: it failed; has its exit code.
    Preempted: a signal stopped it or the sweep, even if it had just finished.
  """
  # A run that diverges at that moment is stopped, too: the same command tries it again.
  ended_by_signal = code in (0, INTERRUPTED, -signal.SIGINT, DivergedError.exit_code)
  if code == Preempted.exit_code or (is_stopped and ended_by_signal):
    raise Preempted(f"stopped in {name}. The same command resumes it")
  if is_stopped and -code in (signal.SIGTERM, signal.SIGHUP):  # It had no handlers yet, perhaps.
    raise Preempted(f"stopped in {name}, which the signal ended before it saved its work. The same "
                    "command resumes it from its last checkpoint")
  if code:
    error = UserError(f"{name} ended with exit code {code}. Fix its problem and start the same "
                      "sweep again: finished runs are kept")
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
  return {tag: points[-1][1] for tag, points in metrics_file.read_curves(folder).items()
          if tag.startswith("eval/")}
