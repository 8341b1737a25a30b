"""What surrounds the computation: the cluster, signals, a watchdog, the compilation cache."""

import contextlib
import faulthandler
import math
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from bertgpt.errors import ConfigError, PeerError, StorageError, one_line


def start_distributed(spec: str, timeout_s: float) -> None:
  """Joins this process with the others of the run.

  Args:
    spec: 'auto' (TPU pod, SLURM, Kubernetes: JAX finds the cluster itself) or
      'HOST:PORT,NUM_PROCESSES,PROCESS_ID'.
    timeout_s: for all processes to find each other.
  Raises:
    ConfigError: `spec` is neither, or the port is taken.
    PeerError: the others did not come.
  """
  if spec == "auto":
    try:
      _initialize(timeout_s)
    except ValueError as e:  # JAX's own message names arguments that the user cannot give.
      raise ConfigError("--distributed=auto: no TPU pod, SLURM, Kubernetes or MPI job found; give "
                        "HOST:PORT,NUM_PROCESSES,PROCESS_ID") from e
    return
  try:
    address, count, index = spec.split(",")
    host, port = address.rsplit(":", 1)
    count, index, port = int(count), int(index), int(port)
  except ValueError:
    raise ConfigError(f"--distributed={spec}: give auto or "
                      "HOST:PORT,NUM_PROCESSES,PROCESS_ID") from None
  if not 0 < port < 2**16:
    raise ConfigError(f"--distributed={spec}: PORT must be in [1, 65535]")
  if not 0 <= index < count:
    raise ConfigError(f"--distributed={spec}: PROCESS_ID must be in [0, {count})")
  # JAX aborts when a process is missing, and crashes when the port is taken.
  if index == 0:
    _gather(port, count, timeout_s)
  else:
    _report(host, port, index, timeout_s)
  if jax.config.jax_platforms == "cpu":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  _initialize(timeout_s, coordinator_address=address, num_processes=count, process_id=index)


def _initialize(timeout_s: float, **arguments) -> None:
  try:
    jax.distributed.initialize(initialization_timeout=math.ceil(timeout_s), **arguments)
  except RuntimeError as e:
    raise PeerError(f"--distributed: the processes did not come together: {one_line(e)}") from e


def _gather(port: int, count: int, timeout_s: float) -> None:
  """Process 0 waits for word from all others, then lets them go on."""
  deadline = time.monotonic() + timeout_s
  try:
    server = socket.create_server(("", port), backlog=count)
  except OSError as e:
    raise ConfigError(f"--distributed: port {port} is taken on this host ({e.strerror}); "
                      "choose another one for all processes") from e
  there: dict[bytes, socket.socket] = {}
  missing = {str(i).encode() for i in range(1, count)}
  with server, contextlib.ExitStack() as stack:
    while missing - there.keys():
      if time.monotonic() > deadline:
        absent = b", ".join(sorted(missing - there.keys(), key=int)).decode()
        raise PeerError(f"--distributed: no word from process {absent} of {count} after "
                        f"{timeout_s:g} s; was it started, with the same HOST:PORT?")
      with contextlib.suppress(OSError):  # A time-out, or a stranger who hung up.
        server.settimeout(1)
        peer = stack.enter_context(server.accept()[0])
        peer.settimeout(1)
        there[peer.recv(16)] = peer
    for index in missing:
      with contextlib.suppress(OSError):
        there[index].sendall(b"go")


def _report(host: str, port: int, index: int, timeout_s: float) -> None:
  """Gives word to process 0 and waits until it has heard from all."""
  deadline = time.monotonic() + timeout_s
  while True:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(str(index).encode())
        # Process 0 may have started later, and knows first who is missing.
        connection.settimeout(timeout_s + 5)
        if connection.recv(2) == b"go":
          return
        raise PeerError(f"--distributed: process 0 at {host}:{port} gave up; another process is "
                        "missing, as its own message says")
    except OSError as e:
      if time.monotonic() > deadline:
        raise PeerError(f"--distributed: no answer from process 0 at {host}:{port} within "
                        f"{timeout_s:g} s ({e.strerror or e}); was it started?") from e
      time.sleep(0.5)


def count_devices() -> int:
  """Devices of all processes; the first call opens them.

  Raises:
    ConfigError: they cannot be opened.
  """
  try:
    return jax.device_count()
  except RuntimeError as e:
    raise ConfigError(f"JAX cannot use the devices ({one_line(e)}); see JAX_PLATFORMS, and "
                      "whether another process holds them") from e


@contextlib.contextmanager
def name_lost_peer() -> Iterator[None]:
  """Raises PeerError where a collective of CPUs fails because another process is gone.

  Those of GPUs and TPUs hang instead, until JAX has missed the heartbeats and aborts: see `guard`.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if "Gloo" not in str(e):
      raise
    raise PeerError("another process of the run is gone; start all of them again: they go on with "
                    "what was saved") from e


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
    signal.signal(signum, previous[signum])
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
    # The real stderr: in a notebook sys.stderr is none that a dying process can write to.
    faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.__stderr__)


def disarm_watchdog() -> None:
  faulthandler.cancel_dump_traceback_later()


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs between runs. The folder is private: it holds code that is run."""
  if folder:
    path = pathlib.Path(folder).expanduser()
    try:
      path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
      raise StorageError(f"system.compilation_cache={folder}: cannot be written ({e.strerror}); "
                         "choose another folder, or '' to do without") from e
    jax.config.update("jax_compilation_cache_dir", str(path))


@contextlib.contextmanager
def tracer(steps: tuple[int, ...], path: pathlib.Path) -> Iterator[Callable]:
  """Traces the steps (first, last) with JAX's profiler; xprof and TensorBoard open the trace.

  Args:
    steps: empty for no trace.
    path: folder the trace is written to.
  Yields:
    visit(step, wait), to be called before every step; wait() returns when the one before it
    is done.
  """
  is_on = False

  def visit(step: int, wait: Callable) -> None:
    nonlocal is_on
    if steps and step == steps[0]:
      wait()
      jax.profiler.start_trace(str(path))
      is_on = True
    elif is_on and step == steps[1] + 1:
      wait()
      jax.profiler.stop_trace()
      is_on = False

  try:
    yield visit
  finally:
    if is_on:
      jax.profiler.stop_trace()
