"""The program `bertgpt COMMAND`: flags, dispatch, and errors as lines and exit codes."""

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

# OSErrors that are caused by the storage or the user, not by a bug.
STORAGE_ERRORS = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE})


def run_program() -> int:
  """Runs `main`, restarting or forking the process first where needed; returns the exit code."""
  is_distributed = False

  def set_up(arguments: argparse.Namespace) -> None:
    nonlocal is_distributed
    is_distributed = bool(arguments.distributed)
    set_up_process(arguments)

  code = main(set_up=set_up)
  if is_distributed and code == PeerError.exit_code:
    sys.stdout.flush()
    os._exit(code)  # At a normal exit, JAX would wait for the lost processes.
  return code


def set_up_process(arguments: argparse.Namespace) -> None:
  """Prepares the process for a heavy command, before JAX is imported.

  Args:
    arguments: values of the flags.
  """
  if arguments.is_heavy:
    huge_pages.restart()
  if arguments.distributed:
    guard.fork_worker("bertgpt")


def main(argv: Sequence[str] | None = None,
         set_up: Callable[[argparse.Namespace], None] = lambda arguments: None) -> int:
  """Runs a command.

  Args:
    argv: arguments of the program; None: those of this process.
    set_up: called with the values of the flags before the command runs.
  Returns:
    The exit code, see `errors`.
  """
  name, arguments = "bertgpt", None
  try:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    name = f"bertgpt {arguments.command}"
    set_up(arguments)
    code = dispatch(arguments)
    sys.stdout.flush()  # Here, a closed pipe still raises an exception that can be caught.
    return code
  except UserError as e:
    print(f"{name}: {e}", file=sys.stderr)
    return e.exit_code
  except KeyboardInterrupt:
    print(f"{name}: interrupted. The same command "
          f"{'continues where it stopped' if resumes(arguments) else 'begins again'}",
          file=sys.stderr)
    return INTERRUPTED
  except BrokenPipeError:  # As in `bertgpt data | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return StorageError.exit_code
  except OSError as e:
    if e.errno not in STORAGE_ERRORS:
      raise
    print(f"{name}: {e.filename or 'a file'}: {e.strerror}. Free or change the storage, then give "
          "the same command again", file=sys.stderr)
    return StorageError.exit_code


def resumes(arguments: argparse.Namespace | None) -> bool:
  """Returns whether an interrupted command continues when it is given again.

  Args:
    arguments: values of the flags; None: they have not been read.
  """
  return hasattr(arguments, "module") and getattr(
      arguments.module, "resumes", lambda arguments: False)(arguments)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the values of the flags.

  They include `module`, the module of the command, and `overrides`, the --config.FIELD=VALUE
  arguments.

  Args:
    argv: arguments of the program.
  Raises:
    ConfigError: a flag is unknown, missing or malformed.
  """
  arguments, overrides = make_parser().parse_known_args(argv)
  arguments.overrides = overrides
  if arguments.overrides and not arguments.takes_fields:
    raise ConfigError(f"{arguments.overrides[0]}: {arguments.command} takes no config fields. "
                      "Leave it out")
  return arguments


def make_parser() -> Parser:
  """Returns the parser of all commands."""
  parser = Parser("bertgpt", description="Pretrain BERT and GPT, from text to a trained model.",
                  epilog=flags.FIELDS_NOTE.format(
                      f"train --config demo --workdir runs/demo --config.{flags.FIELD_EXAMPLE}"))
  parser.set_defaults(takes_fields="", is_heavy=False, distributed="")
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

  Args:
    arguments: values of the flags.
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
  """Delays Ctrl-C until the yielded function is called; from then on it raises KeyboardInterrupt.

  An exception during the import of C++ libraries can crash or be ignored.
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
