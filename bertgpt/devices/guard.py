"""A parent for each process of a distributed run, which reports how the process ended.

If a peer is lost, JAX ends a process with abort(), from a C++ thread, after pages of messages
(xla/pjrt/distributed/client.h; jax.distributed has no hook for it). No Python handler runs in that
case. So a child does the work, and the parent turns its end into one line and an exit code.

The child's stderr passes through the parent, which also writes it to a file once the child has
named one (`keep_log`). The file has all of it, even what C++ code wrote, however the child ends.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import sys
import threading
import time

from bertgpt import files
from bertgpt.devices import lost
from bertgpt.errors import PeerError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHUNK = 2**16
KEPT_CHARS = 2**18  # Kept of the output before the log has a name, and of its last part.
DRAIN_S = 2.0  # Time for processes that outlive the child to finish their lines.
_notes: int | None = None  # In the child: the pipe to the parent; JSON lines, (kind, *values).


def fork_worker(name: str) -> None:
  """Forks a child and returns in it; the parent waits for the child and exits with its code.

  Call it before JAX is imported: JAX's threads do not survive a fork. A signal that is sent to the
  parent reaches the child once, and so does Ctrl-C. If the parent is killed, the child ends.

  Args:
    name: name of the command, for the message.
  """
  global _notes
  life, held = os.pipe()  # Ends with the parent.
  output, stderr = os.pipe()
  told, notes = os.pipe()  # Ends with the child: its children inherit stderr, but not this.
  sys.stdout.flush()
  sys.stderr.flush()
  # A signal between the fork and the handlers below would end the parent, and with it the child.
  signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
  child = os.fork()
  if not child:
    for unused in (held, output, told):
      os.close(unused)
    os.dup2(stderr, 2)
    os.close(stderr)
    _notes = notes
    os.setpgid(0, 0)  # Otherwise the terminal's Ctrl-C would reach the child twice.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    return
  for unused in (life, stderr, notes):
    os.close(unused)
  for number in FORWARDED:
    if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:
      signal.signal(number, lambda number, frame: os.kill(child, number))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
  _exit_as(child, name, _copy(output, told))


def keep_log(path: os.PathLike | str) -> None:
  """Lets the parent write the stderr of this process to a file, from the start of the process.

  Without `fork_worker`, it does nothing.

  Args:
    path: the file, which is appended to. Its folder is made if it is missing.
  """
  _tell("log", os.fspath(path))


def announce_end(code: int, text: str) -> None:
  """Tells the parent how this process is going to end, in case JAX aborts it before that.

  A process that knows why its run ends needs some time to print the reason and to exit. If the
  coordinator is gone before that, JAX aborts the process.

  Args:
    code: exit code.
    text: what this process prints, without the name of the command.
  """
  _tell("end", code, text)


def _tell(*note: str | int) -> None:
  if _notes is not None:
    os.write(_notes, json.dumps(note).encode() + b"\n")


def _exit_as(child: int, name: str, log: "_Log") -> None:
  """Ends this process the way the child ended, after a line about it."""
  # After `waitpid`, the ID of the child may be that of another process: nothing is passed on to it.
  signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code == -signal.SIGABRT and log.announced:
    code, text = log.announced
    if text not in log.end():
      log.write(f"{name}: {text}\n".encode())
  elif code == -signal.SIGABRT and (reason := lost.explain_abort(log.end())):
    log.write(f"{name}: JAX has ended this process: {reason}\n".encode())
    code = PeerError.exit_code
  elif code == -signal.SIGABRT:  # Not a lost peer, whose end launchers do not count.
    log.write(f"{name}: aborted; its messages are above\n".encode())
  elif code < 0:
    known = {number.value: number.name for number in signal.Signals}
    log.note(f"ended by {known.get(-code, f'signal {-code}')}")  # Most real-time ones have no name.
  code = code if code >= 0 else 128 - code  # Shell convention: 137 after kill -9.
  log.note(f"exit code {code}")
  os._exit(code)


def _copy(output: int, told: int) -> "_Log":
  """Copies the output of the child until it has ended; returns the log."""
  log, rest, is_open = _Log(), b"", True
  while True:
    ready = select.select([told, output] if is_open else [told], [], [])[0]
    if output in ready:
      is_open = bool(chunk := os.read(output, CHUNK))
      log.write(chunk)
    if told in ready:
      if not (chunk := os.read(told, CHUNK)):
        break
      *notes, rest = (rest + chunk).split(b"\n")
      for kind, *values in map(json.loads, notes):
        if kind == "log":
          log.open(pathlib.Path(*values))
        else:
          log.announced = tuple(values)
  # What is left in the pipe. Children of the child may hold it open for longer.
  deadline = time.monotonic() + DRAIN_S
  while is_open and select.select([output], [], [], max(deadline - time.monotonic(), 0))[0]:
    is_open = bool(chunk := os.read(output, CHUNK))
    log.write(chunk)
  return log


class _Log:
  """The stderr of the parent and, once it is named, a file. Neither can stop the child.

  Attributes:
    announced: exit code and text that the child has announced; () if it has not.
  """

  def __init__(self) -> None:
    self._recent = b""
    self._file: int | None = None
    self.announced: tuple = ()

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
  if descriptor is not None:
    with contextlib.suppress(OSError):
      files.write_all(descriptor, content)


def _end_with_parent(life: int) -> None:
  """Kills this process when the parent is gone."""
  os.read(life, 1)  # Nothing is written to the pipe: this returns when the parent is gone.
  os.kill(os.getpid(), signal.SIGKILL)
