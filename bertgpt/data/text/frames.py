"""Readers of compressed files that consist of several frames, each compressed by itself.

Python's `lzma` takes a later stream that is damaged at its start, and padding between streams, for
the end of the file; the reader of `zstandard` takes a truncated frame for it. Both would lose text
without a word.
"""

import io
import lzma
from collections.abc import Callable
from typing import Any

import zstandard

from bertgpt import files

# 1 KiB of Zstandard decompresses to at most 32 MiB: 256 blocks of 4 bytes with 128 KiB each.
_READ_BYTES = 1024
_BUFFER_BYTES = 1 << 17


def open_xz(path: str) -> io.BufferedReader:
  """Opens a .xz file of one or more streams, and of zeros between and after them.

  Args:
    path: file on a disk or in a bucket.
  Returns:
    A reader of the decompressed bytes. It raises EOFError if a stream is truncated or there is
    none, and LZMAError if one is damaged or something else is in the file.
  """
  return io.BufferedReader(_Frames(path, lzma.LZMADecompressor, padding=b"\0", is_needed=True),
                           _BUFFER_BYTES)


def open_zstd(path: str) -> io.BufferedReader:
  """Opens a .zst file of any number of frames, of any window size.

  Args:
    path: file on a disk or in a bucket.
  Returns:
    A reader of the decompressed bytes. It raises EOFError if a frame is truncated, and ZstdError if
    one is damaged.
  """
  decoder = zstandard.ZstdDecompressor(max_window_size=2**31)
  return io.BufferedReader(_Frames(path, decoder.decompressobj), _BUFFER_BYTES)


class _Frames(io.RawIOBase):
  """Reader of all frames of a file.

  Args:
    path: file on a disk or in a bucket.
    make_decoder: returns the decoder of a frame, with `decompress`, `eof` and `unused_data`.
    padding: bytes that may precede or follow a frame.
    is_needed: whether there must be a frame.
  """

  def __init__(self, path: str, make_decoder: Callable[[], Any], padding: bytes = b"",
               is_needed: bool = False):
    self._file = files.open_read(path)
    self._make_decoder, self._padding, self._is_needed = make_decoder, padding, is_needed
    self._frame: Any = None
    self._ready = b""

  def readable(self) -> bool:
    """Returns True."""
    return True

  def readinto(self, buffer) -> int:
    """Reads decompressed bytes into a buffer and returns their number; 0 at the end.

    Raises:
      EOFError: the file ends within a frame, or has none although it needs one.
    """
    while not self._ready:
      if self._frame is None or self._frame.eof:
        if not (data := self._find_start()):
          return 0
        self._frame = self._make_decoder()
      elif not (data := self._file.read(_READ_BYTES)):
        raise EOFError("the last frame is truncated")
      self._ready = self._frame.decompress(data)
    size = min(len(buffer), len(self._ready))
    buffer[:size], self._ready = self._ready[:size], self._ready[size:]
    return size

  def _find_start(self) -> bytes:
    """Returns bytes that begin with the next frame, after padding; b"" at the end of the file."""
    data = self._frame.unused_data if self._frame else b""
    while not (start := data.lstrip(self._padding)):
      if not (data := self._file.read(_READ_BYTES)):
        if self._is_needed and self._frame is None:
          raise EOFError("the file has no stream")
        return b""
    return start

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
    super().close()
