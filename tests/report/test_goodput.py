"""bertgpt.report.goodput: the events of a run, added up over its attempts."""

import json

import pytest

from bertgpt import cli
from bertgpt.devices import timeline
from bertgpt.report import goodput

# Two attempts: the first was killed after 40 s; the second began 100 s later and ended the run.
EVENTS = [
    {"event": "start", "time": 1010.0, "step": 0, "seconds": {"start": 8.0, "restore": 2.0}},
    {"event": "work", "time": 1040.0, "step": 20, "seconds": {"compile": 10.0, "steps": 20.0}},
    {"event": "start", "time": 1150.0, "step": 10, "seconds": {"start": 10.0}},
    {"event": "work", "time": 1180.0, "step": 30, "seconds": {"repeated": 10.0, "steps": 20.0}},
    {"event": "end", "time": 1200.0, "step": 60, "code": 75, "message": "stopped by SIGTERM",
     "seconds": {"steps": 10.0, "saving": 6.0, "input": 4.0}}]


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / timeline.FILE).write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
  return tmp_path


def test_the_kinds_add_up_to_the_time_from_the_first_start_to_the_last_event(workdir):
  summary = goodput.summarize(workdir)
  assert summary.total == 1200 - 1000
  assert summary.seconds == {"start": 18, "restore": 2, "compile": 10, "steps": 50, "repeated": 10,
                             "saving": 6, "input": 4, "between": 100}
  assert summary.goodput == 50 / 200
  first, second = summary.attempts
  assert (first.first_step, first.last_step, first.code) == (0, 20, None)
  assert (second.first_step, second.last_step, second.code) == (10, 60, 75)


def test_an_attempt_takes_as_long_as_its_parts_if_the_clock_was_set(workdir):
  path = workdir / timeline.FILE
  early = [EVENTS[0] | {"time": 4610.0}, *EVENTS[1:]]
  path.write_text("".join(json.dumps(event) + "\n" for event in early))
  assert "  attempt 1: 0:00:40, steps 0 to 20" in "\n".join(goodput.report(workdir))


def test_the_time_after_a_finished_run_does_not_count(workdir):
  """A day later, somebody adds steps to the run."""
  later = [{"event": "end", "time": 1201.0, "step": 60, "code": 0, "seconds": {"start": 1.0}},
           {"event": "start", "time": 90_000.0, "step": 60, "seconds": {"start": 5.0}}]
  with (workdir / timeline.FILE).open("a") as file:
    file.write("".join(json.dumps(event) + "\n" for event in later))
  assert goodput.summarize(workdir).total == 200 + 1 + 5


def test_the_command_prints_the_same(workdir, capsys):
  assert cli.main(["goodput", "--workdir", str(workdir)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].endswith("0:03:20 in 2 attempts, 25% of it in training steps that count")
  rows = {line.split()[0]: line.split()[1:3] for line in lines[2:12]}
  assert rows["steps"] == ["0:00:50", "25.0%"] and rows["between"] == ["0:01:40", "50.0%"]
  assert rows.keys() == {*timeline.KINDS, "between"}
  assert lines[-2:] == [
      "  attempt 1: 0:00:40, steps 0 to 20; no last event: it was killed, or its host was lost",
      "  attempt 2: 0:01:00, steps 10 to 60; exit code 75: stopped by SIGTERM"]
  assert cli.main(["goodput", "--workdir", str(workdir), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["total"], found["goodput"], found["seconds"]["between"]) == (200, 0.25, 100)
  assert found["attempts"][1]["code"] == 75


def test_a_run_without_events_is_one_line(tmp_path, capsys):
  for path, message in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no run"),
                        (tmp_path / "run", "there are no events in events.jsonl")):
    if path.name == "run":
      path.mkdir()
      (path / "config.json").write_text("{}")
    assert cli.main(["goodput", "--workdir", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert goodput.line(path) == ""


def test_the_newest_attempt_may_still_run(workdir):
  path = workdir / timeline.FILE
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
  first, last = goodput.report(workdir)[-2:]
  assert "no last event: it was killed" in first and "no last event yet: it is running" in last
