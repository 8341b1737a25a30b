"""Runs code in several processes that are connected as those of one run."""

import os
import subprocess
import sys

import program

PRELUDE = """
import errno, os, sys, threading, time
from bertgpt import errors
from bertgpt.devices import agreement, barrier, board, cluster, coordinator, shutdown
index = int(sys.argv[2])
cluster.start_distributed(f"127.0.0.1:{sys.argv[1]},{sys.argv[3]},{index}", 200)
end = lambda code: (sys.stdout.flush(), os._exit(code))
try:
  with shutdown.end_together():
    BODY
except Exception as e:
  print("ERROR", e, flush=True)
  end(errors.exit_code(e))
print("DONE", flush=True)  # JAX's exit waits for the others: an end at once would end them too.
"""


def run_together(body, count=2):
  """Runs code in processes of one run, and returns (exit code, output) of each."""
  port = program.free_port()
  code = PRELUDE.replace("BODY", body.strip().replace("\n", "\n    "))
  processes = [subprocess.Popen(
      [sys.executable, "-c", code, str(port), str(i), str(count)], text=True,
      cwd=program.ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(count)]
  try:
    outs = [process.communicate(timeout=program.TIMEOUT_S)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, out) for process, out in zip(processes, outs, strict=True)]
