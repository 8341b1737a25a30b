"""Reads TensorBoard's event files with the protocol buffers and the checksum of tensorboardX."""

import struct

import pytest

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
