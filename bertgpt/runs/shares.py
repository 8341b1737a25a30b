"""Hashes of the files of a checkpoint, of which every process of a run computes a share."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from bertgpt.devices import gather
from bertgpt.runs import manifest

# Orbax keeps what a process has written in a folder of this name, and merges only the indexes.
_WRITER = re.compile(r"/ocdbt\.process_(\d+)/")


def owner(name: str, count: int) -> int:
  """Returns the process that hashes a file: the one with the number of the process that wrote it.

  Args:
    name: path of the file relative to its step.
    count: number of processes, perhaps not that of the processes that wrote the step.
  """
  writer = _WRITER.search(name)
  return int(writer[1]) % count if writer else 0


def hash_together(path: pathlib.Path, room: str) -> dict[str, str]:
  """Returns in process 0 the SHA-256 (hex) of a step's files, by name. All processes call it.

  A process that cannot read a file leaves the rest of its share out: on NFS, it may see the new
  name of a folder late.

  Args:
    path: folder of the step, which nobody changes meanwhile.
    room: name of this exchange, the same in all processes and used once.
  Returns:
    The hashes; {} in the other processes.
  Raises:
    jax.errors.JaxRuntimeError: the coordinator is gone.
  """
  return gather.to_first(_hash_share(path), room)


def _hash_share(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields (name, SHA-256) of the files that this process owns."""
  index, count = jax.process_index(), jax.process_count()
  with contextlib.suppress(OSError):
    names = [name for name in manifest.list_files(path) if owner(name, count) == index]
    yield from manifest.hash_files(path, names)
