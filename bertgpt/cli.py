"""`bertgpt <command>`: parses the flags, dispatches, and turns errors into lines and exit codes."""

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from bertgpt.commands import COMMANDS, flags
from bertgpt.commands.parser import Parser
from bertgpt.devices import guard, huge_pages
from bertgpt.errors import INTERRUPTED, ConfigError, PeerError, StorageError, UserError

# OSErrors that come from the storage or the user, not from a bug.
STORAGE_ERRORS = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE})


def run_program() -> int:
  """Runs `main` in a process of its own, which may be restarted or forked first."""
  code = main(set_up=set_up_process)
  if code == PeerError.exit_code:
    sys.stdout.flush()
    os._exit(code)  # JAX would wait for the lost processes before it lets this one end.
  return code


def set_up_process(arguments: argparse.Namespace) -> None:
  """Prepares a process for a heavy command, before JAX is imported."""
  if arguments.is_heavy:
    huge_pages.restart()
  if arguments.distributed:
    guard.fork_worker("bertgpt")


def main(argv: Sequence[str] | None = None,
         set_up: Callable[[argparse.Namespace], None] = lambda arguments: None) -> int:
  """Runs one command and returns the exit code; see `errors` for the codes.

  Args:
    argv: arguments of the program; None: those of this process.
    set_up: called with the flags before the command runs.
  """
  name = "bertgpt"
  try:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    name = f"bertgpt {arguments.command}"
    set_up(arguments)
    code = dispatch(arguments)
    sys.stdout.flush()  # A closed pipe is still an exception here, which can be caught.
    return code
  except UserError as e:
    print(f"{name}: {e}", file=sys.stderr)
    return e.exit_code
  except KeyboardInterrupt:
    print(f"{name}: interrupted; the same command continues where it stopped", file=sys.stderr)
    return INTERRUPTED
  except BrokenPipeError:  # As in `bertgpt data | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return StorageError.exit_code
  except OSError as e:
    if e.errno not in STORAGE_ERRORS:
      raise
    print(f"{name}: {e.filename or 'a file'}: {e.strerror}; free or change the storage, then give "
          "the same command again", file=sys.stderr)
    return StorageError.exit_code


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  With `module`, the command's module, and `overrides`, the --config.FIELD=VALUE arguments.

  Raises:
    ConfigError: unknown, missing or malformed flags.
  """
  arguments, arguments.overrides = make_parser().parse_known_args(argv)
  if arguments.overrides and not arguments.takes_fields:
    raise ConfigError(f"{arguments.overrides[0]}: {arguments.command} takes no config fields")
  return arguments


def make_parser() -> Parser:
  parser = Parser("bertgpt", description="Pretrain BERT and GPT: text in, a trained model out.",
                  epilog=flags.FIELDS_NOTE)
  parser.set_defaults(takes_fields=False, is_heavy=False, distributed="")
  commands = parser.add_subparsers(dest="command", required=True)
  for name, path in COMMANDS.items():
    module = importlib.import_module(path)
    command = commands.add_parser(name, help=module.HELP, description=module.HELP,
                                  allow_abbrev=False)
    command.set_defaults(module=module)
    module.add_flags(command)
  return parser


def dispatch(arguments: argparse.Namespace) -> int:
  """Runs a command, together with the other processes of the run if there are any.

  Returns:
    The exit code.
  Raises:
    PeerError: another process is missing, or was lost.
  """
  command = arguments.module
  with hold_interrupt() as release_interrupt:
    if hasattr(command, "check"):
      command.check(arguments)
    for module in command.USES:
      importlib.import_module(module)
    release_interrupt()
    if not arguments.distributed:
      return command.run(arguments) or 0
    from bertgpt.devices import process
    process.start_distributed(arguments.distributed, arguments.distributed_timeout)
    with process.name_lost_peer():
      return command.run(arguments) or 0


@contextlib.contextmanager
def hold_interrupt() -> Iterator[Callable[[], None]]:
  """Delays Ctrl-C: it raises KeyboardInterrupt when, or after, the yielded function is called.

  C++ libraries that are being imported crash at an exception, or swallow it.
  """
  is_held, was_pressed = True, False

  def interrupt(signum, frame):
    nonlocal was_pressed
    was_pressed = True
    if not is_held:
      raise KeyboardInterrupt

  def release() -> None:
    nonlocal is_held
    is_held = False
    if was_pressed:
      raise KeyboardInterrupt

  previous = signal.signal(signal.SIGINT, interrupt)
  try:
    yield release
  finally:
    signal.signal(signal.SIGINT, previous)


if __name__ == "__main__":
  sys.exit(run_program())
