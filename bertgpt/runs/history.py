"""Events of a run other than its steps: history.jsonl in its workdir.

    {"event": "start"}                                    the run began at step 0
    {"event": "checkpoint", "step": 10}                   the first checkpoint was saved
    {"event": "rollback", "to": 20, "checkpoints": [40]}  `bertgpt rollback`, and what it set aside
    {"event": "ignored", "fields": [...]}                 see `former`, as "former"

It outlives the checkpoints, so a run whose checkpoints are gone is not mistaken for a new run.
"""

import json
import pathlib
from typing import Any

from bertgpt import files
from bertgpt.errors import DataError
from bertgpt.runs import folder_kinds

FILE = "history.jsonl"


def add(path: pathlib.Path, event: str, **details: Any) -> None:
  """Adds a line to the history of a run.

  Args:
    path: workdir of the run.
    event: what happened, see above.
    **details: JSON values.
  Raises:
    OSError: the file cannot be written.
  """
  files.append(path / FILE, json.dumps({"event": event, **details}))


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the events of a run, in order. Damaged lines are left out.

  Args:
    path: workdir of the run.
  """
  return [event for _, event in files.read_json_lines(path / FILE)
          if isinstance(event, dict) and "event" in event]


def note_checkpoint(path: pathlib.Path, step: int) -> None:
  """Records that a run has saved a checkpoint, unless that is recorded already.

  Args:
    path: workdir of the run.
    step: steps done at the checkpoint.
  """
  if "checkpoint" not in _events_since_start(path):
    add(path, "checkpoint", step=step)


def _events_since_start(path: pathlib.Path) -> list[str]:
  """Returns the names of the events from the last start at step 0 on.

  Earlier versions recorded no start: then those of all events, [] if there is none.
  """
  names = [event["event"] for event in read(path)]
  starts = [i for i, name in enumerate(names) if name == "start"]
  return names[starts[-1]:] if starts else names


def check_start(path: pathlib.Path, last_logged: int, every_steps: int) -> None:
  """Checks, before a run begins at step 0, that it has never had a checkpoint.

  A run of an earlier version has no history: its report and the last step of its curves decide.

  Args:
    path: workdir, which has no checkpoints.
    last_logged: last step in metrics.jsonl; 0: none.
    every_steps: steps after which the run saves a checkpoint; 0: it may save none.
  Raises:
    DataError: there must have been checkpoints.
  """
  if not folder_kinds.is_run(path):
    return
  events = _events_since_start(path)
  # A save begins only when the previous one is complete.
  had_one = "checkpoint" in events or ("start" not in events and (
      (path / "report.md").is_file() or 0 < 2 * every_steps < last_logged))
  if had_one:
    raise DataError(f"{path}: this run has saved checkpoints, but there is none in checkpoints/. "
                    "Mount or restore that folder, or use another --workdir. To begin again at "
                    "step 0, delete config.json")
