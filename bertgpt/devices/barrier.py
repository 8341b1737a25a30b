"""Points that all processes of a run reach before any of them continues, without a collective."""

import functools
import itertools
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from bertgpt import console
from bertgpt.devices import coordinator, lost, watchdog
from bertgpt.errors import PeerError

NOTE_S = 60  # After this long, a line says which process is being waited for.
FOREVER_S = 30 * 86400.0

_numbers = itertools.count()  # Of points. All processes reach them in the same order.


def wait_for_all(name: str, seconds: float = coordinator.ANSWER_S,
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
  store = coordinator.open_store()
  if store is None:
    return
  point = f"bertgpt/point/{next(_numbers)}"
  try:
    store.client.key_value_set(f"{point}/{store.index}", "")
    wait = functools.partial(store.client.wait_at_barrier, point, math.ceil(seconds * 1000))
    _call_in_thread(wait, lambda: console.say(
        f"bertgpt: waiting for {_name_absent(store, point)} to reach {name}"))
  except jax.errors.JaxRuntimeError as e:
    if "Barrier timed out" not in str(e):
      raise PeerError(lost.explain(str(e))) from e
    absent = coordinator.call_within(
        coordinator.LOST_S, functools.partial(_name_absent, store, point))
    raise PeerError(f"{absent or 'another process'} of the run did not reach {name} within "
                    f"{seconds:g} s. {advice}") from e


def _name_absent(store: coordinator.Store, point: str) -> str:
  """Returns the processes that have not reached a point, with their hosts; '' if none is known."""
  try:
    present = {int(key.rpartition("/")[2])
               for key, _ in store.client.key_value_dir_get(f"{point}/")}
    hosts = {int(key.rpartition("/")[2]): host
             for key, host in store.client.key_value_dir_get(coordinator.HOSTS)}
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
    thread.join(coordinator.POLL_S)
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
  if coordinator.open_store() is None:
    return
  watchdog.renew()  # The time of the compilation does not count for the wait.
  wait_for_all(f"the end of its compilation of {name}",
               system.compile_timeout_minutes * 60 or FOREVER_S,
               "Look for the reason in its output, or raise system.compile_timeout_minutes")
