"""The progress line of a run, and durations as text."""

import math
import os
import sys
from collections.abc import Mapping, Sequence

from bertgpt import console

NOTED_WAIT = 0.2  # The progress line omits waits that are a smaller share of the step's time.


def make_parts(step: int, last_step: int, scalars: Mapping[str, float],
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
  return parts if eta_s is None else [*parts, f"ETA {console.format_duration(eta_s)}"]


def waits(scalars: Mapping[str, float]) -> list[str]:
  """Returns the parts of the progress line about long waits, as in ['input 12 ms'].

  These are waits for a batch, or for the slowest process, of at least NOTED_WAIT of the step.

  Args:
    scalars: tag -> value; see `make_parts`.
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


def fit(parts: Sequence[str], width: int) -> str:
  """Returns the parts as one line, without the least important parts if they do not fit.

  Args:
    parts: result of `make_parts`.
    width: largest number of characters.
  """
  for name in ("|g| ", "lr ", " ms", "k tok/s", "MFU "):
    if len("  ".join(parts)) <= width:
      break
    parts = [part for part in parts if not (part.startswith(name) or part.endswith(name))]
  return "  ".join(parts)[:max(width, 0)]
