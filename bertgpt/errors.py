"""Errors that end a command with one line and an exit code instead of a traceback.

| exit code | class             | meaning                                             |
|-----------|-------------------|-----------------------------------------------------|
| 0         |                   | done                                                |
| 2         | `ConfigError`     | bad flags or config                                 |
| 65        | `DataError`       | bad data, tokenizer or checkpoint                   |
| 69        | `PeerError`       | another process of the run is missing, or was lost  |
| 70        | `DivergedError`   | the loss or the gradients are no longer finite      |
| 74        | `StorageError`    | a file could not be written or read                 |
| 75        | `Preempted`       | stopped by a signal; a checkpoint is saved, but of  |
|           |                   | fine-tuning only the runs that are done             |
| 130       |                   | Ctrl-C outside the training loop                    |

The numbers from 65 to 75 are those of BSD's sysexits.h. Code 1 with the stacks of all threads
and the word "Timeout" comes from the watchdog: a step did not come, for a peer or a device hangs.
Any other number, with a traceback, is a bug.
"""

MAX_LINE_CHARS = 300  # Some libraries write pages.
INTERRUPTED = 130  # Ctrl-C outside the training loop: 128 + SIGINT, as shells have it.


class UserError(Exception):
  """An error whose message is written for the person who typed the command.

  The message names the file, field or flag and says what to do about it.
  """

  exit_code = 2


class ConfigError(UserError):
  exit_code = 2


class DataError(UserError):
  exit_code = 65


class PeerError(UserError):
  exit_code = 69


class DivergedError(UserError):
  exit_code = 70


class StorageError(UserError):
  exit_code = 74


class Preempted(UserError):
  exit_code = 75


def one_line(e: BaseException) -> str:
  """Returns what an exception says, as one line for a message that quotes it.

  The system's errors give the reason and the file, "No such file or directory: a.txt". Libraries
  raise RuntimeError, ValueError and Exception with whole sentences, which are quoted as they
  are. Other messages mean little without the type, "KeyError: 'name'"; an empty one is replaced
  by it.

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
  line = " ".join(line.split()).removesuffix(":") or type(e).__name__
  return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS - 3] + "..."
