"""The key-value store of JAX's coordinator: messages between processes that need no device.

The store exists as soon as the processes of a run have connected.
"""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

ANSWER_S = 1200  # Time for the others to reach the same point, for example to finish imports.
LOST_S = 5       # Time for an answer of a store that may be gone, or from a process that is lost.
POLL_S = 0.1     # Time between two looks at the store, or at a thread that waits for it.
HOSTS = "bertgpt/host/"  # Key of the names of hosts, by index of the process.


@dataclasses.dataclass(frozen=True)
class Store:
  """The store of the coordinator, and the place of this process in its run."""

  client: Any
  index: int
  count: int


def open_store() -> Store | None:
  """Returns the store; None if this process is the only one of its run."""
  # Not jax.process_count(), which opens the devices. JAX has no public access to the client.
  from jax._src.distributed import global_state as state
  if state.client is None or state.num_processes == 1:
    return None
  return Store(state.client, state.process_id, state.num_processes)


def call_within(seconds: float, function: Callable[[], Any]) -> Any:
  """Returns the result of a function; None if it takes longer, as it does without a coordinator.

  Args:
    seconds: maximum time of the call.
    function: what is called, in a thread.
  """
  results = []
  thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
  thread.start()
  thread.join(seconds)
  return results[0] if results else None
