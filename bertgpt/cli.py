"""The program `bertgpt COMMAND`: flags, dispatch, and errors as lines and exit codes."""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from bertgpt import console, files
from bertgpt.commands import COMMANDS, flags
from bertgpt.commands.parser import Parser
from bertgpt.devices import children, guard, huge_pages, signals, timeline, watchdog
from bertgpt.errors import ConfigError, Preempted, StorageError, UserError, exit_code


def run_program() -> int:
  """Runs `main`, restarting or forking the process first where needed; returns the exit code."""
  exits_at_once = False
  console.open_closed_streams()
  console.escape_on_stdout()
  timeline.note_program_start()

  def set_up(arguments: argparse.Namespace) -> None:
    nonlocal exits_at_once
    exits_at_once = bool(arguments.distributed) or arguments.exits_at_once
    set_up_process(arguments)

  try:
    code = main(set_up=set_up)
  except Exception:
    if not exits_at_once:
      raise
    traceback.print_exc()
    code = 1
  # A normal exit waits: JAX 300 s for the other processes, and Python for threads that compile.
  if code and exits_at_once:
    files.remove_copies()
    with contextlib.suppress(OSError):
      sys.stdout.flush()
    os._exit(code)
  return code


def set_up_process(arguments: argparse.Namespace) -> None:
  """Prepares the process for a heavy command, before JAX is imported.

  Args:
    arguments: values of the flags.
  """
  if arguments.is_heavy:
    huge_pages.restart()
  children.terminate_with_starter()
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
    console.say(f"{name}: {e}")
    return e.exit_code
  except KeyboardInterrupt as e:
    console.say(f"{name}: {e if isinstance(e, signals.Terminated) else 'interrupted'}. The same "
                f"command {'continues where it stopped' if resumes(arguments) else 'starts over'}")
    return code_of_interrupt(e, arguments)
  except BrokenPipeError:  # For example in `bertgpt data | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return StorageError.exit_code
  except OSError as e:
    if exit_code(e) == 1:
      raise
    console.say(f"{name}: {e.filename or 'a file'}: {e.strerror}. Free the disk or correct the "
                "path or its permissions, then run the same command again")
    return StorageError.exit_code


def code_of_interrupt(e: KeyboardInterrupt, arguments: argparse.Namespace | None) -> int:
  """Returns the exit code after a signal outside of a training loop.

  Args:
    e: exception that the signal raised.
    arguments: values of the flags; None: they have not been read.
  """
  # A scheduler starts a preempted run again. Other commands end as if the signal had killed them.
  is_preemption = isinstance(e, signals.Terminated) and resumes(arguments)
  return Preempted.exit_code if is_preemption else exit_code(e)


def resumes(arguments: argparse.Namespace | None) -> bool:
  """Returns whether an interrupted command continues when it is given again.

  Args:
    arguments: values of the flags; None: they have not been read.
  """
  return arguments is not None and arguments.resumes


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
  parser.set_defaults(takes_fields="", is_heavy=False, distributed="", resumes=False,
                      exits_at_once=False)
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
  with contextlib.ExitStack() as stack:
    stack.callback(watchdog.disarm)  # Also if `run` arms it and raises.
    if arguments.is_heavy:
      watchdog.arm(watchdog.START_MINUTES + arguments.distributed_timeout / 60)
    release = stack.enter_context(signals.hold())
    checked = command.check(arguments) if hasattr(command, "check") else None
    inputs = (arguments,) if checked is None else (arguments, checked)
    for module in command.USES:
      importlib.import_module(module)
    release()
    if not arguments.distributed:
      return command.run(*inputs) or 0
    from bertgpt.devices import cluster, shutdown
    cluster.start_distributed(arguments.distributed, arguments.distributed_timeout)
    with shutdown.end_together(), name_preemption(arguments), cluster.name_lost_peer():
      return command.run(*inputs) or 0


@contextlib.contextmanager
def name_preemption(arguments: argparse.Namespace) -> Iterator[None]:
  """Turns SIGTERM into an error with an exit code, which the other processes of a run get too."""
  try:
    yield
  except signals.Terminated as e:
    if not resumes(arguments):
      raise
    raise Preempted(f"{e}. The same command continues where it stopped") from e


if __name__ == "__main__":
  sys.exit(run_program())
