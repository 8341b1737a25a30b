"""A guard against loss spikes: a step that is far above the running median is not applied.

The guard is a part of the train step. It looks at the loss and at the norm of the gradient, and
compares each with the median of its most recent values. Values of steps that were not applied, and
values that are not finite, never enter the window: they would raise the median or make it
meaningless. Neither do those of steps without a gradient: the streams of an ELMo may end with
batches without text, and with a median of 0, every later step would be a spike.

The data of a skipped step is recorded in skipped.jsonl in the workdir, so that you can look at it:

    {"step": 812, "loss": 9.1, "grad_norm": 31.0, "phase": 0, "rows": [207616, 207872],
     "documents": [12, 90], "sha256": ...}

Steps whose loss or gradient is not finite are recorded too, even without a guard; such a value is
null.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt import config as config_lib
from bertgpt import console, files
from bertgpt.config import ConfigDict
from bertgpt.data.batches import loader
from bertgpt.data.batches.rows import TrainRows
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.errors import UserError, one_line

WATCHED = ("loss", "grad_norm")
WARM_SHARE = 4  # The guard becomes active when 1 / 4 of its window is filled.
FILE = "skipped.jsonl"


def _step_of(line: str) -> float:
  """Returns the step of a line of skipped.jsonl; infinity if a crash cut the line off."""
  with contextlib.suppress(ValueError, KeyError, TypeError):
    return int(files.parse_json(line)["step"])
  return math.inf


def init_guard(config: ConfigDict) -> Any:
  """Returns the state of the guard at step 0; () without a guard.

  Args:
    config: a whole config.
  Returns:
    "values": float32 [2, W], the most recent values of loss and gradient norm in any order;
    "count": int32 scalar, the number of values so far.
  """
  if config.train.spike_guard == "off":
    return ()
  return {"values": jnp.zeros((len(WATCHED), config.train.spike_window), jnp.float32),
          "count": jnp.zeros((), jnp.int32)}


def find_starts(config: ConfigDict) -> list[int]:
  """Returns for every phase but the first the steps done when its first step begins.

  Args:
    config: a whole config. Steps that `train.skip_steps` leaves out begin no phase.
  """
  starts, first = [], 0
  for p in config.phases[:-1]:
    first += p.steps
    start = first
    for low, high in sorted(config.train.skip_steps):
      if low <= start + 1 <= high:
        start = high
    starts.append(start)
  return starts


def at_step(config: ConfigDict, guard: Any, step: jax.Array) -> Any:
  """Returns the state of the guard for a step: empty if a phase begins.

  The gradients of a phase with other batches or rows may be larger by more than a spike, and
  skipped steps would never change the median.

  Args:
    config: a whole config.
    guard: state of the guard after the previous step; () without one.
    step: int32 scalar, steps done.
  """
  starts = find_starts(config)
  if not guard or not starts:
    return guard
  return guard | {"count": jnp.where(jnp.isin(step, jnp.array(starts)), 0, guard["count"])}


def is_spike(config: ConfigDict, guard: Any, values: jax.Array) -> jax.Array:
  """Returns whether a step is a spike: a bool scalar.

  Args:
    config: a whole config.
    guard: state of the guard.
    values: float32 [2], loss and gradient norm of the step.
  """
  size = config.train.spike_window
  filled = jnp.minimum(guard["count"], size)
  # Empty places sort last. The lower median is used, because it is one of the values.
  ordered = jnp.sort(jnp.where(jnp.arange(size) < filled, guard["values"], jnp.inf), axis=-1)
  median = jnp.take(ordered, jnp.maximum(filled - 1, 0) // 2, axis=-1)
  is_warm = filled >= max(1, size // WARM_SHARE)
  return is_warm & (values > config.train.spike_factor * median).any()


def add_values(guard: Any, values: jax.Array, is_applied: jax.Array) -> Any:
  """Returns the state of the guard after a step.

  Args:
    guard: state of the guard; () without one.
    values: float32 [2], loss and gradient norm of the step.
    is_applied: whether the step was applied; otherwise, or without a gradient, nothing changes.
  """
  if not guard:
    return guard
  is_added = is_applied & (values[WATCHED.index("grad_norm")] > 0)
  place = guard["count"] % guard["values"].shape[1]
  added = guard["values"].at[:, place].set(values)
  return {"values": jnp.where(is_added, added, guard["values"]),
          "count": guard["count"] + is_added}


class SkippedSteps:
  """Writer of skipped.jsonl, in process 0. Its errors do not end the training."""

  def __init__(self, path: pathlib.Path, first_step: int, corpus: Corpus, config: ConfigDict):
    """Prepares the writer. The lines of steps that will be repeated are removed.

    Args:
      path: workdir of the run.
      first_step: steps done before.
      corpus: documents that are trained on.
      config: a whole config.
    """
    self._path, self._corpus, self._config = path / FILE, corpus, config
    self._rows: dict[int, TrainRows] = {}
    if not jax.process_index():
      with self._tolerated("cannot be shortened"):
        self._drop_after(first_step)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes a line about the data of a step.

    Args:
      step: the step, counted from 1.
      scalars: metric -> value of the step.
    """
    if jax.process_index():
      return
    with self._tolerated(f"step {step} cannot be described"):
      finite = {name: x if math.isfinite(x) else None for name, x in scalars.items()}
      line = json.dumps({"step": step, **finite, **self._describe(step)}, allow_nan=False)
      files.append(self._path, line)

  @contextlib.contextmanager
  def _tolerated(self, what: str) -> Iterator[None]:
    try:
      yield
    except (OSError, UserError) as e:
      console.say(f"WARNING: {self._path}: {what} ({one_line(e)}). The training continues")

  def _drop_after(self, step: int) -> None:
    if not self._path.is_file():
      return
    lines = self._path.read_text("utf-8", "replace").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
      files.write_atomically(self._path, "".join(f"{line}\n" for line in kept).encode())

  def _describe(self, step: int) -> dict[str, Any]:
    """Returns phase, indices of the rows [first, end), documents, and hash of the batch."""
    index, first = config_lib.phase_at(self._config, step - 1)
    if index not in self._rows:
      self._rows[index] = TrainRows(self._corpus, self._config, index, self._config.seed)
    rows, size = self._rows[index], self._config.phases[index].batch_size
    start = (step - 1 - first) * size
    numbers = np.arange(start, start + size)
    parts, _ = rows.plan(numbers)
    return {"phase": index, "rows": [start, start + size],
            "documents": np.unique(parts["document"]).tolist(),
            "sha256": loader.batch_sha256(rows.read(numbers))}
