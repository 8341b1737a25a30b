"""Writer of skipped.jsonl: the data of the steps that were not applied, so that you can look at it.

    {"step": 812, "loss": 9.1, "grad_norm": 31.0, "phase": 0, "rows": [207616, 207872],
     "documents": [12, 90], "sha256": ...}

In a phase with a mixture, "documents" is an object with a list per corpus. Steps whose loss or
gradient is not finite are recorded too, even without a guard against spikes; such a value is null.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bertgpt import config as config_lib
from bertgpt import console, files
from bertgpt.config import ConfigDict
from bertgpt.config.mixtures import MAIN
from bertgpt.data.batches import loader
from bertgpt.data.batches.mixture import NO_OTHERS, PhaseRows
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.errors import UserError, one_line

FILE = "skipped.jsonl"


class SkippedSteps:
  """Writer of skipped.jsonl, in process 0. Its errors do not end the training."""

  def __init__(self, path: pathlib.Path, first_step: int, corpus: Corpus, config: ConfigDict,
               others: Mapping[str, Corpus] = NO_OTHERS):
    """Prepares the writer. The lines of steps that will be repeated are removed.

    Args:
      path: workdir of the run.
      first_step: steps done before.
      corpus: documents that are trained on.
      config: a whole config.
      others: name -> documents of the other corpora of mixtures.
    """
    self._path, self._corpus, self._config = path / FILE, corpus, config
    self._others = others
    self._rows: dict[int, PhaseRows] = {}
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
    kept = "".join(f"{line}\n" for line, value in files.read_json_lines(self._path)
                   if _step_of(value) <= step)
    if kept != self._path.read_text("utf-8", "replace"):
      files.write_atomically(self._path, kept)

  def _describe(self, step: int) -> dict[str, Any]:
    """Returns phase, indices of the rows [first, end), documents, and hash of the batch."""
    index, first = config_lib.find_phase(self._config, step - 1)
    if index not in self._rows:
      self._rows[index] = PhaseRows(self._corpus, self._config, index, self._others)
    rows, size = self._rows[index], self._config.phases[index].batch_size
    start = (step - 1 - first) * size
    numbers = np.arange(start, start + size)
    documents = rows.find_documents(numbers)
    return {"phase": index, "rows": [start, start + size],
            "documents": documents if self._config.phases[index].mixture else documents[MAIN],
            "sha256": loader.batch_sha256(rows.read(numbers))}


def _step_of(value: Any) -> float:
  """Returns the step of a line of skipped.jsonl; infinity if the line is damaged."""
  with contextlib.suppress(ValueError, KeyError, TypeError):
    return int(value["step"])
  return math.inf
