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
