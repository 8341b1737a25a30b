"""A lock in a bucket: an object that its holder renews; when it expires, others may take it over.

The object is created on the condition that it does not exist, and renewed on the condition that
nobody has changed it (generation match). So of any number of processes, one succeeds. A holder that
was killed cannot delete it. Others take it over

  - at once, if the holder was a process of this machine that is gone;
  - otherwise when it was not renewed for EXPIRY_SECONDS by the clock of the process that waits, so
    the clocks of machines need not agree.

A holder that could not renew the lock in time learns at the next `check` that it was taken over.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bertgpt import console
from bertgpt.errors import StorageError
from bertgpt.files import parsing
from bertgpt.files.bucket import BucketPath

RENEW_SECONDS = 15.0
EXPIRY_SECONDS = 60.0
POLL_SECONDS = 2.0
_held: dict[BucketPath, "_Lease"] = {}


class Holder(NamedTuple):
  """The process that has a lock.

  Attributes:
    name: what messages call it, such as 'process 12 on host'.
    is_here: whether it is, as far as known, a process of this machine.
  """

  name: str
  is_here: bool

  def __str__(self) -> str:
    return self.name


@contextlib.contextmanager
def hold(path: BucketPath, on_held: Callable[[Holder], None]) -> Iterator[None]:
  """Holds the lock inside the context; see `locking.lock`.

  Args:
    path: object of the lock, which is deleted at the end.
    on_held: called with the holder if it is alive; may raise an error, otherwise it waits.
  """
  lease = _Lease(path)
  lease.take(on_held)
  _held[path] = lease
  try:
    yield
  finally:
    del _held[path]
    lease.release()


def check(path: BucketPath) -> None:
  """Checks that this process still holds a lock, and renews it.

  Args:
    path: object of the lock; nothing is checked if this process never took it.
  Raises:
    StorageError: another process has taken it over.
    OSError: the storage does not answer.
  """
  if lease := _held.get(path):
    lease.renew()


class _Lease:
  """A lock that this process takes, renews and releases."""

  def __init__(self, path: BucketPath):
    self._path, self._generation, self._awaited = path, "", ""
    self._key = secrets.token_hex(8)
    self._ends, self._mutex = threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._renew_until_released, daemon=True)

  def _content(self) -> bytes:
    return json.dumps({"holder": f"process {os.getpid()} on {socket.gethostname()}",
                       "machine": _describe_machine(), "pid": os.getpid(),
                       "started": _start_of(os.getpid()), "key": self._key,
                       "renewed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode()

  def take(self, on_held: Callable[[Holder], None]) -> None:
    """Takes the lock, and starts to renew it."""
    while not self._generation:
      try:
        self._generation = self._path.write_bytes(self._content(), generation="0")
      except FileExistsError:
        self._take_over(on_held)
    self._thread.start()

  def _take_over(self, on_held: Callable[[Holder], None]) -> None:
    """Takes the lock of a dead process, or waits until a living one has released it."""
    found = self._read()
    if found is None:
      return
    content, generation = found
    if content.get("key") == self._key:  # The answer to the first request was lost.
      self._generation = generation
      return
    holder = str(content.get("holder", "another process"))
    is_here = content.get("machine") == _describe_machine()
    is_dead = is_here and _start_of(content.get("pid")) != content.get("started")
    if not is_dead and not is_here:
      is_dead = self._is_silent(generation, holder)
      if not is_dead and self._read() is None:
        return  # It was released meanwhile.
    if is_dead:
      with contextlib.suppress(FileExistsError):  # Another process was faster.
        self._generation = self._path.write_bytes(self._content(), generation=generation)
      return
    on_held(Holder(holder, is_here))
    time.sleep(POLL_SECONDS)

  def _is_silent(self, generation: str, holder: str) -> bool:
    """Returns whether the lock is not renewed for EXPIRY_SECONDS in which the storage answered.

    While it does not, the holder cannot renew the lock either.
    """
    if holder != self._awaited:  # The same holder is asked for again after every renewal.
      console.say(f"note: {self._path} is held by {holder}. Waiting {EXPIRY_SECONDS:.0f} s to see "
                  "whether it is alive")
    self._awaited = holder
    end = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < end:
      time.sleep(POLL_SECONDS)
      asked = time.monotonic()
      found = self._read()
      if found is None or found[1] != generation:
        return False
      if time.monotonic() - asked > RENEW_SECONDS:
        end = time.monotonic() + EXPIRY_SECONDS
    return True

  def _read(self) -> tuple[dict[str, Any], str] | None:
    """Returns content and generation of the object; None if there is none."""
    try:
      generation = self._path.stat().generation
      content = parsing.parse_json(self._path.read_bytes())
      return (content if isinstance(content, dict) else {}), generation
    except FileNotFoundError:
      return None
    except ValueError:
      return {}, generation

  def renew(self) -> None:
    """Writes the object again; see `check`."""
    with self._mutex:
      try:
        self._generation = self._path.write_bytes(self._content(), generation=self._generation)
      except FileExistsError:
        content, generation = self._read() or ({}, "")
        if content.get("key") != self._key:
          raise StorageError(
              f"{self._path}: {content.get('holder', 'another process')} has taken the lock over, "
              "because this process could not renew it. Stop one of the two") from None
        self._generation = generation  # The answer to the last renewal was lost.

  def _renew_until_released(self) -> None:
    while not self._ends.wait(RENEW_SECONDS):
      with contextlib.suppress(OSError, StorageError):  # `check` raises it in the other thread.
        self.renew()

  def release(self) -> None:
    """Deletes the object, unless it was taken over."""
    self._ends.set()
    with self._mutex, contextlib.suppress(OSError):
      found = self._read()
      if found and found[0].get("key") == self._key:
        self._path.unlink(missing_ok=True, generation=found[1])


def read_boot_id() -> str:
  """Returns the id of this boot of the machine.

  Raises:
    OSError: the system has none.
  """
  return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _describe_machine() -> str:
  """Returns a text that is the same only for processes that see the same process ids."""
  try:
    return f"{socket.gethostname()} {read_boot_id()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return f"{socket.gethostname()} {secrets.token_hex(8)}"  # Unique.


def _start_of(pid: Any) -> str:
  """Returns when a process of this machine started, in ticks since the boot; '' if it is gone."""
  try:
    return pathlib.Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
  except (OSError, ValueError, TypeError, IndexError):
    return ""
