"""Records of TensorBoard's event files: `tensorflow.Event` in the framing of TFRecord.

They are written without a library. If PyTorch is installed, importing tensorboardX or
`torch.utils.tensorboard` also imports PyTorch and its CUDA libraries into the training process.

Sources: tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto, and
https://www.tensorflow.org/tutorials/load_data/tfrecord (framing).
"""

import struct
import time
from collections.abc import Mapping

from bertgpt.files import wire_format


def make_start(purge_step: int) -> bytes:
  """Returns the records with which a file begins.

  Args:
    purge_step: TensorBoard drops the points of earlier files from this step on.
  """
  status = wire_format.integer(1, 1)  # SessionLog.status = START.
  return (_frame(_at_now() + wire_format.nested(3, b"brain.Event:2"))
          + _frame(_at_now() + wire_format.integer(2, purge_step) + wire_format.nested(7, status)))


def make_point(step: int, scalars: Mapping[str, float]) -> bytes:
  """Returns the record of one point of every curve.

  Args:
    step: steps done.
    scalars: tag -> value, which is rounded to 32 bits.
  """
  summary = b"".join(
      wire_format.nested(1, wire_format.nested(1, tag.encode()) + wire_format.single(2, value))
      for tag, value in scalars.items())
  return _frame(_at_now() + wire_format.integer(2, step) + wire_format.nested(5, summary))


def _at_now() -> bytes:
  return wire_format.double(1, time.time())


def _frame(event: bytes) -> bytes:
  """Returns a record of TFRecord: length, its checksum, the event, its checksum."""
  length = struct.pack("<Q", len(event))
  return length + _checksum(length) + event + _checksum(event)


def _checksum(data: bytes) -> bytes:
  """Returns the CRC-32C of bytes, rotated and shifted as TFRecord has it, as four bytes."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _make_table() -> list[int]:
  """Returns the CRC-32C of every byte: the remainder modulo Castagnoli's polynomial."""
  table = list(range(256))
  for _ in range(8):
    table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
  return table


_TABLE = _make_table()
