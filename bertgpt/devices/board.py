"""Measurements that the processes of a run exchange while they train, without waiting."""

import contextlib
import json
import threading

import jax

from bertgpt import files
from bertgpt.devices import coordinator


class Board:
  """Measurements that every process posts now and then, and that process 0 reads.

  A thread exchanges them, so that `post` and `read` never wait, and a lost store ends nothing.

  Attributes:
    index: index of this process.
    count: processes of the run.
  """

  def __init__(self, name: str, every_s: float):
    """Begins to exchange.

    Args:
      name: name of the board, the same in all processes and used once at a time.
      every_s: seconds between two exchanges.
    """
    store = coordinator.open_store()
    self.index, self.count = jax.process_index(), jax.process_count()
    self._room, self._every_s = f"bertgpt/board/{name}/", every_s
    self._mine: dict[str, float] | None = None
    self._found: dict[int, dict[str, float]] = {}
    self._is_closed = threading.Event()
    if store:
      threading.Thread(target=self._exchange, args=(store,), daemon=True).start()

  @property
  def is_taken(self) -> bool:
    """Whether what was posted last is on its way."""
    return self._mine is None

  def post(self, numbers: dict[str, float]) -> None:
    """Replaces what this process has posted."""
    self._mine = numbers

  def read(self) -> dict[int, dict[str, float]]:
    """Returns process -> what it has posted, as last seen; {} if this is not process 0."""
    return dict(self._found)

  def close(self) -> None:
    """Ends the exchange."""
    self._is_closed.set()

  def _exchange(self, store: coordinator.Store) -> None:
    """Runs in a thread."""
    with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):
      while not self._is_closed.wait(self._every_s):
        mine, self._mine = self._mine, None
        if mine is not None:
          store.client.key_value_set(f"{self._room}{self.index}", json.dumps(mine),
                                     allow_overwrite=True)
        if self.index == 0:
          self._found = {int(key.rpartition("/")[2]): files.parse_json(value)
                         for key, value in store.client.key_value_dir_get(self._room)}
