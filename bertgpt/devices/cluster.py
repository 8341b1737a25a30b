"""The processes of a run: how they find each other, which of them speaks, what a lost one means."""

import contextlib
import errno
import ipaddress
import math
import socket
import time
from collections.abc import Iterator

import jax

from bertgpt import console
from bertgpt.devices import lost
from bertgpt.errors import ConfigError, DeviceError, PeerError, one_line

GPU_PLATFORMS = ("cuda", "rocm", "gpu")  # The names that JAX_PLATFORMS may give them.


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
    DeviceError: the devices cannot be opened, or are not those of JAX_PLATFORMS.
  """
  asked = getattr(jax.config, "jax_platforms", None) or ""
  try:
    count = jax.device_count()
  except AssertionError:  # JAX leaves CUDA out if it sees no GPU, and may have nothing then.
    count = 0
  except RuntimeError as e:
    raise DeviceError(f"JAX cannot use the devices ({one_line(e)}). Check JAX_PLATFORMS, and "
                      "whether another process uses them") from e
  if asked.split(",")[0] in GPU_PLATFORMS and (not count or jax.default_backend() != "gpu"):
    raise DeviceError(f"JAX_PLATFORMS={asked}: JAX sees no GPU. Check nvidia-smi, and that JAX for "
                      "CUDA is installed (make install-gpu); JAX_PLATFORMS=cpu computes on CPUs")
  return count


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
