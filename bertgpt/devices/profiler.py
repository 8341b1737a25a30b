"""Traces of training steps by JAX's profiler."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bertgpt import console, files
from bertgpt.errors import one_line


@contextlib.contextmanager
def trace_steps(steps: tuple[int, ...], path: pathlib.Path) -> Iterator[Callable]:
  """Traces some steps with JAX's profiler; xprof and TensorBoard open the trace.

  A trace that cannot be made costs a line, not the run.

  Args:
    steps: (first, last) step of the trace, counted from 1; (): no trace.
    path: folder that the trace is written to; with several processes, each has its own in it.
  Yields:
    visit(step, wait), to be called before every step. wait() must return only when the previous
    step is done.
  """
  if jax.process_count() > 1:  # JAX names the files by the host, which may have several processes.
    path /= f"process-{jax.process_index()}"
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
