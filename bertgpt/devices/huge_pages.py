"""Huge pages for the memory of a process, on Linux systems that provide them only on request.

On a CPU, XLA allocates the temporary memory of a program again at every execution. Linux clears
each page at its first access. With pages of 4 KiB this takes 13% of the CPU time of a step of
GPT-2, and 23% in the demo; with pages of 2 MiB it takes hardly any. glibc's malloc requests huge
pages if an environment variable says so (GNU C Library manual, "Memory Allocation Tunables"), but
it reads the variable only when a process starts.
"""

import contextlib
import os
import pathlib
import sys

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
MARKER = "BERTGPT_RESTARTED"
SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
  """Restarts this program with huge pages; returns if they are on already or are unavailable.

  Call it before anything that is slow or must not be done twice. If the user has set
  GLIBC_TUNABLES, nothing is changed. Child processes do not inherit the variable.
  """
  if os.environ.pop(MARKER, None):
    os.environ.pop(VARIABLE, None)
  elif VARIABLE not in os.environ and is_on_request():
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # The program then continues without huge pages.
      os.execve(sys.executable, sys.orig_argv, os.environ | {VARIABLE: TUNABLE, MARKER: "1"})


def is_on_request() -> bool:
  """Returns whether this system provides huge pages only on request.

  Linux may also be set to always or never provide them; other systems lack the setting.
  """
  try:
    return "[madvise]" in SETTING.read_text()
  except OSError:
    return False
