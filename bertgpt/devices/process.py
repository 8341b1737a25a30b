"""The environment of the computation: cluster, signals, compilation cache, profiler."""

import contextlib
import errno
import ipaddress
import itertools
import math
import os
import pathlib
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from bertgpt import config as config_lib
from bertgpt import console, files
from bertgpt.devices import lost, signals
from bertgpt.errors import ConfigError, PeerError, StorageError, one_line


def start_distributed(spec: str, timeout_s: float) -> None:
  """Connects this process with the other processes of the run.

  Args:
    spec: 'HOST:PORT,NUM_PROCESSES,PROCESS_ID' with the address of process 0, or 'auto': JAX finds
      the cluster itself (TPU pod, SLURM, Kubernetes, MPI).
    timeout_s: seconds within which all processes must connect.
  Raises:
    ConfigError: `spec` has another form, or the port is in use.
    PeerError: another process did not connect in time.
  """
  if spec == "auto":
    try:
      _initialize(timeout_s)
    except ValueError as e:  # JAX's own message names arguments that users cannot set.
      raise ConfigError("--distributed=auto: no TPU pod, SLURM, Kubernetes or MPI job found. Give "
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
  host = host.strip("[]")  # The brackets of an IPv6 address.
  # Anyone who can connect to the ports of a run can take part in it.
  bind = host if is_loopback(host) else ""
  # JAX aborts if a process is missing, and crashes if the port is in use.
  if index == 0:
    _await_peers(bind, port, count, timeout_s)
  else:
    _await_first(host, port, index, timeout_s)
  if getattr(jax.config, "jax_platforms", None) == "cpu":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # JAX would ask SLURM or MPI for what is not given here, and take one GPU per process.
  _initialize(timeout_s, coordinator_address=address, num_processes=count, process_id=index,
              coordinator_bind_address=address if bind else None,
              cluster_detection_method="deactivate")


def _initialize(timeout_s: float, **arguments) -> None:
  """Calls jax.distributed.initialize. A failure to connect becomes a PeerError."""
  jax.config.update("jax_enable_preemption_service", False)  # See `catch_signals`.
  try:
    jax.distributed.initialize(initialization_timeout=math.ceil(timeout_s), **arguments)
  except RuntimeError as e:
    raise PeerError(f"--distributed: the processes did not connect ({one_line(e)}). Start all of "
                    "them again") from e


def is_loopback(host: str) -> bool:
  """Returns whether a host is a loopback address, or the name that stands for one everywhere.

  Other names are not resolved. Debian and Ubuntu resolve the own name of a machine to 127.0.1.1,
  and other machines know it by another address.

  Args:
    host: name or address.
  """
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost" or host.endswith(".localhost")


def _await_peers(host: str, port: int, count: int, timeout_s: float) -> None:
  """Waits, as process 0, until all others have connected, then tells them to continue.

  Args:
    host: address to listen on; '': all addresses of this machine.
    port, count, timeout_s: see `start_distributed`.
  """
  deadline = time.monotonic() + timeout_s
  try:
    server = _listen(host, port, count)
  except OSError as e:
    raise ConfigError(f"--distributed: port {port} is taken on this host ({e.strerror}). "
                      "Choose another one for all processes") from e
  connected: dict[bytes, socket.socket] = {}
  missing = {str(i).encode() for i in range(1, count)}
  with server, contextlib.ExitStack() as stack:
    while missing - connected.keys():
      if time.monotonic() > deadline:
        absent = b", ".join(sorted(missing - connected.keys(), key=int)).decode()
        raise PeerError(f"--distributed: no message from process {absent} of {count} after "
                        f"{timeout_s:g} s. Check that it was started with the same HOST:PORT")
      with contextlib.suppress(OSError):  # A timeout, or a client that closed the connection.
        server.settimeout(1)
        peer = stack.enter_context(server.accept()[0])
        # It sends its number at once, but its host may be busy.
        peer.settimeout(min(10, max(1, deadline - time.monotonic())))
        connected[peer.recv(16)] = peer
    for index in missing:
      with contextlib.suppress(OSError):
        connected[index].sendall(b"go")


def _listen(host: str, port: int, count: int) -> socket.socket:
  """Listens at an address; '': at all addresses of this machine, those of IPv6 too.

  Raises:
    OSError: the port is taken.
  """
  if not host and socket.has_dualstack_ipv6():
    try:
      return socket.create_server(("", port), family=socket.AF_INET6, backlog=count,
                                  dualstack_ipv6=True)
    except OSError as e:
      if e.errno == errno.EADDRINUSE:
        raise  # For other reasons, IPv6 is not usable here.
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  return socket.create_server((host, port), family=family, backlog=count)


def _await_first(host: str, port: int, index: int, timeout_s: float) -> None:
  """Connects to process 0 and waits until all other processes have done so too."""
  deadline = time.monotonic() + timeout_s
  while True:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(str(index).encode())
        # Process 0 may have started later, and must be the first to report who is missing.
        connection.settimeout(timeout_s + 5)
        if connection.recv(2) == b"go":
          return
        raise PeerError(f"--distributed: process 0 at {host}:{port} gave up, because another "
                        "process is missing. See the message of process 0")
    except OSError as e:
      if time.monotonic() > deadline:
        raise PeerError(f"--distributed: no answer from process 0 at {host}:{port} within "
                        f"{timeout_s:g} s ({e.strerror or e}). Check that it was started") from e
      time.sleep(0.5)


def count_devices() -> int:
  """Returns the number of devices of all processes; the first call opens them.

  Raises:
    ConfigError: the devices cannot be opened.
  """
  try:
    return jax.device_count()
  except RuntimeError as e:
    raise ConfigError(f"JAX cannot use the devices ({one_line(e)}). Check JAX_PLATFORMS, and "
                      "whether another process uses them") from e


def say_once(*lines: str) -> None:
  """Writes lines to stderr, in the first process only, see `console.say`.

  Args:
    lines: lines without their ends; empty ones are left out.
  """
  if jax.process_index() == 0:
    for line in filter(None, lines):
      console.say(line)


@contextlib.contextmanager
def name_lost_peer() -> Iterator[None]:
  """Turns the failure of a collective of CPUs, or of a barrier, into a PeerError.

  Collectives of GPUs and TPUs hang instead, until JAX misses heartbeats and aborts: see `guard`.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if not lost.MESSAGE.search(str(e)):
      raise
    # Only messages of collectives name devices. Before one, opening the devices could hang.
    devices = jax.devices() if "gloo/" in str(e) else ()
    owners = {device.id: device.process_index for device in devices}
    raise PeerError(lost.explain(str(e), owners)) from e


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
  """Turns SIGTERM, SIGHUP and Ctrl-C into a function that the loop calls after every step.

  With several processes, JAX's preemption service answers: it gives all processes the same answer
  at the same call. A second signal of the same kind ends the process, see `signals.end_at_next`.
  SIGHUP means that the terminal was closed; it stays ignored if the process was started with nohup.

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


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs between runs, in a private folder: programs in it are executed.

  The variable JAX_COMPILATION_CACHE_DIR replaces the default folder.

  Args:
    folder: path of the folder; '': no cache.
  Raises:
    ConfigError: other users may write to the folder, or own it.
    StorageError: the folder cannot be written.
  """
  named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if named and folder == config_lib.base().system.compilation_cache:
    if files.is_remote(named):
      return  # JAX reads the variable itself.
    folder = named
  if folder:
    path = files.expand(folder)
    try:
      path.mkdir(mode=0o700, parents=True, exist_ok=True)
      found = path.stat()
    except OSError as e:
      raise StorageError(f"system.compilation_cache={folder}: cannot be written ({e.strerror}). "
                         "Choose another folder, or '' for no cache") from e
    if found.st_uid not in (os.geteuid(), 0):
      raise ConfigError(f"system.compilation_cache={folder}: belongs to the user with the number "
                        f"{found.st_uid}, who can write to it, and the programs in it are "
                        f"executed. Make it yours (chown {os.geteuid()} {path}), or choose another "
                        "folder, or '' for no cache")
    if found.st_mode & 0o022:
      raise ConfigError(f"system.compilation_cache={folder}: other users can write to it, and the "
                        f"programs in it are executed. Make it private (chmod go-w {path}), or "
                        "choose another folder, or '' for no cache")
    jax.config.update("jax_compilation_cache_dir", str(path))


@contextlib.contextmanager
def tracer(steps: tuple[int, ...], path: pathlib.Path) -> Iterator[Callable]:
  """Traces some steps with JAX's profiler; xprof and TensorBoard open the trace.

  A trace that cannot be made costs a line, not the run.

  Args:
    steps: (first, last) step of the trace, counted from 1; (): no trace.
    path: folder that the trace is written to.
  Yields:
    visit(step, wait), to be called before every step. wait() must return only when the previous
    step is done.
  """
  is_on, is_due, local = False, bool(steps), path

  def start() -> None:
    nonlocal is_on, local
    with _as_warning(path):
      if files.is_remote(path):  # JAX writes only to disks.
        local = pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bertgpt-", ignore_cleanup_errors=True)))
      local.mkdir(parents=True, exist_ok=True)  # JAX tries only at the end.
      jax.profiler.start_trace(str(local))
      is_on = True

  def stop() -> None:
    nonlocal is_on
    is_on = False
    with _as_warning(path):
      jax.profiler.stop_trace()
      if local != path:
        upload_trace(local, path)

  def note_done() -> None:
    with _as_warning(path):
      if not path.exists():
        console.say(f"note: profile.steps={steps}: these steps are done, so nothing is traced")

  def visit(step: int, wait: Callable) -> None:
    nonlocal is_due
    if is_due and step >= steps[0]:  # The first step may be one that is skipped, or done.
      is_due = False
      if step <= steps[1]:
        wait()
        start()
      elif jax.process_index() == 0:
        note_done()
    elif is_on and step > steps[1]:
      wait()
      stop()

  with contextlib.ExitStack() as stack:
    try:
      yield visit
    finally:
      if is_on:
        stop()


@contextlib.contextmanager
def _as_warning(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except Exception as e:  # JAX's profiler raises errors of many types.
    console.say(f"WARNING: {path}: the trace could not be stored ({one_line(e)}). The training "
                "continues without it")


def upload_trace(local: pathlib.Path, path: Any) -> None:
  """Copies a trace to a bucket, next to earlier ones.

  Args:
    local: folder of the trace.
    path: folder in the bucket.
  Raises:
    OSError: it cannot be stored.
  """
  for file in sorted(local.rglob("*")):
    if file.is_file():
      (path / str(file.relative_to(local))).upload(file)
