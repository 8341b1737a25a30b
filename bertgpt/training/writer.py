"""Writer of everything that a run logs: metrics.jsonl, TensorBoard events, progress, trackers."""

import pathlib
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

from bertgpt import console
from bertgpt.runs import metrics_file
from bertgpt.training import progress_line, sinks


class Writer:
  """Writer of metrics.jsonl, TensorBoard events and the progress line of a run.

  Only process 0 writes. On resume, TensorBoard events beyond `first_step` are purged and lines of
  metrics.jsonl beyond it are dropped, so that a curve has each step once. An evaluation at
  `first_step` that will be repeated is dropped too. At step 0, the curves of an earlier start are
  set aside.

  No method raises errors of files or terminals: a failure to log must not end the training.
  """

  def __init__(self, workdir: pathlib.Path, *, first_step: int, last_step: int,
               tensorboard: bool, is_evaluated: bool = False, active: bool = True,
               trackers: Sequence[sinks.Sink] = (), name: str = "",
               work: Callable[[int], float] = float):
    """Opens the files.

    Args:
      workdir: folder of the run.
      first_step: steps done before.
      last_step: steps of the whole run, for the progress line.
      tensorboard: whether to write TensorBoard events too.
      is_evaluated: whether the model will be evaluated at `first_step`, even if it was before.
      active: whether this is process 0; otherwise nothing is written or printed.
      trackers: other places that get every point.
      name: prefix of every line that is printed; '': none.
      work: steps done -> work done, for the time that is left; default: all steps are alike.
    """
    self._last_step, self._work = last_step, work
    self._since: tuple[int, float] | None = None  # Step and time of the first progress line.
    self._name = name
    self._is_tty = sys.stderr.isatty() and not name  # Lines of several runs replace none.
    self._open_line = False
    self._sinks: list[sinks.Sink] = [*trackers]
    self._active = active
    if not active:
      return
    path = workdir / metrics_file.FILE
    try:
      metrics_file.prepare(workdir, first_step, is_evaluated)
      self._sinks.append(sinks.JsonLines(path))
    except OSError as e:
      console.say(f"WARNING: {path}: cannot be written ({e.strerror}). The training continues; "
                  "the curves of this start are missing there")
    if tensorboard:
      self._sinks.append(sinks.EventFile(workdir / "tensorboard", first_step + 1))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one line of metrics.jsonl and one point of every curve.

    Args:
      step: steps done.
      scalars: tag -> value.
    """
    for sink in self._sinks:
      sink.write(step, scalars)

  def progress(self, step: int, scalars: Mapping[str, float]) -> None:
    """Prints the progress line: rewritten in place on a terminal, otherwise one line per call.

    Args:
      step: steps done.
      scalars: tag -> value; see `progress_line.make_parts`.
    """
    if not self._active:
      return
    parts = progress_line.make_parts(step, self._last_step, scalars, self._eta(step))
    if self._is_tty:
      width = progress_line.terminal_width()
      console.write("\r" + progress_line.fit(parts, width).ljust(width))
      self._open_line = True
    else:
      console.say("  ".join([self._name, *parts] if self._name else parts))

  def message(self, text: str) -> None:
    """Prints a separate line, below the progress line."""
    if not self._active:
      return
    if self._open_line:
      console.write("\n")
      self._open_line = False
    if self._is_tty:
      text = textwrap.fill(text, max(progress_line.terminal_width(), 20), subsequent_indent="    ")
    console.say(f"{self._name}  {text}" if self._name else text)

  def end(self) -> None:
    """Tells all trackers that they end, so that `close` waits for them at the same time."""
    for sink in self._sinks:
      sink.end()

  def close(self) -> None:
    """Ends the progress line and closes the files."""
    self.end()
    if self._open_line:
      console.write("\n")
    for sink in self._sinks:
      sink.close()

  def _eta(self, step: int) -> float | None:
    """Seconds to the end; None at first, while most of the time was spent on compilation."""
    first, start = self._since = self._since or (step, time.monotonic())
    if step == first:
      return None
    before, done, whole = map(self._work, (first, step, self._last_step))
    return (time.monotonic() - start) / (done - before) * (whole - done)
