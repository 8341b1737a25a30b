"""The process of a tracker: reads a run, points and an exit code as JSON lines from its input.

It outlives the training by no more than `PATIENCE_S` seconds, even if the training is killed.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time

from bertgpt import console
from bertgpt.errors import one_line
from bertgpt.training import trackers

PATIENCE_S = 60
LOST = 1  # Exit code that the tracker is told if the training has ended without one.


def main(name: str) -> int:
  """Passes everything on to a tracker; returns the exit code.

  Args:
    name: key of `choices.TRACKERS`.
  """
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # The end of the input is what ends this process.
  threading.Thread(target=_end_after_parent, args=(os.getppid(),), daemon=True).start()
  lines = map(json.loads, sys.stdin)
  try:
    module = importlib.import_module(f"{trackers.__name__}.{name}")
    log, finish = module.start(trackers.RunFacts(**next(lines)))
    code = LOST
    for line in lines:
      if "code" in line:
        code = line["code"]
        break
      log(line["step"], line["scalars"])
    threading.Timer(PATIENCE_S, os._exit, [1]).start()
    finish(code)
  except Exception as e:
    console.say(f"WARNING: log.trackers={name}: {one_line(e)}")
    return 1
  return 0


def _end_after_parent(parent: int) -> None:
  """Runs in a thread: ends this process, even if the tracker never returns to read the input."""
  while os.getppid() == parent:
    time.sleep(1)
  time.sleep(PATIENCE_S)
  os._exit(1)


if __name__ == "__main__":
  # Not sys.exit: packages wait for their own threads and servers at a normal exit.
  os._exit(main(sys.argv[1]))
