"""Reading of text files that may be compressed, have endless lines or hold invalid bytes.

The docstring of `bertgpt.data.text.sources` explains how `data.invalid_text` treats such text.
"""

import codecs
import collections
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from bertgpt.errors import DataError, one_line

MAX_LINE_BYTES = 1 << 24
MAX_DOCUMENT_BYTES = 1 << 22

Counts = collections.Counter  # Description of what was replaced, skipped or noted -> how often.

_NUL = re.compile("\0")
_SURROGATE = re.compile("[\ud800-\udfff]")


class TextCleaner:
  """Policy for text that is not clean, and a tally of what it did.

  Args:
    mode: 'error', 'replace' or 'skip'.
    counts: tally to add to.
    remedy: sentence that an error message ends with.
  """

  def __init__(self, mode: str, counts: Counts,
               remedy: str = "Repair it or set data.invalid_text to replace or skip"):
    self.mode = mode
    self.counts = counts
    self.remedy = remedy

  def reject(self, problem: str, path: str, offset: int, *, can_replace: bool = True) -> None:
    """Raises a DataError, or counts what the mode does instead.

    Args:
      problem: description of what is wrong with the text.
      path: file of the text.
      offset: byte of the decompressed file.
      can_replace: whether the mode 'replace' keeps the document; otherwise it skips it too.
    Raises:
      DataError: the mode is 'error'.
    """
    if self.mode == "error":
      raise DataError(f"{path}: {problem} at byte {offset}. {self.remedy}")
    replaced = self.mode == "replace" and can_replace
    self.counts[f"{problem}: {'replaced' if replaced else 'document skipped'}"] += 1

  def decode(self, raw: bytes, path: str, offset: int) -> str | None:
    """Returns the text of UTF-8 bytes, without NULs; None if it must be skipped.

    Args:
      raw: the bytes of a document.
      path: file of the document.
      offset: byte of the decompressed file where `raw` starts.
    Raises:
      DataError: the bytes are not clean text, and the mode is 'error'.
    """
    try:
      text = raw.decode()
    except UnicodeDecodeError as e:
      self.reject("invalid UTF-8", path, offset + e.start)
      if self.mode == "skip":
        return None
      text = raw.decode(errors="replace")
    return self._without_nul(text, path, offset)

  def clean(self, text: str, path: str, offset: int) -> str | None:
    """Returns the text without NULs and lone surrogates; None if it must be skipped.

    Args:
      text: a document.
      path: file of the document.
      offset: byte of the decompressed file where the document starts.
    Raises:
      DataError: the text is not clean, and the mode is 'error'.
    """
    try:
      text.encode()
    except UnicodeEncodeError:
      text = self._replace("lone surrogate", _SURROGATE, text, path, offset)
    return text and self._without_nul(text, path, offset)

  def _without_nul(self, text: str, path: str, offset: int) -> str | None:
    if "\0" not in text:
      return text
    return self._replace("NUL character", _NUL, text, path, offset)

  def _replace(self, problem: str, pattern: re.Pattern, text: str, path: str,
               offset: int) -> str | None:
    before = text[:pattern.search(text).start()].encode(errors="surrogatepass")
    self.reject(problem, path, offset + len(before))
    return None if self.mode == "skip" else pattern.sub("\ufffd", text)


def read_lines(path: str, cleaner: TextCleaner, *,
               can_replace: bool) -> Iterator[tuple[int, bytes | None]]:
  """Yields (offset in bytes, line with its line end) for every line of a file.

  A line of more than `MAX_LINE_BYTES` comes in pieces. If the line cannot be replaced, or should
  not be, every piece is None.

  Args:
    path: plain or compressed file.
    cleaner: decides about lines that are too long.
    can_replace: whether a line may be cut into several.
  Raises:
    DataError: the file is damaged or truncated, or `cleaner` rejects a line.
  """
  offset, rest, inside = 0, b"", False
  try:
    with open_file(path) as f:
      offset = len(f.read(_mark_length(f.peek(3), path, cleaner)))
      while line := rest + f.readline(MAX_LINE_BYTES - len(rest)):
        is_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        if is_long and not inside:
          problem = f"line of more than {MAX_LINE_BYTES} bytes"
          cleaner.reject(problem, path, offset, can_replace=can_replace)
        cut = _cut_point(line) if is_long else len(line)
        keep = not (is_long or inside) or (can_replace and cleaner.mode == "replace")
        yield offset, line[:cut] if keep else None
        offset, rest, inside = offset + cut, line[cut:], is_long
  except DAMAGED as e:
    raise DataError(f"{path}: cannot be read beyond byte {offset} ({one_line(e)}). "
                    "Check the file or fetch it again") from e


def open_file(path: str) -> io.BufferedReader:
  """Opens a plain, .gz, .xz or .zst file for reading its decompressed bytes.

  Args:
    path: file; its ending names the compression.
  Returns:
    A binary file. Reading a broken part raises one of `DAMAGED`.
  """
  opener = _OPENERS.get(os.path.splitext(path)[1])
  return opener(path) if opener else open(path, "rb")


def read_blocks(path: str, cleaner: TextCleaner) -> Iterator[tuple[int, bytes]]:
  """Yields (offset in bytes, lines) for every run of lines between blank lines.

  A block of more than `MAX_DOCUMENT_BYTES` is cut between lines.

  Args:
    path: plain or compressed file.
    cleaner: decides about lines that are too long.
  Raises:
    DataError: see `read_lines`.
  """
  block, start, size, spoiled = [], 0, 0, False
  for offset, line in read_lines(path, cleaner, can_replace=True):
    is_blank = line is not None and not line.strip()
    if is_blank or size > MAX_DOCUMENT_BYTES:
      if not is_blank:
        cleaner.counts["long documents cut"] += 1
      if block and not spoiled:
        yield start, b"".join(block)
      block, size, spoiled = [], 0, spoiled and not is_blank
    if is_blank:
      continue
    if not block:
      start = offset
    spoiled |= line is None
    block.append(line or b"")
    size += len(block[-1])
  if block and not spoiled:
    yield start, b"".join(block)


def _mark_length(head: bytes, path: str, cleaner: TextCleaner) -> int:
  """Returns the bytes of the byte-order mark at the start of a file; 0 if it has none."""
  if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise DataError(f"{path}: is UTF-16. Convert it with: iconv -f UTF-16 -t UTF-8")
  if not head.startswith(codecs.BOM_UTF8):
    return 0
  cleaner.counts["byte-order marks removed"] += 1
  return len(codecs.BOM_UTF8)


def _cut_point(line: bytes) -> int:
  """Returns where to cut a piece off: after the last space, or before the last character."""
  space = line.rfind(b" ", 1)
  if space > 0:
    return space + 1
  return next((len(line) - i for i in range(1, 5) if line[-i] >= 0xC0), len(line))


class _ZstdFile(io.RawIOBase):
  """Reader of all frames of a .zst file. A truncated frame raises EOFError.

  The reader of `zstandard` treats a truncated frame as the end of the file.
  """

  def __init__(self, path: str):
    self._file = open(path, "rb")
    self._frame: Any = None
    self._ready = b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      is_between = self._frame is None or self._frame.eof
      left = self._frame.unused_data if self._frame and is_between else b""
      # 1 KiB decompresses to at most 32 MiB: 256 blocks of 4 bytes with 128 KiB each.
      data = left or self._file.read(1024)
      if not data and not is_between:
        raise EOFError("the last frame is truncated")
      if not data:
        return 0
      if is_between:
        self._frame = zstandard.ZstdDecompressor().decompressobj()
      self._ready = self._frame.decompress(data)
    size = min(len(buffer), len(self._ready))
    buffer[:size], self._ready = self._ready[:size], self._ready[size:]
    return size

  def close(self) -> None:
    self._file.close()
    super().close()


_OPENERS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(_ZstdFile(path), 1 << 17),
}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
