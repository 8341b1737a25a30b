"""Text files as they are: compressed, with endless lines, with bytes that are no text.

`bertgpt.data.text.sources` says what `data.invalid_text` does about such text.
"""

import codecs
import collections
import functools
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from bertgpt.errors import DataError, one_line

MAX_LINE_BYTES = 1 << 24
MAX_DOCUMENT_BYTES = 1 << 22

Counts = collections.Counter  # What was replaced, skipped or noted, and how often: dict[str, int].

_NUL = re.compile("\0")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Intake:
  """What becomes of text that is not clean, and the tally of it.

  Args:
    mode: error | replace | skip.
    counts: tally to add to.
    remedy: what an error advises.
  """

  def __init__(self, mode: str, counts: Counts,
               remedy: str = "repair it or set data.invalid_text to replace or skip"):
    self.mode = mode
    self.counts = counts
    self.remedy = remedy

  def reject(self, problem: str, path: str, offset: int, *, mendable: bool = True) -> None:
    """Raises a DataError, or tallies what is done instead.

    Args:
      mendable: `replace` can do better than to drop the document.
    """
    if self.mode == "error":
      raise DataError(f"{path}: {problem} at byte {offset}; {self.remedy}")
    replaced = self.mode == "replace" and mendable
    self.counts[f"{problem}: {'replaced' if replaced else 'document skipped'}"] += 1

  def decode(self, raw: bytes, path: str, offset: int) -> str | None:
    """Text of `raw`, which starts at byte `offset` of `path`; None to skip it."""
    try:
      text = raw.decode()
    except UnicodeDecodeError as e:
      self.reject("invalid UTF-8", path, offset + e.start)
      if self.mode == "skip":
        return None
      text = raw.decode(errors="replace")
    return self._without_nul(text, path, offset)

  def clean(self, text: str, path: str, offset: int) -> str | None:
    """`text` without NULs and lone surrogates; None to skip it."""
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


def read_lines(path: str, intake: Intake, *, mendable: bool) -> Iterator[tuple[int, bytes | None]]:
  """Yields (byte, line with its end) for every line of a plain or compressed file.

  A line of more than `MAX_LINE_BYTES` comes in pieces if it is `mendable` and to be replaced;
  otherwise every piece of it is None.

  Raises:
    DataError: the file is damaged or cut short, or holds what `intake` rejects.
  """
  offset, rest, inside = 0, b"", False
  try:
    with open_file(path) as f:
      offset = len(f.read(_mark_length(f.peek(3), path, intake)))
      while line := rest + f.readline(MAX_LINE_BYTES - len(rest)):
        is_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        if is_long and not inside:
          problem = f"line of more than {MAX_LINE_BYTES} bytes"
          intake.reject(problem, path, offset, mendable=mendable)
        cut = _cut_point(line) if is_long else len(line)
        keep = not (is_long or inside) or (mendable and intake.mode == "replace")
        yield offset, line[:cut] if keep else None
        offset, rest, inside = offset + cut, line[cut:], is_long
  except DAMAGED as e:
    raise DataError(f"{path}: cannot be read beyond byte {offset} ({one_line(e)}); "
                    "check the file or fetch it again") from e


def open_file(path: str) -> BinaryIO:
  """The bytes of a plain or compressed file. Reading raises one of `DAMAGED` where it is broken."""
  return _OPENERS.get(os.path.splitext(path)[1], functools.partial(open, mode="rb"))(path)


def read_blocks(path: str, intake: Intake) -> Iterator[tuple[int, bytes]]:
  """Yields (byte, lines) between blank lines.

  A block of more than `MAX_DOCUMENT_BYTES` is cut between lines.
  """
  block, start, size, spoiled = [], 0, 0, False
  for offset, line in read_lines(path, intake, mendable=True):
    is_blank = line is not None and not line.strip()
    if is_blank or size > MAX_DOCUMENT_BYTES:
      if not is_blank:
        intake.counts["long documents cut"] += 1
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


def _mark_length(head: bytes, path: str, intake: Intake) -> int:
  """Bytes of the byte-order mark at the start of a file."""
  if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise DataError(f"{path}: is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8")
  if not head.startswith(codecs.BOM_UTF8):
    return 0
  intake.counts["byte-order marks removed"] += 1
  return len(codecs.BOM_UTF8)


def _cut_point(line: bytes) -> int:
  """Where to cut a piece off: after the last space, else before the last character."""
  space = line.rfind(b" ", 1)
  if space > 0:
    return space + 1
  return next((len(line) - i for i in range(1, 5) if line[-i] >= 0xC0), len(line))


class _ZstdFile(io.RawIOBase):
  """The frames of a .zst file one after the other; a cut one raises EOFError.

  zstandard's own reader takes the cut for the end.
  """

  def __init__(self, path: str):
    self._file = open(path, "rb")
    self._frame = None
    self._ready = b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      is_between = self._frame is None or self._frame.eof
      left = self._frame.unused_data if self._frame and is_between else b""
      # A kibibyte means at most 32 MiB of text: blocks of 4 bytes that stand for 128 KiB.
      data = left or self._file.read(1024)
      if not data and not is_between:
        raise EOFError("the last frame is cut")
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


_OPENERS: dict[str, Callable[[str], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(_ZstdFile(path), 1 << 17),
}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
