"""Says yes or no to a new pod or cluster, before a run spends money on it.

  python -m benchmarks.pod --distributed=auto --workdir /shared/pod     on all hosts
  python -m benchmarks.pod --rehearse --workdir /tmp/pod                small sizes, on the CPU

Five checks, a line each, by process 0: `devices` (every process sees all of them), `losses` (they
are the same on every mesh and in micro-batches), `checkpoint` (all processes read from the shared
workdir what they wrote), `all-reduce` (its speed, next to the planner's) and `step` (time and
memory of the recipe's step on random tokens, next to the planner's). Nothing is trained, no corpus
is needed, and what was written to the workdir is deleted. Config fields are overridden as in
`bertgpt`, for example --config.mesh.fsdp=4. The checks are in `pod_checks`.

Exit code 0: all checks are ok; 1: one failed, or hangs; others as those of `bertgpt`.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import device, side_by_side
from bertgpt import cli, console, errors
from bertgpt.commands import flags
from bertgpt.config import ConfigDict, recipes
from bertgpt.config.overrides import override
from bertgpt.devices import watchdog
from bertgpt.errors import PeerError, UserError

NAMES = ("devices", "losses", "checkpoint", "all-reduce", "step")
MINUTES = 30  # Limit of a check, for programs that take long to compile.
REHEARSED_DEVICES = 8  # Of all processes together.


class Verdict(NamedTuple):
  """Result of a check: whether it is good, and one line with its numbers."""

  ok: bool
  text: str


class CheckFailed(UserError):
  """A check that could not be completed, after which the processes cannot continue together."""

  exit_code = 1


# --------------------------------------------------------- flags, as of a command of `cli`

USES = ("benchmarks.pod_checks",)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  flags.add_workdir(parser, what="folder on storage that all hosts share")
  flags.add_distributed(parser)
  parser.add_argument("--config", default="bert_base", metavar="RECIPE",
                      help="recipe whose mesh, and whose step in its first phase, are checked; "
                           "default: bert_base")
  parser.add_argument("--devices", type=flags.number(int, 1), metavar="N",
                      help="number of devices that the pod should have; others fail the check")
  parser.add_argument("--rehearse", action="store_true",
                      help=f"a small model on {REHEARSED_DEVICES} simulated devices of the CPU; "
                           "predictions are those for an H100")
  parser.set_defaults(module=sys.modules[__name__], command="pod")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the checks; returns the exit code.

  Args:
    argv: arguments of the command; None: those of this process.
  """
  is_program, argv = argv is None, sys.argv[1:] if argv is None else list(argv)
  arguments = None
  try:
    _, arguments = side_by_side.parse_flags("benchmarks.pod", __doc__, [add_flags], argv)
    arguments.argv = argv
    if arguments.rehearse:
      _simulate_devices(arguments.distributed)
    if is_program:
      cli.set_up_process(arguments)
    return cli.dispatch(arguments)  # The exit then waits for the others, which have this code too.
  except UserError as e:
    console.say(f"benchmarks.pod: {e}")
    code = e.exit_code
  except KeyboardInterrupt as e:
    console.say("benchmarks.pod: interrupted")
    code = errors.exit_code(e)
  except Exception:
    if not (is_program and arguments and arguments.distributed):
      raise
    traceback.print_exc()
    code = 1
  if is_program and arguments and arguments.distributed:
    sys.stdout.flush()
    os._exit(code)  # A normal exit would wait for processes that may hang.
  return code


def _simulate_devices(distributed: str) -> None:
  """Sets the environment of JAX, which is not imported yet, unless the user has set it."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  number = 1
  with contextlib.suppress(ValueError, IndexError):  # `dispatch` refuses a malformed flag.
    number = int(distributed.split(",")[1])
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(max(1, REHEARSED_DEVICES // max(1, number))))


def check(arguments: argparse.Namespace) -> ConfigDict:
  """Returns the config; it is validated when the devices are known."""
  return override(recipes.load(arguments.config), arguments.overrides)


def run(arguments: argparse.Namespace, config: ConfigDict) -> int:
  """Runs all checks and prints their lines; returns the exit code."""
  pod = importlib.import_module("benchmarks.pod_checks")
  config = pod.start(config, arguments.rehearse, arguments.workdir)
  checks = (functools.partial(pod.check_devices, config, arguments.devices),
            functools.partial(pod.check_losses, config),
            functools.partial(pod.check_checkpoint, config, arguments.workdir / "pod-check"),
            functools.partial(pod.check_all_reduce, config, arguments.rehearse),
            functools.partial(pod.check_step, config, arguments.rehearse))
  verdicts = {}
  for name, function in zip(NAMES, checks, strict=True):
    watchdog.arm(MINUTES)
    verdicts[name] = pod.combine(name, run_check(name, function, pod.has_peers()))
    if pod.is_first():
      print(show(name, verdicts[name]), flush=True)
  failed = [name for name, verdict in verdicts.items() if not verdict.ok]
  if pod.is_first():
    print(f"NO: {', '.join(failed)} failed" if failed else "YES: all checks are ok", flush=True)
    if arguments.out:
      device.write(arguments.out, to_json(arguments, verdicts))
  return CheckFailed.exit_code if failed else 0


def run_check(name: str, function: Callable[[], Verdict], has_peers: bool) -> Verdict:
  """Runs a check; an error makes it fail.

  Args:
    name: name of the check.
    function: the check.
    has_peers: whether there are other processes. They may wait for this one inside the check, so
      an error ends all of them.
  Raises:
    CheckFailed: there was an error, and there are other processes.
    PeerError: another process was lost.
  """
  try:
    return function()
  except PeerError:
    raise
  except Exception as e:
    verdict = Verdict(False, errors.one_line(e))
    if has_peers:
      raise CheckFailed(f"{show(name, verdict)}\nThe checks after it were not run") from e
    return verdict


def show(name: str, verdict: Verdict) -> str:
  """Returns the line of a check."""
  return f"{'ok' if verdict.ok else 'FAILED':6}  {name:10}  {verdict.text}"


def to_json(arguments: argparse.Namespace, verdicts: dict[str, Verdict]) -> str:
  """Returns the verdicts as JSON, with the command, this machine and the versions of packages."""
  return json.dumps({
      "command": shlex.join(["python", "-m", "benchmarks.pod", *arguments.argv]),
      "rehearsal": arguments.rehearse, "machine": side_by_side.machine(),
      "versions": dict(side_by_side.versions()),
      "checks": {name: verdict._asdict() for name, verdict in verdicts.items()}}, indent=2)


if __name__ == "__main__":
  sys.exit(importlib.import_module("benchmarks.pod").main())
