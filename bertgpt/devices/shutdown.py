"""The common end of all processes of a run: an error in one of them ends the others."""

import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from bertgpt import console, errors, files
from bertgpt.devices import coordinator, guard, timeline, watchdog
from bertgpt.errors import PeerError

NOTICE_S = 1  # Time between two checks of whether another process has ended.
# Process 0 holds the store. Before it ends, it waits this long for the others to read the reason;
# they look once per second, and on a busy machine it may take longer. A lost process never reads
# it, so the wait is then `coordinator.LOST_S`.
FAREWELL_S = 60
END = "bertgpt/end"


@contextlib.contextmanager
def end_together() -> Iterator[None]:
  """Ends all processes of a run if one of them ends with an error inside the context.

  The others print the reason and end with the same exit code, within seconds, wherever they wait.
  Without this, they would wait in a collective, or for 300 s when JAX exits.

  Raises:
    UserError: the error that another process ended with, in place of a PeerError.
  """
  store = coordinator.open_store()
  if store is None:
    yield
    return
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    store.client.key_value_set(f"{coordinator.HOSTS}{store.index}", socket.gethostname())
  is_over = threading.Event()
  watcher = threading.Thread(target=_watch, args=(store, is_over), daemon=True)
  watcher.start()
  farewell = lambda error, patience: coordinator.call_within(
      patience + 2 * NOTICE_S, functools.partial(_announce, store, error, patience))
  try:
    with watchdog.telling(lambda reason: farewell(RuntimeError(reason), FAREWELL_S)):
      yield
  except BaseException as e:
    is_over.set()
    cause = farewell(e, coordinator.LOST_S if isinstance(e, PeerError) else FAREWELL_S)
    if cause is not None and isinstance(e, PeerError):
      raise cause from e
    raise
  finally:
    is_over.set()
    watcher.join(2 * NOTICE_S)


def _watch(store: coordinator.Store, is_over: threading.Event) -> None:
  """Runs in a thread: ends this process when another one has announced its end."""
  while not is_over.wait(NOTICE_S):
    end = _find_end(store)
    if end is not None and end["process"] != store.index and not is_over.is_set():
      guard.announce_end(end["code"], f"{_describe(end)}. This process ends too")
      _confirm(store)
      console.say(f"bertgpt: {_describe(end)}. This process ends too")
      timeline.end(end["code"], _describe(end))
      is_lost = end["code"] == PeerError.exit_code
      _wait_for_confirmations(store, coordinator.LOST_S if is_lost else FAREWELL_S)
      files.remove_copies()
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      os._exit(end["code"])


def _find_end(store: coordinator.Store) -> dict[str, Any] | None:
  """Returns the announcement of the first process that ended."""
  try:
    return files.parse_json(store.client.key_value_try_get(END))
  except (jax.errors.JaxRuntimeError, ValueError):  # No announcement, or the coordinator is gone.
    return None


def _describe(end: dict[str, Any]) -> str:
  return f"process {end['process']} ended with exit code {end['code']} ({end['line']})"


def _announce(store: coordinator.Store, error: BaseException, patience: float
              ) -> errors.UserError | None:
  """Tells the other processes about an error; returns the error of another one that came first.

  Args:
    store: store of the coordinator.
    error: error that ends this process.
    patience: maximum time in seconds that process 0 waits until the others have read it.
  """
  end: dict[str, Any] = {"process": store.index, "code": errors.exit_code(error),
                         "line": errors.one_line(error)}
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another process was first.
    store.client.key_value_set(END, json.dumps(end))
  first, cause = _find_end(store) or end, None
  if first["process"] != store.index:
    cause = errors.UserError(_describe(first))
    cause.exit_code = first["code"]
  reason = cause if cause is not None and isinstance(error, PeerError) else error
  guard.announce_end(errors.exit_code(reason), str(reason) or type(reason).__name__)
  _confirm(store)  # Process 0 may end now, and JAX with it.
  _wait_for_confirmations(store, patience)
  return cause


def _confirm(store: coordinator.Store) -> None:
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    store.client.key_value_set(f"{END}-seen/{store.index}", "")


def _wait_for_confirmations(store: coordinator.Store, patience: float) -> None:
  """Waits, in process 0, whose end closes the store, until the others have read the reason."""
  deadline = time.monotonic() + patience
  while store.index == 0 and time.monotonic() < deadline and _count_confirmed(store) < store.count:
    time.sleep(coordinator.POLL_S)


def _count_confirmed(store: coordinator.Store) -> int:
  try:
    return len(store.client.key_value_dir_get(f"{END}-seen/"))
  except jax.errors.JaxRuntimeError:
    return store.count
