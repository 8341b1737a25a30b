"""Metrics as (sum, weight) pairs, their files and progress line, and FLOPs for the MFU."""

import itertools
import math
import os
import pathlib
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.config import families
from bertgpt.devices import console, hardware
from bertgpt.training import sinks

NOTED_WAIT = 0.2  # The progress line omits waits that are a smaller share of the step's time.


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak FLOP/s of one device; None if it is unknown, as for a CPU.

  Args:
    device_kind: JAX's name of the device.
  """
  chip = hardware.find_chip(device_kind)
  return chip and chip.peak_flops


def flops_per_step(config: config_lib.ConfigDict, phase: config_lib.ConfigDict) -> float:
  """Returns the FLOPs of a training step: multiply-adds times 2, times 3 for the backward pass.

  Attention is counted in full even if it is causal, and recomputation is not counted, so that MFU
  measures useful work (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

  Args:
    config: a whole config.
    phase: one of its phases.
  """
  predicted = config_lib.predicted_share(config, phase)
  forward = families.find(config).flops_per_token(config.model, phase.seq_len, predicted)
  return 3 * phase.batch_size * phase.seq_len * forward


# ------------------------------------------------------------------- sums


class RunningSums:
  """Sums of the metrics of several steps or batches.

  Attributes:
    steps: number of steps that were added.
  """

  def __init__(self):
    self._sums: dict[str, tuple[float, float]] = {}
    self.steps = 0

  def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
    """Adds one step.

    Args:
      sums: metric -> (sum, weight).
    """
    for name, (total, weight) in sums.items():
      old_total, old_weight = self._sums.get(name, (0.0, 0.0))
      self._sums[name] = (old_total + float(total), old_weight + float(weight))
    self.steps += 1

  def total(self, name: str) -> float:
    """Returns the sum of a metric that was added."""
    return self._sums[name][0]

  def means(self) -> dict[str, float]:
    """Returns sum / weight of every metric; metrics of weight 0 are left out."""
    return {name: total / weight for name, (total, weight) in self._sums.items() if weight}


def with_perplexity(means: Mapping[str, float], loss: str) -> dict[str, float]:
  """Returns the means and the perplexity exp(loss), such as 'mlm_perplexity' for 'mlm_loss'.

  Args:
    means: metric -> value, losses in nats.
    loss: name of the metric; if it is not among the means, no perplexity is added.
  """
  if loss not in means:
    return dict(means)
  name = loss.removesuffix("_loss") + "_perplexity"
  return {**means, name: math.exp(min(means[loss], 700.0))}


# ---------------------------------------------------------------- writers


class Writer:
  """Writer of metrics.jsonl, TensorBoard events and the progress line of a run.

  Only process 0 writes. On resume, TensorBoard events beyond `first_step` are purged and lines of
  metrics.jsonl beyond it are dropped, so that a curve has each step once. The evaluation at
  `first_step` is dropped too, and repeated: the run may have ended before it. At step 0, the curves
  of an earlier start are set aside.

  No method raises errors of files or terminals: a failure to log must not end the training.
  """

  def __init__(self, workdir: pathlib.Path, *, first_step: int, last_step: int,
               tensorboard: bool, active: bool = True,
               trackers: Sequence[sinks.Sink] = (), name: str = ""):
    """Opens the files.

    Args:
      workdir: folder of the run.
      first_step: steps done before.
      last_step: steps of the whole run, for the progress line.
      tensorboard: whether to write TensorBoard events too.
      active: whether this is process 0; otherwise nothing is written or printed.
      trackers: other places that get every point.
      name: prefix of every line that is printed; '': none.
    """
    self._last_step = last_step
    self._since: tuple[int, float] | None = None  # Step and time of the first progress line.
    self._name = name
    self._is_tty = sys.stderr.isatty() and not name  # Lines of several runs replace none.
    self._open_line = False
    self._sinks: list[sinks.Sink] = [*trackers]
    self._active = active
    if not active:
      return
    path = workdir / "metrics.jsonl"
    try:
      if first_step:
        keep_lines(path, first_step)
      elif path.is_file() and path.stat().st_size:
        sinks.set_aside(path)
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
      scalars: tag -> value; see `progress_parts`.
    """
    if not self._active:
      return
    parts = progress_parts(step, self._last_step, scalars, self._eta(step))
    if self._is_tty:
      width = terminal_width()
      console.write("\r" + fit_line(parts, width).ljust(width))
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
      text = textwrap.fill(text, max(terminal_width(), 20), subsequent_indent="    ")
    console.say(f"{self._name}  {text}" if self._name else text)

  def close(self) -> None:
    """Ends the progress line and closes the files."""
    if self._open_line:
      console.write("\n")
    for sink in self._sinks:
      sink.close()

  def _eta(self, step: int) -> float | None:
    """Seconds to the end; None at first, while most of the time was spent on compilation."""
    first, start = self._since = self._since or (step, time.monotonic())
    if step == first:
      return None
    return (time.monotonic() - start) / (step - first) * (self._last_step - step)


def progress_parts(step: int, last_step: int, scalars: Mapping[str, float],
                   eta_s: float | None) -> list[str]:
  """Returns the parts of the progress line.

  Args:
    step, last_step: steps done, and steps of the run.
    scalars: tag -> value, with train/loss, train/grad_norm, train/learning_rate, perf/step_seconds,
      perf/tokens_per_second, and maybe perf/mfu, perf/input_seconds, perf/slowest_process,
      perf/slowest_seconds, train/skipped_steps and train/spikes.
    eta_s: seconds to the end; None: not known.
  Returns:
    For example ['step 120/4000', 'loss 6.31', 'lr 1.0e-04', '|g| 1.20', '52 ms', '78.1k tok/s',
    'MFU 41%', 'ETA 0:03:21'].
  """
  loss, grad_norm = (scalars.get(f"train/{name}", math.nan) for name in ("loss", "grad_norm"))
  parts = [f"step {step}/{last_step}", f"loss {loss:.3f}",
           f"lr {scalars['train/learning_rate']:.1e}", f"|g| {grad_norm:.2f}",
           f"{scalars['perf/step_seconds'] * 1e3:.0f} ms",
           f"{scalars['perf/tokens_per_second'] / 1e3:.1f}k tok/s"]
  if "perf/mfu" in scalars:
    parts.append(f"MFU {scalars['perf/mfu']:.0%}")
  parts += waits(scalars)
  spikes = scalars.get("train/spikes", 0)
  if not_finite := scalars.get("train/skipped_steps", 0) - spikes:
    parts.append(f"NOT FINITE, SKIPPED: {not_finite}")
  if spikes:
    parts.append(f"SPIKES, SKIPPED: {spikes}")
  return parts if eta_s is None else [*parts, f"ETA {format_duration(eta_s)}"]


def waits(scalars: Mapping[str, float]) -> list[str]:
  """Returns the parts of the progress line about long waits, as in ['input 12 ms'].

  These are waits for a batch, or for the slowest process, of at least NOTED_WAIT of the step.

  Args:
    scalars: tag -> value; see `progress_parts`.
  """
  parts, least = [], NOTED_WAIT * scalars["perf/step_seconds"]
  if (seconds := scalars.get("perf/input_seconds", 0)) >= least:
    parts.append(f"input {seconds * 1e3:.0f} ms")
  if (seconds := scalars.get("perf/slowest_seconds", 0)) >= least:
    parts.append(f"process {scalars['perf/slowest_process']:.0f} slowest, {seconds * 1e3:.0f} ms")
  return parts


def terminal_width() -> int:
  """Returns the number of columns that fit on one line of the terminal; 79 if it was closed."""
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns - 1
  except OSError:
    return 79


def fit_line(parts: Sequence[str], width: int) -> str:
  """Returns the parts as one line, without the least important parts if they do not fit.

  Args:
    parts: result of `progress_parts`.
    width: largest number of characters.
  """
  for name in ("|g| ", "lr ", " ms", "k tok/s", "MFU "):
    if len("  ".join(parts)) <= width:
      break
    parts = [part for part in parts if not (part.startswith(name) or part.endswith(name))]
  return "  ".join(parts)[:max(width, 0)]


def format_duration(seconds: float) -> str:
  """Returns a duration as hours:minutes:seconds, such as '0:03:21'.

  Args:
    seconds: at least 0.
  """
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"


def keep_lines(path: pathlib.Path, last_step: int) -> None:
  """Drops the lines beyond a step, the evaluation at the step, and lines damaged by a crash.

  Args:
    path: path of metrics.jsonl, which need not exist.
    last_step: last step that is kept.
  """
  if not path.exists():
    return
  kept = [line for line, point in _read_points(path) if point["step"] < last_step
          or point["step"] == last_step and '"eval/' not in line]
  files.write_atomically(path, "".join(line + "\n" for line in kept))


def cut(path: pathlib.Path, last_step: int) -> list[str]:
  """Drops lines as `keep_lines` does, and keeps a copy of the whole file.

  Args:
    path: path of metrics.jsonl, which need not exist.
    last_step: last step that is kept.
  Returns:
    The name of the copy, in a list; [] if no line was dropped.
  """
  if not path.is_file() or all(point["step"] <= last_step for _, point in _read_points(path)):
    return []
  names = (path.with_name(f"{path.stem}-before-rollback-{n}{path.suffix}")
           for n in itertools.count(1))
  target = next(name for name in names if not name.exists())
  files.write_atomically(target, path.read_bytes())
  keep_lines(path, last_step)
  return [target.name]


def last_step(workdir: pathlib.Path) -> int:
  """Returns the last step in metrics.jsonl; 0 if there is none.

  Args:
    workdir: folder of the run.
  """
  path = workdir / "metrics.jsonl"
  return max((point["step"] for _, point in _read_points(path)), default=0) if path.is_file() else 0


def read_curves(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
  """Returns the curves in metrics.jsonl: tag -> [(step, value), ...].

  Args:
    workdir: folder of the run.
  Returns:
    Empty if there is no such file.
  """
  curves: dict[str, list[tuple[int, float]]] = {}
  path = workdir / "metrics.jsonl"
  for _, point in _read_points(path) if path.is_file() else ():
    step = point.pop("step")
    for tag, value in point.items():
      curves.setdefault(tag, []).append((step, value))
  return curves


def _read_points(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (line, its content) for every line of metrics.jsonl that is not damaged."""
  for line in path.read_text("utf-8", "replace").split("\n"):
    try:
      point = files.parse_json(line)
    except ValueError:
      continue
    if isinstance(point, dict) and isinstance(point.get("step"), int):
      yield line, point
