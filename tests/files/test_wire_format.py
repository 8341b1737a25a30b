"""bertgpt.files.wire_format: protobuf's own parser reads what is written."""

import numpy as np
import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.internal import encoder
from hypothesis import given
from hypothesis import strategies as st

from bertgpt.files import wire_format


@given(st.integers(0, 2**63 - 1))
def test_integers_are_those_of_protobuf(value):
  assert wrappers_pb2.Int64Value.FromString(wire_format.integer(1, value)).value == value
  assert wire_format.varint(value) == encoder._VarintBytes(value)


@given(st.floats(allow_nan=False))
def test_floats_are_those_of_protobuf(value):
  assert wrappers_pb2.DoubleValue.FromString(wire_format.double(1, value)).value == value
  with np.errstate(over="ignore"):
    rounded = float(np.float32(value))
  assert wrappers_pb2.FloatValue.FromString(wire_format.single(1, value)).value == rounded


@pytest.mark.parametrize("length", [0, 1, 127, 128, 70_000])
def test_bytes_are_those_of_protobuf(length):
  field = wire_format.nested(1, b"a" * length)
  assert field.startswith(wire_format.nested_header(1, length))
  assert wrappers_pb2.BytesValue.FromString(field).value == b"a" * length
