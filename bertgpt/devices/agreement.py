"""What all processes of a run must agree on: how they were started, and answers of process 0."""

import contextlib
import itertools
import json
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from bertgpt import errors, files
from bertgpt.devices import coordinator
from bertgpt.errors import ConfigError, PeerError

PACKAGES = ("bertgpt", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")

_numbers = itertools.count()  # Of questions. All processes ask them in the same order.


def check(fields: Mapping[str, Any]) -> None:
  """Checks that all processes of a run were started alike. All of them call it at the same time.

  Versions of packages are compared too. With a single process, there is nothing to compare.

  Args:
    fields: name -> JSON value or tuple, for everything that must be the same.
  Raises:
    ConfigError: they differ; the message has one line per field. It is raised in every process.
    PeerError: another process does not answer.
  """
  lines = find_differences(_versions() | dict(fields), f"agreement/{next(_numbers)}")
  if lines:
    raise ConfigError("the processes of this run were started differently:\n  " + "\n  ".join(lines)
                      + "\nGive all of them the same command, files and packages")


def find_differences(fields: Mapping[str, Any], room: str) -> list[str]:
  """Returns a line per field in which processes of a run differ, the same in all of them.

  All processes call it. It may be called from a thread.

  Args:
    fields: name -> JSON value or tuple.
    room: name of this comparison, the same in all processes and used once.
  Raises:
    PeerError: another process does not answer.
  """
  store = coordinator.open_store()
  if store is None:
    return []
  room = f"bertgpt/{room}"
  mine = json.loads(json.dumps(dict(fields), default=str))
  if store.index:
    store.client.key_value_set(f"{room}/{store.index}", json.dumps(mine))
    return _read(store, f"{room}/verdict", 0)
  lines = [line for index in range(1, store.count)
           for line in _compare(mine, _read(store, f"{room}/{index}", index), index)]
  store.client.key_value_set(f"{room}/verdict", json.dumps(lines))
  return lines


def forget(room: str) -> None:
  """Removes the entries of `find_differences`, after all processes have read them.

  Args:
    room: name of the comparison.
  """
  store = coordinator.open_store()
  if store is not None and store.index == 0:
    store.client.key_value_delete(f"bertgpt/{room}")


def broadcast_text(answer: str) -> str:
  """Returns the answer of process 0, which may need hours for it. All processes call it.

  Signals and a watchdog reach a process while it waits here. Call it when the devices are open.

  Args:
    answer: answer of this process; only that of process 0 counts.
  """
  store = coordinator.open_store()
  if store is None:
    return answer
  key = f"bertgpt/answer/{next(_numbers)}"
  if jax.process_index() == 0:  # TPUs number hosts by their place in the slice, unlike the store.
    store.client.key_value_set(key, f"={answer}")
    return answer
  while (found := _try_read(store, key)) is None:
    time.sleep(coordinator.POLL_S)
  return found.removeprefix("=")


def _versions() -> dict[str, str]:
  found = {}
  for name in PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[f"version of {name}"] = metadata.version(name)
  return found


def _read(store: coordinator.Store, key: str, index: int) -> Any:
  """Returns a JSON value that another process writes."""
  try:
    return files.parse_json(store.client.blocking_key_value_get(key, coordinator.ANSWER_S * 1000))
  except jax.errors.JaxRuntimeError as e:
    raise PeerError(f"process {index} of the run does not answer ({errors.one_line(e)}). Start "
                    "all of them again") from e


def _try_read(store: coordinator.Store, key: str) -> str | None:
  """Returns a value of the store; None if there is none yet.

  Raises:
    PeerError: the coordinator is gone.
  """
  try:
    return store.client.key_value_try_get(key)
  except jax.errors.JaxRuntimeError as e:
    if "NOT_FOUND" in str(e):
      return None
    raise PeerError(f"process 0 of the run is gone ({errors.one_line(e)}). Start all processes "
                    "again") from e


def _compare(mine: dict[str, Any], theirs: dict[str, Any], index: int) -> list[str]:
  absent = object()
  show = lambda value: "absent" if value is absent else repr(value)
  pairs = ((name, mine.get(name, absent), theirs.get(name, absent))
           for name in sorted(mine.keys() | theirs.keys()))
  return [f"{name}: {show(a)} in process 0, {show(b)} in process {index}"
          for name, a, b in pairs if a != b]
