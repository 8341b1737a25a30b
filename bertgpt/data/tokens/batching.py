"""Batches of texts for calls of a bounded size, and the number of threads of a process."""

import multiprocessing
from collections.abc import Iterator, Sequence


def is_worker() -> bool:
  """Returns whether this is a worker process, which uses one thread."""
  return multiprocessing.parent_process() is not None


def batches(texts: Sequence[str], max_chars: int) -> Iterator[list[str]]:
  """Yields the texts in their order, in batches of at most `max_chars` characters or of one text.

  Args:
    texts: the texts.
    max_chars: characters per batch.
  """
  batch, chars = [], 0
  for text in texts:
    if batch and chars + len(text) > max_chars:
      yield batch
      batch, chars = [], 0
    batch.append(text)
    chars += len(text)
  if batch:
    yield batch
