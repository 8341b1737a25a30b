"""bertgpt.runs.history: a run whose checkpoints are lost is not mistaken for a new one."""

import pytest

from bertgpt.errors import DataError
from bertgpt.runs import history


@pytest.fixture
def run(tmp_path):
  (tmp_path / "config.json").touch()
  return tmp_path


def test_events_are_read_in_order_and_a_cut_line_costs_no_other(tmp_path):
  assert history.read(tmp_path) == []
  history.add(tmp_path, "start")
  with (tmp_path / history.FILE).open("a") as file:
    file.write('{"event": "chec')
  history.add(tmp_path, "rollback", to=20)
  assert history.read(tmp_path) == [{"event": "start"}, {"event": "rollback", "to": 20}]


def test_a_run_that_has_saved_a_checkpoint_is_not_begun_again(run):
  history.add(run, "start")
  history.check_start(run, 1000, 10)
  history.note_checkpoint(run, 10)
  history.note_checkpoint(run, 20)
  assert [event["event"] for event in history.read(run)] == ["start", "checkpoint"]
  with pytest.raises(DataError, match="has saved checkpoints"):
    history.check_start(run, 0, 0)
  (run / "config.json").unlink()
  history.check_start(run, 0, 0)
  history.add(run, "start")  # The new run has no checkpoint yet.
  (run / "config.json").touch()
  history.check_start(run, 15, 10)


def test_a_run_of_an_earlier_version_has_one_line_for_all_its_checkpoints(run):
  """Its start is not recorded, but what this version saves is."""
  for step in (10, 20):
    history.note_checkpoint(run, step)
  assert [event["event"] for event in history.read(run)] == ["checkpoint"]
  with pytest.raises(DataError, match="has saved checkpoints"):
    history.check_start(run, 20, 10)


@pytest.mark.parametrize("last_logged, every_steps, has_report, refused", [
    (0, 10, False, False), (15, 10, False, False), (21, 10, False, True), (500, 0, False, False),
    (0, 0, True, True)])
def test_a_run_without_a_history_is_judged_by_its_curves_and_report(run, last_logged, every_steps,
                                                                    has_report, refused):
  if has_report:
    (run / "report.md").touch()
  if not refused:
    history.check_start(run, last_logged, every_steps)
    return
  with pytest.raises(DataError, match="has saved checkpoints"):
    history.check_start(run, last_logged, every_steps)
