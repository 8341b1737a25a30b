"""Fields of serialized protocol buffers, for messages that are written without their classes.

Source: https://protobuf.dev/programming-guides/encoding
"""

import struct

import numpy as np

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # Wire types.


def nested(number: int, payload: bytes) -> bytes:
  """Returns a field that holds bytes, a string or a message.

  Args:
    number: number of the field, below 16.
    payload: its serialized content.
  """
  return nested_header(number, len(payload)) + payload


def nested_header(number: int, length: int) -> bytes:
  """Returns what precedes the payload of a field.

  Args:
    number: number of the field, below 16.
    length: bytes of the payload.
  """
  return bytes([number << 3 | _LENGTH_DELIMITED]) + varint(length)


def integer(number: int, value: int) -> bytes:
  """Returns a field of an integer or an enum.

  Args:
    number: number of the field, below 16.
    value: the integer, not negative.
  """
  return bytes([number << 3 | _VARINT]) + varint(value)


def double(number: int, value: float) -> bytes:
  """Returns a field of a float of 64 bits.

  Args:
    number: number of the field, below 16.
    value: the float.
  """
  return bytes([number << 3 | _FIXED64]) + struct.pack("<d", value)


def single(number: int, value: float) -> bytes:
  """Returns a field of a float of 32 bits.

  Args:
    number: number of the field, below 16.
    value: the float, which is rounded; beyond the range of 32 bits, to an infinity.
  """
  with np.errstate(over="ignore"):
    return bytes([number << 3 | _FIXED32]) + np.float64(value).astype("<f4").tobytes()


def varint(value: int) -> bytes:
  """Returns an integer in base 128, the lowest digit first.

  Args:
    value: the integer, not negative.
  """
  digits = bytearray()
  while value >= 0x80:
    digits.append(value & 0x7F | 0x80)
    value >>= 7
  digits.append(value)
  return bytes(digits)
