"""A sweep: every run of a recipe's get_sweep(), one process after the other."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from bertgpt import config as config_lib
from bertgpt import metrics
from bertgpt.errors import ConfigError


def run(recipe: str, path: pathlib.Path, overrides: Sequence[str]) -> None:
  """Trains run i in `path`/<i>; a run that is done or was stopped is resumed, not repeated.

  Prints a table of overrides and final held-out metrics, also written to sweep.json.

  Raises:
    ConfigError: an override of the sweep names no field, or a run failed.
  """
  runs = config_lib.load_sweep(recipe)
  flags = [[f"--config.{field}={value}" for field, value in changes.items()] for changes in runs]
  for arguments in flags:
    config_lib.validate(config_lib.override(config_lib.load(recipe), [*overrides, *arguments]))
  table = []
  for i, arguments in enumerate(flags):
    folder = path / f"{i:03d}"
    command = [sys.executable, "-m", "bertgpt.cli", "train", f"--config={recipe}",
               f"--workdir={folder}", *overrides, *arguments]
    print(f"[{i + 1}/{len(runs)}] {' '.join(arguments)}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
      raise ConfigError(f"run {i} of the sweep ended with exit code {code}; mend it and start the "
                        "same sweep again: finished runs are kept")
    table.append({"workdir": str(folder), **runs[i], **final_scores(folder)})
  (path / "sweep.json").write_text(json.dumps(table, indent=2) + "\n")
  for row in table:
    print("  ".join(f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in row.items()))


def final_scores(folder: pathlib.Path) -> dict[str, float]:
  return {tag: points[-1][1] for tag, points in metrics.read_curves(folder).items()
          if tag.startswith("eval/")}
