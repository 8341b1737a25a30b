"""A process that stands behind each process of a distributed run and says how it ended.

When a peer is gone, JAX ends a process by abort(), from a C++ thread, with pages of messages
(xla/pjrt/distributed/client.h; jax.distributed has no hook for it). No Python handler runs then,
so the work is done in a child, and the parent turns its end into a line and an exit code.
"""

import os
import signal
import sys
import threading

from bertgpt.errors import PeerError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fork_worker(name: str) -> None:
  """Returns in a child process, which does the work; the parent waits and ends as it does.

  To be called before JAX is imported: JAX's threads do not survive a fork. Signals sent to the
  parent reach the child once, Ctrl-C too; if the parent is killed, the child ends.

  Args:
    name: of the command, for the message.
  """
  reader, writer = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  child = os.fork()
  if not child:
    os.close(writer)
    os.setpgid(0, 0)  # Else the terminal's Ctrl-C would reach the child twice.
    threading.Thread(target=_end_with_parent, args=(reader,), daemon=True).start()
    return
  os.close(reader)
  for number in FORWARDED:
    signal.signal(number, lambda number, frame: os.kill(child, number))
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code == -signal.SIGABRT:
    print(f"{name}: JAX has ended this process, as its messages above say: most likely another "
          "process of the run is gone. Start all of them again: they go on with what "
          "was saved", file=sys.stderr, flush=True)
    code = PeerError.exit_code
  os._exit(code if code >= 0 else 128 - code)  # As shells have it: 137 after kill -9.


def _end_with_parent(reader: int) -> None:
  os.read(reader, 1)  # Nothing is ever written: it returns when the parent is gone.
  os.kill(os.getpid(), signal.SIGKILL)
