"""Why another process was lost, read from the messages of JAX and Gloo. Does not import JAX."""

import re
from collections.abc import Mapping, Sequence

from bertgpt.errors import shorten

# Beginnings of JAX's messages about a lost process, or words in them. Messages about memory and
# compilation quote names of operations, such as optimization_barrier and opt-barrier, so 'barrier'
# counts only in the phrases of the coordination service (strings in jaxlib 0.10).
MESSAGE = re.compile(
    r"Gloo|^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b|coordination service|"
    r"^(?!RESOURCE_EXHAUSTED)[\s\S]*(\bBarrier (timed out|failed|Id:)|"
    r"[Ss]hutdown barrier|the barrier was called|called the barrier)")

# Pattern -> what has happened to {who}; the first one that is found counts.
_CAUSES = (
    (r"Gloo context initialization failed[\s\S]*(timed out|DEADLINE|[Tt]imeout)",
     "{who} of the run did not join a collective within 30 s: it is slower than the others, or its "
     "host cannot be reached"),
    (r"stopped sending heartbeats|heartbeat timeout",
     "{who} of the run {be} gone: no heartbeats"),
    (r"Timed out waiting|Barrier timed out|^DEADLINE_EXCEEDED",
     "{who} of the run did not answer"),
    (r"", "{who} of the run {be} gone"))
_REMEDY = "Start all of them again to resume from the last checkpoint"
# What JAX writes before it aborts a process (xla/pjrt/distributed/client.h).
_ABORT = re.compile(r"JAX distributed service detected fatal errors.*?absl::Status: (.*?)"
                    r"(?:\n\n|\Z)", re.DOTALL)


def explain(message: str, process_of: Mapping[int, int] | None = None) -> str:
  """Returns what a message says about another process, and what to do.

  Args:
    message: message of JAX that `MESSAGE` matches.
    process_of: ID of a device -> index of its process; None: not known.
  Returns:
    Two sentences on one line, which quote the message.
  """
  template = next(text for pattern, text in _CAUSES if re.search(pattern, message))
  found = find_processes(message, process_of or {})
  what = template.format(who=name_processes(found) or "another process",
                         be="are" if len(found) > 1 else "is")
  quoted = shorten(re.sub(r"\[type\.googleapis\.com[^\]]*\]", "", message))
  return f"{what} ({quoted}). {_REMEDY}"


def explain_abort(output: str) -> str | None:
  """Returns what the output of a process that JAX has aborted says about another process.

  Args:
    output: end of what the process wrote to stderr.
  Returns:
    The answer of `explain`; None if the output has no such message.
  """
  if found := _ABORT.search(output):
    return explain(found[1].strip())
  line = next(filter(MESSAGE.search, reversed(output.splitlines())), None)
  return explain(line) if line is not None else None


def find_processes(message: str, process_of: Mapping[int, int]) -> list[int]:
  """Returns the indices of the processes that a message blames, ascending; [] if it names none.

  Args:
    message: message of JAX.
    process_of: ID of a device -> index of its process.
  """
  # A process of a collective has not written its address: .../gloo/DEVICE,DEVICE,.../RANK.
  if key := re.search(r"key: \S*gloo/([\d,]+)/(\d+)", message):
    devices, rank = [int(device) for device in key[1].split(",")], int(key[2])
    late = process_of.get(devices[rank]) if rank < len(devices) else None
    return [] if late is None else [late]
  blamed = re.search(r"(?:timed out task names:|heartbeats\):)((?:\s+(?:\S*/task:)?\d+\b)+)",
                     message)
  return sorted({int(name.rpartition(":")[2]) for name in blamed[1].split()}) if blamed else []


def name_processes(indices: Sequence[int]) -> str:
  """Returns 'process 3' or 'processes 3, 5'; '' for none.

  Args:
    indices: indices of processes.
  """
  if not indices:
    return ""
  return f"process{'es' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
