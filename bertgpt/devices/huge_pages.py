"""Huge pages for the memory of a process, where Linux gives them only to who asks.

On a CPU, XLA allocates a program's temporary memory anew at every execution. In pages of 4 KiB,
Linux stops the program at the first touch of each, to clear it: 13% of the CPU time of a step of
GPT-2, 23% of that of the demo. In pages of 2 MiB there is hardly anything to stop for. glibc's
malloc asks for them if it is told to (GNU C Library manual, "Memory Allocation Tunables"), but it
listens only when a process starts.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
MARKER = "BERTGPT_RESTARTED"
SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
  """Starts this program anew with huge pages, once; returns where it has them or cannot.

  To be called before anything that is slow or would be done twice. Whoever has set
  GLIBC_TUNABLES knows better. Processes that this one starts decide for themselves.
  """
  if os.environ.pop(MARKER, None):
    os.environ.pop(VARIABLE, None)
  elif VARIABLE not in os.environ and is_on_request():
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # Then it goes on without.
      os.execve(sys.executable, sys.orig_argv, os.environ | {VARIABLE: TUNABLE, MARKER: "1"})


@contextlib.contextmanager
def for_children() -> Iterator[None]:
  """Processes that are started meanwhile have huge pages."""
  if VARIABLE in os.environ or not is_on_request():
    yield
    return
  os.environ[VARIABLE] = TUNABLE
  try:
    yield
  finally:
    del os.environ[VARIABLE]


def is_on_request() -> bool:
  """Whether Linux gives huge pages to those who ask; else to all or to none, or it is no Linux."""
  try:
    return "[madvise]" in SETTING.read_text()
  except OSError:
    return False
