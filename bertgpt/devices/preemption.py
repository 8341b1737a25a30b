"""Signals that stop a run after its current step, in all of its processes."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from bertgpt import console
from bertgpt.devices import signals


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
  """Turns SIGTERM, SIGHUP and Ctrl-C into a function that the loop calls after every step.

  With several processes, JAX's preemption service answers: it gives all processes the same answer
  at the same call. A second signal of the same kind ends the process, see `signals.end_at_next`.
  SIGHUP means that the terminal was closed; it stays ignored if the process was started with nohup.
  Python lets only the main thread set handlers, so another thread can ask only JAX's service.

  Yields:
    should_stop(), whether a signal was received; all processes call it the same number of times.
  """
  stopped, calls = False, itertools.count()

  def ask(signum, frame):
    nonlocal stopped
    stopped = True
    signals.end_at_next(signum, previous[signum] if signum == signal.SIGINT else signal.SIG_DFL)

  def pass_on(signum, frame):
    signals.end_at_next(signum, previous[signum] if signum == signal.SIGINT else signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)  # JAX's service listens only to this signal.

  def agree() -> bool:
    # The service counts calls. It returns True at a single call, the first that all can reach.
    nonlocal stopped
    stopped = stopped or multihost_utils.reached_preemption_sync_point(next(calls))
    return stopped

  is_single = jax.process_count() == 1
  if threading.current_thread() is not threading.main_thread():
    if is_single:
      console.say("note: the training is not in the main thread, so a signal saves no checkpoint")
    else:
      _start_preemption_service()
    yield (lambda: False) if is_single else agree
    return
  numbers = [signal.SIGINT, *signals.ENDING] if is_single else [signal.SIGINT, signal.SIGHUP]
  previous = {number: signal.signal(number, ask if is_single else pass_on) for number in numbers
              if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT}
  if not is_single:
    _start_preemption_service()
  try:
    yield (lambda: stopped) if is_single else agree
  finally:
    if not is_single:  # JAX's service has replaced the handler behind Python's back.
      previous[signal.SIGTERM] = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def _start_preemption_service() -> None:
  """Starts JAX's preemption service, which handles SIGTERM instead of Python.

  JAX has no public function for this: `jax.distributed.initialize` starts the service long before
  the loop.
  """
  from jax._src.distributed import global_state
  if global_state.preemption_sync_manager is None:
    jax.config.update("jax_enable_preemption_service", True)
    global_state.initialize_preemption_sync_manager()
