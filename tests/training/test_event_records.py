"""bertgpt.training.event_records: TensorBoard's records, by another implementation."""

import time

from event_files import event_pb2, read

from bertgpt.training import event_records


def test_a_file_begins_with_its_version_and_the_step_from_which_points_are_dropped():
  first, second = read(event_records.make_start(7))
  assert (first.file_version, first.step) == ("brain.Event:2", 0)
  assert second.session_log.status == event_pb2.SessionLog.START and second.step == 7
  assert abs(first.wall_time - time.time()) < 600


def test_points_are_read_as_they_were_written():
  scalars = {f"eval/größe-{i}/loss": value for i, value in
             enumerate((2.5, -0.0, 1e-40, 1e300, float("inf"), float("-inf"), 3))}
  (event,) = read(event_records.make_point(10**12, scalars))
  assert event.step == 10**12
  assert [value.tag for value in event.summary.value] == list(scalars)
  expected = event_pb2.Event().summary
  for value in scalars.values():
    expected.value.add(simple_value=value)
  assert [v.simple_value for v in event.summary.value] == [v.simple_value for v in expected.value]
  (event,) = read(event_records.make_point(1, {"a": float("nan")}))
  assert event.summary.value[0].simple_value != event.summary.value[0].simple_value
