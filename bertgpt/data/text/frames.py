"""Readers of compressed files that consist of several frames, each compressed by itself.

Python's `lzma` takes a later stream that is damaged at its start, and padding between streams, for
the end of the file; the reader of `zstandard` takes a truncated frame for it; `gzip` reads an empty
file, which a failed download leaves, as an empty text. All of them would lose text without a word.
"""

import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from bertgpt import files

# 1 KiB of Zstandard decompresses to at most 32 MiB: 256 blocks of 4 bytes with 128 KiB each.
_READ_BYTES = 1024
_BUFFER_BYTES = 1 << 17
_GZIP = 16 + zlib.MAX_WBITS  # For zlib: a header and a checksum as in gzip, any window size.


def open_gzip(path: str) -> io.BufferedReader:
  """Opens a .gz file of one or more members, and of zeros between and after them.

  Args:
    path: file on a disk or in a bucket.
  Returns:
    A reader of the decompressed bytes. It raises EOFError if a member is truncated or there is
    none, and zlib.error if one is damaged or something else is in the file.
  """
  return _open(path, lambda: zlib.decompressobj(_GZIP), padding=b"\0")


def open_xz(path: str) -> io.BufferedReader:
  """Opens a .xz file of one or more streams, and of zeros between and after them.

  Args:
    path: file on a disk or in a bucket.
  Returns:
    A reader of the decompressed bytes. It raises EOFError if a stream is truncated or there is
    none, and LZMAError if one is damaged or something else is in the file.
  """
  return _open(path, lzma.LZMADecompressor, padding=b"\0")


def open_zstd(path: str) -> io.BufferedReader:
  """Opens a .zst file of one or more frames, of any window size.

  Args:
    path: file on a disk or in a bucket.
  Returns:
    A reader of the decompressed bytes. It raises EOFError if a frame is truncated or there is
    none, and ZstdError if one is damaged.
  """
  decoder = zstandard.ZstdDecompressor(max_window_size=2**31)
  return _open(path, decoder.decompressobj)


def _open(path: str, make_decoder: Callable[[], Any], padding: bytes = b"") -> io.BufferedReader:
  return io.BufferedReader(_Frames(path, make_decoder, padding), _BUFFER_BYTES)


class _Frames(io.RawIOBase):
  """Reader of all frames of a file.

  Args:
    path: file on a disk or in a bucket.
    make_decoder: returns the decoder of a frame, with `decompress`, `eof` and `unused_data`.
    padding: bytes that may follow a frame.
  """

  def __init__(self, path: str, make_decoder: Callable[[], Any], padding: bytes):
    self._file = files.open_read(path)
    self._make_decoder, self._padding = make_decoder, padding
    self._frame: Any = None
    self._ready = b""

  def readable(self) -> bool:
    """Returns True."""
    return True

  def readinto(self, buffer) -> int:
    """Reads decompressed bytes into a buffer and returns their number; 0 at the end.

    Raises:
      EOFError: the file ends within a frame, or has none.
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
    if self._frame is None:
      if not (start := self._file.read(_READ_BYTES)):
        raise EOFError("the file is empty")
      return start
    data = self._frame.unused_data
    while not (start := data.lstrip(self._padding)):
      if not (data := self._file.read(_READ_BYTES)):
        return b""
    return start

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
    super().close()
