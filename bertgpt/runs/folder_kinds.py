"""What a folder that a user names holds: a run, a sweep, a fine-tuning, or something else."""

import contextlib
import pathlib
import re
from typing import Any

from bertgpt import files
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import from_json
from bertgpt.errors import ConfigError

TRANSFORMERS = ("{flag} {path}: holds a model of transformers. Turn it into a run with `bertgpt "
                "import --from {path} --workdir NEW`")

# What a run has written before its config.json, or leaves if that is deleted.
RUN_FILES = re.compile(r"checkpoints|(events|history|metrics)\.jsonl")
# Runs of a sweep, and its table. A folder with another name, such as 001-cola, was made of a run.
SWEEP_FILES = re.compile(r"\d{3,}|sweep\.json")
# What launchers and file systems put into the folder of a run before it begins.
BEFORE_A_RUN = re.compile(r"\..*|__pycache__|lost\+found|logs?|(log|stdout|stderr)\b.*"
                          r"|.*\.(log|out|err|py|sh|sbatch)")


def is_run(workdir: pathlib.Path) -> bool:
  """Returns whether a folder is a run, made by `workdir.write_run`."""
  return (workdir / "config.json").is_file()


def refuse_file(workdir: pathlib.Path) -> None:
  """Checks that a file is not in the place of a workdir or of one of its parents.

  Args:
    workdir: folder for a run or a sweep, which need not exist.
  Raises:
    ConfigError: a file is there.
  """
  if files.is_remote(workdir):
    return  # A bucket has no folders whose place a file could take.
  for path in (workdir, *workdir.parents):
    if path.exists() and not path.is_dir():
      subject = "" if path == workdir else f"{path} "
      raise ConfigError(f"--workdir {workdir}: {subject}is a file. Give a folder")


def check_unused(workdir: pathlib.Path, own: re.Pattern[str] = RUN_FILES) -> None:
  """Checks that a folder has been used for runs before, or holds nothing but logs and scripts.

  Args:
    workdir: folder for a run or a sweep, which need not exist.
    own: pattern of the names by which a used folder is known.
  Raises:
    ConfigError: it holds only other files, or see `refuse_file`.
  """
  refuse_file(workdir)
  if not workdir.is_dir():
    return
  names = sorted(path.name for path in workdir.iterdir())
  others = [name for name in names if not BEFORE_A_RUN.fullmatch(name)]
  if others and not any(map(own.fullmatch, names)):
    found = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
    what = (f"is the folder of a sweep ({found})" if runs_of_sweep(workdir) else
            f"is the folder of a run ({found})" if is_run(workdir) else
            f"holds files, but no run ({found})")
    raise ConfigError(f"--workdir {workdir}: {what}. Name a new or an empty folder")


def require_run(workdir: pathlib.Path, remedy: str) -> None:
  """Checks that --workdir is a run or a fine-tuning workdir, and not a model of `transformers`.

  Args:
    workdir: the folder, which need not exist.
    remedy: sentence that says what to give instead.
  Raises:
    ConfigError: it is something else.
  """
  if is_of_transformers(workdir / "config.json"):
    raise ConfigError(TRANSFORMERS.format(flag="--workdir", path=workdir))
  if not is_run(workdir):
    raise ConfigError(describe_missing(workdir, "--workdir", remedy))


def describe_missing(workdir: pathlib.Path, flag: str, remedy: str) -> str:
  """Returns a message about a folder that has no config.json.

  Args:
    workdir: the folder, which need not exist.
    flag: flag that named the folder.
    remedy: sentence that says what to give instead.
  """
  place = f"{flag} {workdir}"
  if not workdir.is_dir():
    return f"{place}: {'is a file' if workdir.exists() else 'no such folder'}. {remedy}"
  if runs := runs_of_sweep(workdir):
    return f"{place}: is the folder of a sweep. Give one of its runs, such as {runs[0]}"
  if not is_in_tuning(workdir):
    return f"{place}: holds no run (no config.json). {remedy}"
  if workdir.name in (run["folder"] for run in read_results(workdir.parent)["runs"]):
    return f"{place}: the weights of this run were not saved. {_name_kept(workdir.parent)}"
  return f"{place}: this fine-tuning run is not done. Finish it with `bertgpt finetune`"


def runs_of_sweep(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the runs in the folder of a sweep, in order; none for any other folder.

  Args:
    workdir: a folder.
  """
  return sorted(path.parent for path in workdir.glob("*/config.json")
                if SWEEP_FILES.fullmatch(path.parent.name) and not is_run(workdir))


def is_in_tuning(workdir: pathlib.Path) -> bool:
  """Returns whether a folder lies in a fine-tuning workdir, as its runs do.

  Args:
    workdir: a folder, which need not exist.
  """
  return is_run(workdir.parent) and is_tuning(workdir.parent / "config.json")


def is_tuning(config_path: pathlib.Path) -> bool:
  """Returns whether a file holds a fine-tuning config.

  Args:
    config_path: a file config.json.
  """
  try:
    from_json(config_path.read_bytes(), finetune_config.base)
  except ConfigError:
    return False
  return True


def is_ours(folder: pathlib.Path) -> bool:
  """Returns whether this program made a folder: a run, or a fine-tuning workdir.

  Args:
    folder: a folder, which need not exist.
  """
  if not is_run(folder):
    return False
  with contextlib.suppress(ConfigError):
    from_json((folder / "config.json").read_bytes())
    return True
  return is_tuning(folder / "config.json")


def find_best_run(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the best run of a fine-tuning workdir; for any other folder, the folder itself.

  Args:
    workdir: the folder.
  Raises:
    ConfigError: no run is done, or the weights of the best one were not saved.
    DataError: results.json is damaged.
  """
  if not is_run(workdir) or not is_tuning(workdir / "config.json"):
    return workdir
  best = read_results(workdir).get("best_run")
  if not (workdir / "results.json").is_file():
    kept = f". {_name_kept(workdir)}" if _find_kept(workdir) else ""
    raise ConfigError(f"--workdir {workdir}: none of its fine-tuning runs is done. Finish them "
                      f"with `bertgpt finetune`{kept}")
  if not isinstance(best, str) or not is_run(workdir / best):
    raise ConfigError(f"--workdir {workdir}: the weights of the best run were not saved. "
                      f"{_name_kept(workdir)}")
  return workdir / best


def read_results(tuning: pathlib.Path) -> dict[str, Any]:
  """Returns the content of results.json of a fine-tuning workdir; without the file, no runs.

  Args:
    tuning: a folder.
  Raises:
    DataError: the file is damaged.
  """
  path = tuning / "results.json"
  read = files.read_json(path, "Restore it from a backup") if path.is_file() else {}
  return {"runs": [], **read}


def _find_kept(tuning: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path.parent for path in tuning.glob("*/config.json"))


def _name_kept(tuning: pathlib.Path) -> str:
  """Returns a sentence that names the runs with weights, or says how to get some."""
  if not (kept := _find_kept(tuning)):
    return ("No run has any. Fine-tune again with --config.save=best or --config.save=all, into a "
            "new --workdir")
  best = tuning / str(read_results(tuning).get("best_run"))
  if best in kept:
    return (f"Give {best}, the best run, or fine-tune again with --config.save=all, into a new "
            "--workdir")
  return f"Give one of {', '.join(map(str, kept))}"


def describes_transformers(config_path: pathlib.Path) -> bool:
  """Returns whether a file holds the config of a model of `transformers`.

  Args:
    config_path: a file config.json.
  Raises:
    OSError: the file cannot be read.
    ValueError: it does not hold JSON.
  """
  content = files.parse_json(config_path.read_bytes())
  return isinstance(content, dict) and bool({"model_type", "architectures"} & content.keys())


def is_of_transformers(config_path: pathlib.Path) -> bool:
  """Returns what `describes_transformers` does; False if the file cannot be read or is not JSON."""
  with contextlib.suppress(OSError, ValueError):
    return describes_transformers(config_path)
  return False
