"""Runs of earlier versions whose configs set fields that those versions did not read.

Such a run continues as it began: a field that had no effect on its first steps has none on the
later ones. The first start by a version that reads the field records this in history.jsonl, because
that start rewrites config.json:

    {"event": "ignored", "fields": ["data.isolate_documents"]}

Such a run also keeps what those versions did instead of the default of a field that was added later
(`config.stored.FORMER_VALUES`), such as the choice of its held-out rows:

    {"event": "former", "fields": ["eval.rows_by"]}
"""

import contextlib
import pathlib

from bertgpt import files
from bertgpt.config import ConfigDict, base, leaves, stored
from bertgpt.config.overrides import set_field
from bertgpt.runs import folder_kinds, history

EVENT, FORMER_EVENT = "ignored", "former"


def find_ignored(path: pathlib.Path) -> list[str]:
  """Returns the fields that a run ignores, even if its command sets them.

  Args:
    path: workdir of the run; without a run in it, there are none.
  """
  return _find_in_config(path) or _find_in_history(path, EVENT)


def _find_in_config(path: pathlib.Path) -> list[str]:
  with contextlib.suppress(OSError, ValueError):
    return stored.find_ignored(files.parse_json((path / "config.json").read_bytes()))
  return []


def _find_former(path: pathlib.Path) -> list[str]:
  with contextlib.suppress(OSError, ValueError):
    return [*stored.find_former(files.parse_json((path / "config.json").read_bytes()))]
  return []


def _find_in_history(path: pathlib.Path, name: str) -> list[str]:
  found: list[str] = []
  for event in history.read(path):
    if event["event"] == "start":  # Another run, which began after config.json was deleted.
      found = []
    elif event["event"] == name:
      fields = event.get("fields")
      found = ([field for field in fields if isinstance(field, str)]
               if isinstance(fields, list) else [])
  return found


def as_begun(path: pathlib.Path, config: ConfigDict) -> ConfigDict:
  """Returns a config whose fields have the effect that they had when the run was begun.

  Args:
    path: workdir of the run; without a run in it, the config stays as it is.
    config: a whole config.
  """
  if not folder_kinds.is_run(path):  # The history may be that of a run before.
    return config
  defaults = dict(leaves(base()))
  values = {field: defaults[field] for field in find_ignored(path) if field in defaults}
  former = _find_former(path) or _find_in_history(path, FORMER_EVENT)
  values |= {field: value for field, value in stored.FORMER_VALUES.items() if field in former}
  if not values:
    return config
  config = config.copy_and_resolve_references()
  for field, value in values.items():
    set_field(config, field, value)
  config.lock()
  return config


def describe(asked: ConfigDict, config: ConfigDict) -> list[str]:
  """Returns a line for each field that `as_begun` replaced.

  Args:
    asked: the config that it was given.
    config: the config that it returned.
  """
  values = dict(leaves(config))
  return [f"note: {field} is {values[field]!r} here, not {value!r}, as it was when an earlier "
          "version began this run" for field, value in leaves(asked) if values[field] != value]


def note(path: pathlib.Path) -> None:
  """Records, before config.json is rewritten, which fields the run ignores or keeps as they were.

  Args:
    path: workdir of the run.
  """
  if fields := _find_in_config(path):
    history.add(path, EVENT, fields=fields)
  if fields := _find_former(path):
    history.add(path, FORMER_EVENT, fields=fields)
