"""Messages between the processes of a run that do not use devices: agreement, and ends.

The messages go through the key-value store of JAX's coordinator, which exists as soon as the
processes have connected.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax

from bertgpt import console, errors, files
from bertgpt.devices import guard, lost, timeline, watchdog
from bertgpt.errors import ConfigError, PeerError

ANSWER_S = 1200  # Time for the others to reach the same point, for example to finish imports.
NOTICE_S = 1     # Time between two checks of whether another process has ended.
# Process 0 holds the store. Before it ends, it waits this long for the others to read the reason.
# They look once per second; on a busy machine, it may take longer. A lost process never reads it.
FAREWELL_S, FAREWELL_TO_LOST_S = 60, 5
NOTE_S = 60      # After this long, a line says which process is being waited for.
FOREVER_S = 30 * 86400.0
END, HOSTS = "bertgpt/end", "bertgpt/host/"
PACKAGES = ("bertgpt", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")

_questions = itertools.count()


@dataclasses.dataclass(frozen=True)
class _Store:
  """The store of the coordinator, and the place of this process in its run."""

  client: Any
  index: int
  count: int


def _open_store() -> _Store | None:
  """Returns the store; None if this process is the only one of its run."""
  # Not jax.process_count(), which opens the devices. JAX has no public access to the client.
  from jax._src.distributed import global_state as state
  if state.client is None or state.num_processes == 1:
    return None
  return _Store(state.client, state.process_id, state.num_processes)


# ------------------------------------------------------------------ agreement


def check_agreement(fields: Mapping[str, Any]) -> None:
  """Checks that all processes of a run were started alike. All of them call it at the same time.

  Versions of packages are compared too. With a single process, there is nothing to compare.

  Args:
    fields: name -> JSON value or tuple, for everything that must be the same.
  Raises:
    ConfigError: they differ; the message has one line per field. It is raised in every process.
    PeerError: another process does not answer.
  """
  lines = find_differences(_versions() | dict(fields), f"agreement/{next(_questions)}")
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
  store = _open_store()
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
  store = _open_store()
  if store is not None and store.index == 0:
    store.client.key_value_delete(f"bertgpt/{room}")


def _versions() -> dict[str, str]:
  found = {}
  for name in PACKAGES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[f"version of {name}"] = metadata.version(name)
  return found


def _read(store: _Store, key: str, index: int) -> Any:
  """Returns a JSON value that another process writes."""
  try:
    return files.parse_json(store.client.blocking_key_value_get(key, ANSWER_S * 1000))
  except jax.errors.JaxRuntimeError as e:
    raise PeerError(f"process {index} of the run does not answer ({errors.one_line(e)}). Start "
                    "all of them again") from e


def _compare(mine: dict[str, Any], theirs: dict[str, Any], index: int) -> list[str]:
  absent = object()
  show = lambda value: "absent" if value is absent else repr(value)
  pairs = ((name, mine.get(name, absent), theirs.get(name, absent))
           for name in sorted(mine.keys() | theirs.keys()))
  return [f"{name}: {show(a)} in process 0, {show(b)} in process {index}"
          for name, a, b in pairs if a != b]


def broadcast_text(answer: str) -> str:
  """Returns the answer of process 0, which may need hours for it. All processes call it.

  Signals and a watchdog reach a process while it waits here. Call it when the devices are open.

  Args:
    answer: answer of this process; only that of process 0 counts.
  """
  store = _open_store()
  if store is None:
    return answer
  key = f"bertgpt/answer/{next(_questions)}"
  if jax.process_index() == 0:  # TPUs number hosts by their place in the slice, unlike the store.
    store.client.key_value_set(key, f"={answer}")
    return answer
  while (found := _try_read(store, key)) is None:
    time.sleep(NOTICE_S / 10)
  return found.removeprefix("=")


def _try_read(store: _Store, key: str) -> str | None:
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


def wait_for_all(name: str, seconds: float = ANSWER_S,
                 advice: str = "Start all of them again") -> None:
  """Waits until all processes of the run have reached a point. All of them call it once per point.

  This is a barrier of JAX's coordination service, without a collective. Signals and a watchdog
  reach a process while it waits here.

  Args:
    name: name of the point, for the message, such as 'the end of the preparation'.
    seconds: time that the first process waits for the last one.
    advice: sentence that ends the message.
  Raises:
    PeerError: another process did not reach it.
  """
  store = _open_store()
  if store is None:
    return
  point = f"bertgpt/point/{next(_questions)}"
  try:
    store.client.key_value_set(f"{point}/{store.index}", "")
    wait = functools.partial(store.client.wait_at_barrier, point, math.ceil(seconds * 1000))
    _call_in_thread(wait, lambda: console.say(
        f"bertgpt: waiting for {_name_absent(store, point)} to reach {name}"))
  except jax.errors.JaxRuntimeError as e:
    if "Barrier timed out" not in str(e):
      raise PeerError(lost.explain(str(e))) from e
    absent = _within(FAREWELL_TO_LOST_S, functools.partial(_name_absent, store, point))
    raise PeerError(f"{absent or 'another process'} of the run did not reach {name} within "
                    f"{seconds:g} s. {advice}") from e


def _name_absent(store: _Store, point: str) -> str:
  """Returns the processes that have not reached a point, with their hosts; '' if none is known."""
  try:
    present = {int(key.rpartition("/")[2])
               for key, _ in store.client.key_value_dir_get(f"{point}/")}
    hosts = {int(key.rpartition("/")[2]): host
             for key, host in store.client.key_value_dir_get(HOSTS)}
  except jax.errors.JaxRuntimeError:
    return ""
  absent = [index for index in range(store.count) if index not in present]
  on = sorted({hosts[index] for index in absent if index in hosts})
  return lost.name_processes(absent) + (f" (on {', '.join(on)})" if on else "")


def _call_in_thread(function: Callable[[], None], on_long_wait: Callable[[], None]) -> None:
  """Calls a function that blocks outside Python, in a thread, so that signals are still handled.

  Args:
    function: what is called; its error is raised here.
    on_long_wait: called once, if it takes longer than NOTE_S.
  """
  outcome: list[Exception | None] = []

  def work() -> None:
    try:
      function()
      outcome.append(None)
    except Exception as e:
      outcome.append(e)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  noted_at = time.monotonic() + NOTE_S
  while thread.is_alive():
    thread.join(NOTICE_S / 10)
    if time.monotonic() > noted_at:
      noted_at = math.inf
      on_long_wait()
  if error := outcome[0]:
    raise error


def compile_together(name: str, system: Any, program: Any, *arguments: Any) -> None:
  """Compiles a program in all processes before any of them runs it. All of them call it.

  Some processes compile for longer than others, which read the program from their cache. Without
  this, the first collective would fail: Gloo, for example, waits 30 s for the others. A process
  without peers only compiles.

  Args:
    name: name of the program, for the message, such as 'the train step'.
    system: `config.system`, whose `compile_timeout_minutes` is the time that the first process
      waits for the last one.
    program: result of `jax.jit`, which is called with the same arguments afterwards.
    arguments: its arguments. None of them is changed.
  Raises:
    PeerError: another process is not ready in time.
  """
  program.lower(*arguments).compile()  # JAX keeps the result for the call.
  if _open_store() is None:
    return
  watchdog.renew()  # The time of the compilation does not count for the wait.
  wait_for_all(f"the end of its compilation of {name}",
               system.compile_timeout_minutes * 60 or FOREVER_S,
               "Look for the reason in its output, or raise system.compile_timeout_minutes")


# -------------------------------------------------------------------- numbers


class Board:
  """Measurements that every process posts now and then, and that process 0 reads.

  A thread exchanges them, so that `post` and `read` never wait, and a lost store ends nothing.

  Attributes:
    index: index of this process.
    count: processes of the run.
  """

  def __init__(self, name: str, every_s: float):
    """Begins to exchange.

    Args:
      name: name of the board, the same in all processes and used once at a time.
      every_s: seconds between two exchanges.
    """
    store = _open_store()
    self.index, self.count = jax.process_index(), jax.process_count()
    self._room, self._every_s = f"bertgpt/board/{name}/", every_s
    self._mine: dict[str, float] | None = None
    self._found: dict[int, dict[str, float]] = {}
    self._is_closed = threading.Event()
    if store:
      threading.Thread(target=self._exchange, args=(store,), daemon=True).start()

  @property
  def is_taken(self) -> bool:
    """Whether what was posted last is on its way."""
    return self._mine is None

  def post(self, numbers: dict[str, float]) -> None:
    """Replaces what this process has posted."""
    self._mine = numbers

  def read(self) -> dict[int, dict[str, float]]:
    """Returns process -> what it has posted, as last seen; {} if this is not process 0."""
    return dict(self._found)

  def close(self) -> None:
    """Ends the exchange."""
    self._is_closed.set()

  def _exchange(self, store: _Store) -> None:
    """Runs in a thread."""
    with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):
      while not self._is_closed.wait(self._every_s):
        mine, self._mine = self._mine, None
        if mine is not None:
          store.client.key_value_set(f"{self._room}{self.index}", json.dumps(mine),
                                     allow_overwrite=True)
        if self.index == 0:
          self._found = {int(key.rpartition("/")[2]): files.parse_json(value)
                         for key, value in store.client.key_value_dir_get(self._room)}


# ------------------------------------------------------------------------ end


@contextlib.contextmanager
def end_together() -> Iterator[None]:
  """Ends all processes of a run if one of them ends with an error inside the context.

  The others print the reason and end with the same exit code, within seconds, wherever they wait.
  Without this, they would wait in a collective, or for 300 s when JAX exits.

  Raises:
    UserError: the error that another process ended with, in place of a PeerError.
  """
  store = _open_store()
  if store is None:
    yield
    return
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    store.client.key_value_set(f"{HOSTS}{store.index}", socket.gethostname())
  is_over = threading.Event()
  watcher = threading.Thread(target=_watch, args=(store, is_over), daemon=True)
  watcher.start()
  farewell = lambda error, patience: _within(
      patience + 2 * NOTICE_S, functools.partial(_announce, store, error, patience))
  try:
    with watchdog.telling(lambda reason: farewell(RuntimeError(reason), FAREWELL_S)):
      yield
  except BaseException as e:
    is_over.set()
    cause = farewell(e, FAREWELL_TO_LOST_S if isinstance(e, PeerError) else FAREWELL_S)
    if cause is not None and isinstance(e, PeerError):
      raise cause from e
    raise
  finally:
    is_over.set()
    watcher.join(2 * NOTICE_S)


def _watch(store: _Store, is_over: threading.Event) -> None:
  """Runs in a thread: ends this process when another one has announced its end."""
  while not is_over.wait(NOTICE_S):
    end = _find_end(store)
    if end is not None and end["process"] != store.index and not is_over.is_set():
      guard.announce_end(end["code"], f"{_describe(end)}. This process ends too")
      _confirm(store)
      console.say(f"bertgpt: {_describe(end)}. This process ends too")
      timeline.end(end["code"], _describe(end))
      is_lost = end["code"] == PeerError.exit_code
      _wait_for_confirmations(store, FAREWELL_TO_LOST_S if is_lost else FAREWELL_S)
      files.remove_copies()
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      os._exit(end["code"])


def _find_end(store: _Store) -> dict[str, Any] | None:
  """Returns the announcement of the first process that ended."""
  try:
    return files.parse_json(store.client.key_value_try_get(END))
  except (jax.errors.JaxRuntimeError, ValueError):  # No announcement, or the coordinator is gone.
    return None


def _describe(end: dict[str, Any]) -> str:
  return f"process {end['process']} ended with exit code {end['code']} ({end['line']})"


def _announce(store: _Store, error: BaseException, patience: float) -> errors.UserError | None:
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


def _confirm(store: _Store) -> None:
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    store.client.key_value_set(f"{END}-seen/{store.index}", "")


def _wait_for_confirmations(store: _Store, patience: float) -> None:
  """Waits, in process 0, whose end closes the store, until the others have read the reason."""
  deadline = time.monotonic() + patience
  while store.index == 0 and time.monotonic() < deadline and _count_confirmed(store) < store.count:
    time.sleep(0.1)


def _count_confirmed(store: _Store) -> int:
  try:
    return len(store.client.key_value_dir_get(f"{END}-seen/"))
  except jax.errors.JaxRuntimeError:
    return store.count


def _within(seconds: float, function: Callable[[], Any]) -> Any:
  """Returns the result of a function; None if it takes longer, as it does without a coordinator."""
  results = []
  thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
  thread.start()
  thread.join(seconds)
  return results[0] if results else None
