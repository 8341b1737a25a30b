"""How the time of a run was spent: a summary of its events."""

import dataclasses
import pathlib
from collections import Counter
from typing import Any

from bertgpt import console
from bertgpt.devices import timeline
from bertgpt.errors import ConfigError
from bertgpt.runs import folder_kinds

# From the last event of an attempt to the start of the next one, unless the run was finished.
BETWEEN = "between"
UNKNOWN = "no last event: it was killed, or its host was lost"
NEWEST = "no last event yet: it is running, was killed, or its host was lost"


@dataclasses.dataclass
class Attempt:
  """One start of a run.

  Attributes:
    start: time of the start of the program, in seconds since 1970.
    end: time of the last event.
    first_step: steps done before.
    last_step: last step that was begun.
    seconds: kind of `timeline.KINDS` -> seconds.
    code: exit code; None if there is no last event.
    message: reason of the end; '': the run is done.
  """

  start: float
  end: float
  first_step: int
  last_step: int
  seconds: Counter[str]
  code: int | None = None
  message: str = UNKNOWN


@dataclasses.dataclass
class Summary:
  """The attempts of a run, in order, and the sums over them.

  Attributes:
    attempts: at least one.
    seconds: kind of `timeline.KINDS`, or BETWEEN -> seconds.
  """

  attempts: list[Attempt]
  seconds: Counter[str]

  @property
  def total(self) -> float:
    """Returns the seconds from the first start to the last event, without pauses after the end."""
    return sum(self.seconds.values())

  @property
  def goodput(self) -> float:
    """Returns the share of the time that was spent on training steps, each counted once."""
    return self.seconds["steps"] / self.total if self.total else 0.0


def summarize(workdir: pathlib.Path) -> Summary | None:
  """Returns a summary of the events of a run; None if it has none.

  Args:
    workdir: folder of the run.
  """
  attempts: list[Attempt] = []
  for event in timeline.read(workdir):
    seconds = Counter({kind: float(s) for kind, s in event["seconds"].items()})
    if event["event"] == "start":
      attempts.append(Attempt(event["time"] - sum(seconds.values()), event["time"], event["step"],
                              event["step"], seconds))
    elif attempts:
      attempt = attempts[-1]
      attempt.end, attempt.last_step = event["time"], event["step"]
      attempt.seconds += seconds
      if event["event"] == "end":
        attempt.code, attempt.message = event["code"], event.get("message", "")
  if not attempts:
    return None
  sums: Any = Counter()  # The stubs allow whole numbers only.
  for attempt in attempts:
    sums.update(attempt.seconds)
  sums[BETWEEN] = sum(max(later.start - earlier.end, 0.0)
                      for earlier, later in zip(attempts, attempts[1:], strict=False)
                      if earlier.code != 0)
  return Summary(attempts, +sums)


def line(workdir: pathlib.Path) -> str:
  """Returns one line for the report of a run; '' if it has no events.

  Args:
    workdir: folder of the run.
  """
  summary = summarize(workdir)
  if summary is None:
    return ""
  number = len(summary.attempts)
  return (f"Time: {console.format_duration(summary.total)} in {number} "
          f"{'attempt' if number == 1 else 'attempts'}, {summary.goodput:.0%} of it in training "
          "steps that count")


def report(workdir: pathlib.Path) -> list[str]:
  """Returns the output of `bertgpt goodput`.

  Args:
    workdir: folder of the run.
  Raises:
    ConfigError: the run has no events.
  """
  summary = _require(workdir)
  lines = [f"{workdir}: {line(workdir).removeprefix('Time: ')}", ""]
  meanings = {**timeline.KINDS, BETWEEN: "between two attempts: waiting for a scheduler or for you"}
  for kind, meaning in meanings.items():
    seconds = summary.seconds[kind]
    lines.append(f"  {kind:<11}{console.format_duration(seconds):>10}"
                 f"{seconds / summary.total if summary.total else 0:>8.1%}   {meaning}")
  lines.append("")
  for i, attempt in enumerate(summary.attempts, 1):
    end = "" if attempt.code is None else f"exit code {attempt.code}"
    is_open = attempt.message == UNKNOWN and i == len(summary.attempts)
    why = ": ".join(part for part in (end, NEWEST if is_open else attempt.message) if part)
    lines.append(f"  attempt {i}: {console.format_duration(sum(attempt.seconds.values()))}, steps "
                 f"{attempt.first_step} to {attempt.last_step}; {why}")
  return lines


def as_json(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the summary of a run as JSON values, with the keys of `Summary` and `Attempt`.

  Args:
    workdir: folder of the run.
  Raises:
    ConfigError: the run has no events.
  """
  summary = _require(workdir)
  return {"attempts": [vars(attempt) for attempt in summary.attempts], "seconds": summary.seconds,
          "total": summary.total, "goodput": summary.goodput}


def _require(workdir: pathlib.Path) -> Summary:
  summary = summarize(workdir)
  if summary is None:
    remedy = "Give the --workdir of a `bertgpt train` of this version"
    folder_kinds.require_run(workdir, remedy)
    raise ConfigError(f"--workdir {workdir}: there are no events in {timeline.FILE}. {remedy}")
  return summary
