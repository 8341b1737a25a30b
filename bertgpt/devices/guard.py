"""A parent for each process of a distributed run, which reports how the process ended.

If a peer is lost, JAX ends a process with abort(), from a C++ thread, after pages of messages
(xla/pjrt/distributed/client.h; jax.distributed has no hook for it). No Python handler runs in that
case. So a child does the work, and the parent turns its end into one line and an exit code.

The child's stderr passes through the parent, which also writes it to a file once the child has
named one (`keep_log`). The file has all of it, even what C++ code wrote, however the child ends.
"""

import os
import pathlib
import select
import signal
import socket
import sys
import threading
import time

from bertgpt.devices import lost
from bertgpt.errors import PeerError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHUNK = 2**16
KEPT_CHARS = 2**18  # Of the output before the log is named, and of the end of the output.
DRAIN_S = 2.0  # Time for processes that outlive the child to finish their lines.
_log_names: int | None = None  # In the child: the pipe that takes the name of its log.


def fork_worker(name: str) -> None:
  """Forks a child and returns in it; the parent waits for the child and exits with its code.

  Call it before JAX is imported: JAX's threads do not survive a fork. A signal that is sent to the
  parent reaches the child once, and so does Ctrl-C. If the parent is killed, the child ends.

  Args:
    name: name of the command, for the message.
  """
  global _log_names
  life, held = os.pipe()  # Ends with the parent.
  output, stderr = os.pipe()
  names, log_names = os.pipe()  # Ends with the child: its children inherit stderr, but not this.
  sys.stdout.flush()
  sys.stderr.flush()
  # A signal between the fork and the handlers below would end the parent, and with it the child.
  signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
  child = os.fork()
  if not child:
    for unused in (held, output, names):
      os.close(unused)
    os.dup2(stderr, 2)
    os.close(stderr)
    _log_names = log_names
    os.setpgid(0, 0)  # Otherwise the terminal's Ctrl-C would reach the child twice.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    return
  for unused in (life, stderr, log_names):
    os.close(unused)
  for number in FORWARDED:
    if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:
      signal.signal(number, lambda number, frame: os.kill(child, number))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
  _exit_as(child, name, _copy(output, names))


def keep_log(path: os.PathLike | str) -> None:
  """Lets the parent write the stderr of this process to a file, from the start of the process.

  Without `fork_worker`, it does nothing.

  Args:
    path: the file, which is appended to. Its folder is made if it is missing.
  """
  if _log_names is not None:
    os.write(_log_names, os.fsencode(path) + b"\n")


def _exit_as(child: int, name: str, log: "_Log") -> None:
  """Ends this process the way the child ended, after a line about it."""
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code == -signal.SIGABRT:
    reason = lost.explain_abort(log.end()) or (
        "its messages are above. Most likely another process of the run is gone. Start all of them "
        "again to resume from the last checkpoint")
    log.write(f"{name}: JAX has ended this process: {reason}\n".encode())
    code = PeerError.exit_code
  elif code < 0:
    log.note(f"ended by {signal.Signals(-code).name}")
  code = code if code >= 0 else 128 - code  # Shell convention: 137 after kill -9.
  log.note(f"exit code {code}")
  os._exit(code)


def _copy(output: int, names: int) -> "_Log":
  """Copies the output of the child until it has ended; returns the log."""
  log, name, is_open = _Log(), b"", True
  while True:
    ready = select.select([names, output] if is_open else [names], [], [])[0]
    if output in ready:
      is_open = bool(chunk := os.read(output, CHUNK))
      log.write(chunk)
    if names in ready:
      if not (chunk := os.read(names, CHUNK)):
        break
      *paths, name = (name + chunk).split(b"\n")
      for path in paths:
        log.open(pathlib.Path(os.fsdecode(path)))
  # What is left in the pipe. Children of the child may hold it open for longer.
  deadline = time.monotonic() + DRAIN_S
  while is_open and select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
    is_open = bool(chunk := os.read(output, CHUNK))
    log.write(chunk)
  return log


class _Log:
  """The stderr of the parent and, once it is named, a file. Neither can stop the child."""

  def __init__(self):
    self._recent, self._file = b"", None

  def write(self, chunk: bytes) -> None:
    """Writes to both."""
    self._recent = (self._recent + chunk)[-KEPT_CHARS:]
    for descriptor in (2, self._file):
      _write(descriptor, chunk)

  def note(self, text: str) -> None:
    """Writes a line with the time to the file only."""
    _write(self._file, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())

  def open(self, path: pathlib.Path) -> None:
    """Opens the file, and writes to it what came before."""
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as e:
      _write(2, f"WARNING: {path}: cannot be written ({e.strerror}). The run continues without "
                "it\n".encode())
    self.note(f"started on {socket.gethostname()}, process {os.getpid()}")
    _write(self._file, self._recent)

  def end(self) -> str:
    """Returns the end of what was written."""
    return self._recent.decode("utf-8", "replace")


def _write(descriptor: int | None, content: bytes) -> None:
  """Writes to a file if there is one; what cannot be written is lost."""
  try:
    while descriptor is not None and content:
      content = content[os.write(descriptor, content):]
  except OSError:
    pass


def _end_with_parent(life: int) -> None:
  """Kills this process when the parent is gone."""
  os.read(life, 1)  # Nothing is written to the pipe: this returns when the parent is gone.
  os.kill(os.getpid(), signal.SIGKILL)
