"""The processes in which a sweep trains its runs: their start, their signals and their ends."""

import contextlib
import io
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from bertgpt import console, files
from bertgpt.devices import children
from bertgpt.errors import INTERRUPTED, DivergedError, Preempted, UserError


def train_run(arguments: Sequence[str], number: int) -> None:
  """Runs `bertgpt train` in a process of its own, which releases its devices at the end.

  Args:
    arguments: arguments of the command.
    number: index of the run, for messages.
  Raises:
    UserError: the run failed; has the exit code of the run.
    Preempted: a signal stopped the run or the sweep, even if the run had just finished.
  """
  started: list[subprocess.Popen] = []
  with passed_on(started) as was_stopped:
    start(["train", *arguments], started, was_stopped)
    code, interrupted = wait(started[0])
  check_end(f"run {number} of the sweep", code, was_stopped() or interrupted)


def train_parts(parts: Sequence[Sequence[str]], path: pathlib.Path) -> None:
  """Trains parts of a sweep at the same time, with `bertgpt sweep --run`, and waits for them.

  What part k prints goes to part-<k>.log; if that is in a bucket, to a local copy that is uploaded
  at the end. Each part has its share of the GPUs, if there are enough.

  Args:
    parts: arguments of the commands.
    path: folder of the runs.
  Raises:
    UserError: a part failed; has its exit code.
    Preempted: a signal stopped the parts or the sweep.
  """
  path.mkdir(parents=True, exist_ok=True)
  started: list[subprocess.Popen] = []
  with passed_on(started) as was_stopped, contextlib.ExitStack() as stack:
    for k, part in enumerate(parts):
      log = stack.enter_context(open_log(path / f"part-{k}.log"))
      console.print_stdout(f"part {k}: see {log.name}")
      start(["sweep", *part], started, was_stopped, share_of_gpus(k, len(parts)), log)
    ends = [wait(child) for child in started]
  # A part that has diverged comes last: its error does not end the sweep.
  for k, (code, interrupted) in sorted(
      enumerate(ends), key=lambda end: end[1][0] == DivergedError.exit_code):
    check_end(f"part {k} of the sweep", code, was_stopped() or interrupted)


def start(arguments: Sequence[str], started: list[subprocess.Popen],
          was_stopped: Callable[[], bool], environment: Mapping[str, str] | None = None,
          output: io.FileIO | None = None) -> None:
  """Starts the program inside `passed_on`.

  Args:
    arguments: the command and its flags.
    started: list that the process is added to.
    was_stopped: answer of `passed_on`.
    environment, output: see `children.start`.
  """
  started.append(children.start([sys.executable, "-m", "bertgpt", *arguments], environment, output))
  if was_stopped():  # The signal arrived before there was a child to pass it to.
    started[-1].terminate()


@contextlib.contextmanager
def open_log(path: pathlib.Path) -> Iterator[io.FileIO]:
  """Yields a file that processes write to. If it cannot be uploaded at the end, a line says so.

  Args:
    path: path of the file, on a disk or in a bucket.
  """
  log = files.open_growing(path)
  try:
    yield log
  finally:
    try:
      log.close()
    except OSError as e:
      console.say(f"WARNING: {path}: cannot be written ({e.strerror or e}). The copy there is "
                  "missing or incomplete")


def share_of_gpus(k: int, number: int) -> dict[str, str]:
  """Returns the variables that give part k its share of the GPUs; {} if there are not enough.

  Args:
    k: index of the part.
    number: number of parts.
  """
  if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
    # CUDA numbers the GPUs of a container from 0, whatever their numbers in /dev.
    gpus = [str(i) for i, _ in enumerate(pathlib.Path("/dev").glob("nvidia[0-9]*"))]
  else:
    gpus = visible.split(",") if visible else []
  return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[k::number])} if len(gpus) >= number else {}


@contextlib.contextmanager
def passed_on(started: Sequence[subprocess.Popen]) -> Iterator[Callable[[], bool]]:
  """Passes SIGTERM and SIGHUP on to processes inside the context.

  Args:
    started: the processes; more may be added.
  Yields:
    A function that returns whether one of them has arrived.
  """
  is_stopped = False

  def stop(number: int, _) -> None:
    nonlocal is_stopped
    is_stopped = True
    for child in started:
      child.send_signal(number)  # A process that gets it twice, as one of a group, ignores one.

  # A program that was started with `nohup` ignores SIGHUP.
  numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
  handlers = {number: signal.signal(number, stop) for number in numbers}
  try:
    yield lambda: is_stopped
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def wait(child: subprocess.Popen) -> tuple[int, bool]:
  """Waits for a process, even after Ctrl-C, which the process also gets and needs time to handle.

  Returns:
    The exit code of the process, and whether Ctrl-C was pressed.
  """
  interrupted = False
  while True:
    try:
      return child.wait(), interrupted
    except KeyboardInterrupt:
      interrupted = True


def check_end(name: str, code: int, is_stopped: bool) -> None:
  """Raises an error if a process failed or was stopped.

  Args:
    name: what it trained.
    code: its exit code; below 0: the signal that killed it.
    is_stopped: whether the sweep was stopped.
  Raises:
    UserError: it failed; has its exit code. A run that diverged raises DivergedError.
    Preempted: a signal stopped it or the sweep, even if it had just finished.
  """
  # A run that diverges at that moment is stopped, too: the same command tries it again.
  ended_by_signal = code in (0, INTERRUPTED, -signal.SIGINT, DivergedError.exit_code)
  if code == Preempted.exit_code or (is_stopped and ended_by_signal):
    raise Preempted(f"stopped in {name}. The same command resumes it")
  if is_stopped and -code in (signal.SIGTERM, signal.SIGHUP):  # It had no handlers yet, perhaps.
    raise Preempted(f"stopped in {name}, which the signal ended before it saved its work. The same "
                    "command resumes it from its last checkpoint")
  if code:
    kind = DivergedError if code == DivergedError.exit_code else UserError
    error = kind(f"{name} ended with exit code {code}. Fix its problem and start the same sweep "
                 "again: finished runs are kept")
    error.exit_code = code if code > 0 else 128 - code  # Below 0: killed by a signal.
    raise error
