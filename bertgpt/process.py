"""What surrounds the computation: the cluster, signals, a watchdog, the compilation cache."""

import contextlib
import faulthandler
import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from bertgpt.errors import ConfigError, PeerError

CONNECT_TIMEOUT_S = 300  # For all processes to find each other.


def start_distributed(spec: str) -> None:
  """Joins this process with the others of the run.

  Args:
    spec: 'auto' (TPU pod, SLURM, Kubernetes: JAX finds the cluster itself) or
      'HOST:PORT,NUM_PROCESSES,PROCESS_ID'.
  Raises:
    ConfigError: `spec` is neither, or the port is taken.
    PeerError: the others did not come.
  """
  if spec == "auto":
    _initialize()
    return
  try:
    address, count, index = spec.split(",")
    host, port = address.rsplit(":", 1)
    count, index, port = int(count), int(index), int(port)
  except ValueError:
    raise ConfigError(f"--distributed={spec}: give auto or HOST:PORT,NUM_PROCESSES,PROCESS_ID") from None
  if not 0 <= index < count:
    raise ConfigError(f"--distributed={spec}: PROCESS_ID must be in [0, {count})")
  if index == 0:
    _check_port_is_free(port)
  else:
    _wait_for_port(host, port)
  if jax.config.jax_platforms == "cpu":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  _initialize(coordinator_address=address, num_processes=count, process_id=index)


def _initialize(**arguments) -> None:
  try:
    jax.distributed.initialize(initialization_timeout=CONNECT_TIMEOUT_S, **arguments)
  except (RuntimeError, ValueError) as e:
    raise PeerError(f"--distributed: the processes did not come together: {_first_line(e)}") from e


def _check_port_is_free(port: int) -> None:
  """JAX crashes when the coordinator's port is taken, so ask first."""
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("", port))
    except OSError as e:
      raise ConfigError(f"--distributed: port {port} is taken on this host ({e.strerror}); "
                        "choose another one for all processes") from e


def _wait_for_port(host: str, port: int) -> None:
  """JAX crashes when the coordinator never comes, so wait for it here."""
  deadline = time.monotonic() + CONNECT_TIMEOUT_S
  while True:
    try:
      socket.create_connection((host, port), timeout=5).close()
      return
    except OSError as e:
      if time.monotonic() > deadline:
        raise PeerError(f"--distributed: no coordinator at {host}:{port} after {CONNECT_TIMEOUT_S} s "
                        f"({e.strerror or e}); is process 0 running?") from e
      time.sleep(0.5)


def _first_line(e: Exception) -> str:
  return (str(e).strip().splitlines() or [type(e).__name__])[0]


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[int], bool]]:
  """Turns SIGTERM and Ctrl-C into a question the loop asks after every step.

  With several processes JAX's preemption service is asked, which gives all of them the
  same answer at the same step. A second Ctrl-C ends the process at once.

  Yields:
    should_stop(step).
  """
  stopped = False

  def ask(signum, frame):
    nonlocal stopped
    stopped = True
    signal.signal(signum, previous[signum])

  def pass_on(signum, frame):
    os.kill(os.getpid(), signal.SIGTERM)  # JAX's service listens to this one alone.

  alone = jax.process_count() == 1
  handlers = {signal.SIGINT: ask, signal.SIGTERM: ask} if alone else {signal.SIGINT: pass_on}
  previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
  try:
    yield (lambda step: stopped) if alone else multihost_utils.reached_preemption_sync_point
  finally:
    for signum, handler in previous.items():
      signal.signal(signum, handler)


def arm_watchdog(minutes: float) -> None:
  """Ends the process, with a stack, unless it is called again in time: a peer may hang for ever."""
  if minutes:
    faulthandler.dump_traceback_later(minutes * 60, exit=True)


def disarm_watchdog() -> None:
  faulthandler.cancel_dump_traceback_later()


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs between runs. The folder is private: it holds code that is run."""
  if folder:
    path = pathlib.Path(folder).expanduser()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
