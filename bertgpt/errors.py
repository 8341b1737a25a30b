"""Errors that end a command with one line and an exit code instead of a traceback.

| exit code | class             | meaning                                             |
|-----------|-------------------|-----------------------------------------------------|
| 0         |                   | done                                                |
| 2         | `ConfigError`     | bad flags or config                                 |
| 65        | `DataError`       | bad data, tokenizer or checkpoint                   |
| 69        | `PeerError`       | another process of the run is missing, or was lost  |
| 70        | `DivergedError`   | too many steps were not finite, or were spikes      |
| 71        | `DeviceError`     | JAX cannot open the devices that were asked for     |
| 74        | `StorageError`    | a file could not be written or read                 |
| 75        | `Preempted`       | stopped by a signal; the same command resumes       |
| 130       |                   | Ctrl-C outside the training loop                    |
| 137       | `WorkerError`     | a reader or a worker process of its own was killed  |
| 129, 143  |                   | SIGHUP, SIGTERM to a command that starts over       |

The codes from 65 to 75 are those of sysexits.h in BSD. Code 1 with the stacks of all threads and
the word "Timeout" comes from the watchdog: a step did not end, because a peer or a device hung.
Any other code, with a traceback, indicates a bug, or a device that ran out of memory.
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence

MAX_LINE_CHARS = 300  # The messages of some libraries fill pages.
INTERRUPTED = 130  # Ctrl-C outside the training loop: 128 + SIGINT, following shell convention.


class UserError(Exception):
  """An error whose message is written for the person who typed the command.

  The message names the file, field or flag and says what to do.

  Attributes:
    exit_code: exit code of the program.
  """

  exit_code = 2


class ConfigError(UserError):
  """Wrong flags or a wrong config."""

  exit_code = 2


class DataError(UserError):
  """Unusable data, tokenizer or checkpoint."""

  exit_code = 65


class PeerError(UserError):
  """Another process of the run that is missing or was lost."""

  exit_code = 69


class DivergedError(UserError):
  """Too many consecutive steps whose loss or gradient was not finite, or a spike."""

  exit_code = 70


class DeviceError(UserError):
  """Devices that JAX cannot open: they are missing, broken, or used by another process."""

  exit_code = 71


class StorageError(UserError):
  """A file that could not be written or read."""

  exit_code = 74


class Preempted(UserError):
  """A stop by a signal, after which the same command resumes."""

  exit_code = 75


class WorkerError(UserError):
  """A process of this program's own that has died, such as a reader of batches.

  The usual reason is memory, so the exit code is that of a process killed for it: launchers count
  such ends, unlike those of a PeerError.
  """

  exit_code = 137


# OSErrors that are caused by the storage or the user, not by a bug. The last four are those of
# mounts whose server is gone. The connections of processes handle their errors themselves.
STORAGE_ERRORS = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
    errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
    getattr(errno, "EREMOTEIO", errno.EIO)})  # Only Linux has it.


def exit_code(e: BaseException) -> int:
  """Returns the exit code of the program after an exception; 1 for one that indicates a bug."""
  if isinstance(e, UserError):
    return e.exit_code
  if isinstance(e, KeyboardInterrupt):
    return getattr(e, "exit_code", INTERRUPTED)  # `signals.Terminated` has its own.
  is_storage = isinstance(e, OSError) and (
      e.errno in STORAGE_ERRORS or isinstance(e, BrokenPipeError))
  return StorageError.exit_code if is_storage else 1


def one_line(e: BaseException) -> str:
  """Returns the message of an exception, as one line that another message can quote.

  Errors of the operating system are quoted with reason and file, for example "No such file or
  directory: a.txt". Libraries raise RuntimeError, ValueError and Exception with whole sentences,
  which are quoted unchanged. Other messages mean little without their type, so it is added:
  "KeyError: 'name'". An empty message is replaced by the type.

  Args:
    e: any exception.
  Returns:
    At most MAX_LINE_CHARS characters; white space is collapsed.
  """
  if isinstance(e, OSError) and e.strerror:
    line = f"{e.strerror}: {e.filename}" if e.filename else e.strerror
  elif type(e) is Exception or isinstance(e, (UserError, OSError, RuntimeError, ValueError)):
    line = str(e)
  else:
    line = f"{type(e).__name__}: {e}"
  return shorten(line) or type(e).__name__


def shorten(text: str) -> str:
  """Returns a text with white space collapsed, without a final colon, cut to MAX_LINE_CHARS."""
  line = " ".join(text.split()).removesuffix(":")
  return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS - 3] + "..."


def refuse(problems: Sequence[str]) -> None:
  """Raises ConfigError if there are problems; the message has one line per problem."""
  if problems:
    raise ConfigError("\n".join(problems))


@contextlib.contextmanager
def without_panics() -> Iterator[None]:
  """Turns a panic of a library in Rust, which is not an Exception, into a RuntimeError."""
  try:
    yield
  except BaseException as e:
    if type(e).__name__ != "PanicException":  # The class cannot be imported.
      raise
    raise RuntimeError(one_line(e)) from e
