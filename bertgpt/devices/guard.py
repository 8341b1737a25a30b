"""A parent for each process of a distributed run, which reports how the process ended.

If a peer is lost, JAX ends a process with abort(), from a C++ thread, after pages of messages
(xla/pjrt/distributed/client.h; jax.distributed has no hook for it). No Python handler runs in that
case. So a child does the work, and the parent turns its end into one line and an exit code.
"""

import os
import signal
import sys
import threading

from bertgpt.errors import PeerError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fork_worker(name: str) -> None:
  """Forks a child and returns in it; the parent waits for the child and exits with its code.

  Call it before JAX is imported: JAX's threads do not survive a fork. A signal that is sent to the
  parent reaches the child once, and so does Ctrl-C. If the parent is killed, the child ends.

  Args:
    name: name of the command, for the message.
  """
  reader, writer = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  # A signal between the fork and the handlers below would end the parent, and with it the child.
  signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
  child = os.fork()
  if not child:
    os.close(writer)
    os.setpgid(0, 0)  # Otherwise the terminal's Ctrl-C would reach the child twice.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
    return
  os.close(reader)
  for number in FORWARDED:
    if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:
      signal.signal(number, lambda number, frame: os.kill(child, number))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code == -signal.SIGABRT:
    print(f"{name}: JAX has ended this process; its messages are above. Most likely another "
          "process of the run is gone. Start all of them again to resume from the last checkpoint",
          file=sys.stderr, flush=True)
    code = PeerError.exit_code
  os._exit(code if code >= 0 else 128 - code)  # Shell convention: 137 after kill -9.


def _end_with_parent(reader: int) -> None:
  """Kills this process when the parent is gone."""
  os.read(reader, 1)  # Nothing is written to the pipe: this returns when the parent is gone.
  os.kill(os.getpid(), signal.SIGKILL)
