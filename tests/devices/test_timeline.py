"""bertgpt.devices.timeline: every moment of training counts once, and a kill loses nothing."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from bertgpt.devices import signals, timeline
from bertgpt.errors import DivergedError


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test moves."""
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(time, "time", lambda: 5000.0 + now[0])
  return lambda seconds: now.__setitem__(0, now[0] + seconds)


def seconds_of(path):
  return [(event["event"], event["step"], event["seconds"]) for event in timeline.read(path)]


def test_every_moment_counts_once_as_its_innermost_kind(tmp_path, clock):
  with timeline.recording():
    clock(2)
    with timeline.during("restore"):
      clock(3)
    timeline.open_in(0, tmp_path)
    items = timeline.timed("input", iter([1, 2, 3]))
    for step in items:
      timeline.begin_step(step, compiles=step == 1)
      clock(10 if step == 1 else 1)
      with timeline.during("evaluation"):
        clock(0.5)
        with timeline.during("saving"):
          clock(0.25)
    with timeline.during("report"):
      clock(4)
  assert seconds_of(tmp_path) == [
      ("start", 0, {"start": 2, "restore": 3}),
      ("end", 3, {"compile": 10, "steps": 2, "evaluation": 1.5, "saving": 0.75, "report": 4})]
  assert timeline.read(tmp_path)[-1]["code"] == 0
  assert timeline.read(tmp_path)[-1]["time"] - timeline.read(tmp_path)[0]["time"] == 18.25


def test_the_wait_for_a_batch_is_input(tmp_path, clock):
  def batches():
    clock(7)
    yield 1
    clock(1)

  with timeline.recording():
    timeline.open_in(0, tmp_path)
    for step in timeline.timed("input", batches()):
      timeline.begin_step(step, compiles=False)
      clock(2)
  assert seconds_of(tmp_path)[-1] == ("end", 1, {"input": 8, "steps": 2})


def test_steps_of_an_earlier_attempt_are_repeated(tmp_path, clock):
  for first, last in ((0, 5), (3, 8)):
    with timeline.recording():
      timeline.open_in(first, tmp_path)
      for step in range(first + 1, last + 1):
        timeline.begin_step(step, compiles=False)
        clock(1)
  assert seconds_of(tmp_path)[1::2] == [("end", 5, {"steps": 5}),
                                        ("end", 8, {"repeated": 2, "steps": 3})]


def test_a_refused_start_writes_nothing(tmp_path):
  with pytest.raises(DivergedError), timeline.recording():
    raise DivergedError("step 3: not finite")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error, code, message", [
    (DivergedError("step 3:\nnot finite"), 70, "step 3: not finite"),
    (signals.Terminated(15), 75, "Terminated: stopped by SIGTERM"),
    (OSError(28, "No space left on device", "a"), 74, "No space left on device: a"),
    (KeyError("x"), 1, "KeyError: 'x'")])
def test_the_last_event_has_the_exit_code(tmp_path, error, code, message):
  with pytest.raises(type(error)), timeline.recording():
    timeline.open_in(0, tmp_path)
    with timeline.recording():  # Nested, like that of the loop inside that of `bertgpt train`.
      raise error
  last = timeline.read(tmp_path)[-1]
  assert (last["event"], last["code"], last["message"]) == ("end", code, message)


def test_runs_that_are_done_do_not_get_the_exit_code_of_the_others(tmp_path, clock):
  for name in "ab":
    (tmp_path / name).mkdir()
  with pytest.raises(DivergedError), timeline.recording():
    timeline.open_in(0, tmp_path / "a", tmp_path / "b")
    timeline.begin_step(1, compiles=False)
    clock(3)
    timeline.end_runs([tmp_path / "b"])
    raise DivergedError("step 1")
  done, diverged = (timeline.read(tmp_path / name) for name in "ba")
  assert (done[-1]["event"], done[-1]["code"]) == ("end", 0) and "message" not in done[-1]
  assert (diverged[-1]["event"], diverged[-1]["code"]) == ("end", 70)
  assert done[1]["seconds"] == diverged[1]["seconds"] == {"steps": 3}


def test_a_run_that_has_failed_gets_its_error_and_no_work_of_the_others(tmp_path, clock):
  for name in "ab":
    (tmp_path / name).mkdir()
  with timeline.recording():
    timeline.open_in(0, tmp_path / "a", tmp_path / "b")
    timeline.begin_step(1, compiles=False)
    clock(3)
    timeline.end_runs([tmp_path / "b"], DivergedError("step 1: not finite"))
    timeline.begin_step(2, compiles=False)
    clock(5)
  done, failed = (timeline.read(tmp_path / name) for name in "ab")
  assert (failed[-1]["code"], failed[-1]["message"]) == (70, "step 1: not finite")
  assert (failed[-1]["step"], done[-1]["step"], done[-1]["code"]) == (1, 2, 0)
  times = [sum(event["seconds"].get("steps", 0) for event in events) for events in (done, failed)]
  assert times == [8, 3]


def test_the_end_of_a_process_is_written_while_a_run_of_it_ends(tmp_path, monkeypatch):
  """The thread that watches the other processes writes it, and then ends this one."""
  for name in "ab":
    (tmp_path / name).mkdir()
  dumps, threads = json.dumps, []

  def dumps_and_lose_a_process(record):
    if record["event"] == "end" and not threads:
      threads.append(threading.Thread(target=timeline.end, args=(69, "process 1 ended")))
      threads[0].start()
      time.sleep(0.1)
    return dumps(record)

  with timeline.recording():
    timeline.open_in(0, tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(json, "dumps", dumps_and_lose_a_process)
    timeline.end_runs([tmp_path / "b"])
    threads[0].join()
  ends = [[e["code"] for e in timeline.read(tmp_path / name) if "code" in e] for name in "ab"]
  assert ends == [[69], [0]]


def test_a_file_that_cannot_be_written_costs_one_line(tmp_path, capsys):
  (tmp_path / timeline.FILE).mkdir()
  with timeline.recording():
    timeline.open_in(0, tmp_path)
    timeline.begin_step(1, compiles=False)
  assert capsys.readouterr().err.count("WARNING") == 1


def test_damaged_lines_are_left_out(tmp_path):
  line = json.dumps({"event": "start", "time": 1, "step": 0, "seconds": {}})
  (tmp_path / timeline.FILE).write_text(f'{line}\n{{"event": "wo\n[1]\n{line}\n')
  assert len(timeline.read(tmp_path)) == 2
  assert timeline.read(tmp_path / "nowhere") == []


@pytest.mark.parametrize("change", [
    {"event": None}, {"event": 1}, {"time": "1"}, {"time": float("nan")}, {"step": "3"},
    {"step": 1e300}, {"seconds": {"steps": "1"}}, {"seconds": {"steps": float("inf")}},
    {"seconds": {"steps": 10**400}}, {"code": None}, {"message": 7}])
def test_lines_with_other_types_are_left_out_and_stop_no_training(tmp_path, change):
  good = {"event": "end", "time": 1, "step": 3, "seconds": {"steps": 1.5}, "code": 0}
  lines = [good, good | change, {key: value for key, value in good.items() if key not in change}]
  (tmp_path / timeline.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert timeline.read(tmp_path) == [good] * (2 if "message" in change else 1)
  with timeline.recording():
    timeline.open_in(0, tmp_path)
  assert len(timeline.read(tmp_path)) >= 3


def test_a_line_that_a_crash_has_cut_off_costs_no_other_line(tmp_path):
  (tmp_path / timeline.FILE).write_text('{"event": "work", "ti')
  with timeline.recording():
    timeline.open_in(0, tmp_path)
  assert [event["event"] for event in timeline.read(tmp_path)] == ["start", "end"]


def test_without_a_recording_nothing_happens():
  timeline.begin_step(1, compiles=False)
  with timeline.during("saving"):
    assert list(timeline.timed("input", [1, 2])) == [1, 2]


def test_a_killed_process_leaves_what_it_did(tmp_path):
  """The imports of the program count too: recording begins with the process."""
  script = ("import os, sys, time, pathlib\n"
            "time.sleep(0.3)\n"
            "from bertgpt.devices import timeline\n"
            "timeline.note_program_start()\n"
            "timeline.FLUSH_S = 0\n"
            "with timeline.recording():\n"
            "  timeline.open_in(0, pathlib.Path(sys.argv[1]))\n"
            "  for step in (1, 2, 3):\n"
            "    timeline.begin_step(step, compiles=False)\n"
            "    time.sleep(0.05)\n"
            "  os.kill(os.getpid(), 9)\n")
  result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False,
                          cwd=pathlib.Path(__file__).parents[2], env=dict(os.environ))
  assert result.returncode == -9
  start, *work = seconds_of(tmp_path)
  assert start[2]["start"] >= 0.3
  assert [step for _, step, _ in work] == [1, 2, 3] and work[-1][2]["steps"] >= 0.05


def test_a_step_is_repeated_only_in_the_runs_that_had_done_it(tmp_path, clock):
  """A run that was added to a sweep is trained together with one that is resumed."""
  old, new = tmp_path / "old", tmp_path / "new"
  for folder in (old, new):
    folder.mkdir()
  for folders in ((old,), (old, new)):
    with timeline.recording():
      timeline.open_in(0, *folders)
      for step in range(1, 4):
        timeline.begin_step(step, compiles=False)
        clock(1)
  assert seconds_of(old)[-1] == ("end", 3, {"repeated": 3})
  assert seconds_of(new) == [("start", 0, {}), ("end", 3, {"steps": 3})]
