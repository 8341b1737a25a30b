"""bertgpt.training.event_records: TensorBoard's records, by another implementation."""

import struct
import time

import pytest

from bertgpt.training import event_records

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
record_writer = pytest.importorskip("tensorboardX.record_writer")


def read(data):
  """Returns the events of a file; checks the length and both checksums of every record."""
  events = []
  while data:
    size, = struct.unpack("<Q", data[:8])
    assert struct.unpack("<I", data[8:12])[0] == record_writer.masked_crc32c(data[:8])
    event, data = data[12:12 + size], data[12 + size:]
    assert struct.unpack("<I", data[:4])[0] == record_writer.masked_crc32c(event)
    events.append(event_pb2.Event.FromString(event))
    data = data[4:]
  return events


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
