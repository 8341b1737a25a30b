"""Rules for text that every reader shares: bytes, lines, blank lines, columns.

| part             | rule                                                                          |
|------------------|-------------------------------------------------------------------------------|
| bytes            | UTF-8, plain or compressed. UTF-16 is refused by its byte-order mark.         |
| byte-order mark  | Not text, at the start of a file or of a JSON record.                         |
| line end         | LF, CR LF or CR, and nothing else. Readers turn all of them into "\\n".       |
| blank line       | Nothing is left of it after `str.strip`, as in google-research/bert.          |
| columns          | Separated by tabs in tables, by spaces and tabs in CoNLL files.               |
| NUL, invalid     | An error, or what `data.invalid_text` says; `bertgpt.data.text.sources`       |
| UTF-8, surrogate | explains its choices. `take_text` finds those that JSON escapes.              |

U+0085, U+2028, form feeds and vertical tabs do not end a line, so lines of text that was read are
found with `split("\\n")`, not with `splitlines`. Lines may be endless: the memory is bounded.
"""

import codecs
import collections
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from bertgpt import files
from bertgpt.data.text import frames
from bertgpt.devices import watchdog
from bertgpt.errors import DataError, one_line

MAX_LINE_BYTES = 1 << 24
MAX_DOCUMENT_BYTES = 1 << 22
HEAD_BYTES = 512  # Bytes at the start of a file that `mark_length` needs.

Counts = collections.Counter  # What was replaced, skipped or noted -> how often.

# For error messages.
JSON_LINES = "Each line must hold one JSON object."
SHORTER = "Break the text into lines, or into documents of a .jsonl file"
BYTE_ORDER_MARK = "\ufeff"
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # A line with its end, if it has one.
_LINE_ENDS = (b"\n", b"\r")
_SPACES = re.compile("[ \t]+")
_DIRT = {"lone surrogate": re.compile("[\ud800-\udfff]"), "NUL character": re.compile("\0")}


class TextCleaner:
  """Policy for text that is not clean, and a tally of what it did.

  Args:
    mode: 'error', 'replace' or 'skip'.
    counts: tally to add to.
    repair: the advice to repair the text, at the end of an error message.
    choice: the alternative advice, such as ", or set ...".
  """

  def __init__(self, mode: str, counts: Counts, repair: str = "Repair it", choice: str = ""):
    self.mode = mode
    self.counts = counts
    self.repair = repair
    self.choice = choice

  def reject(self, problem: str, path: str, offset: int, *, can_replace: bool = True,
             hint: str = "", repair: str = "") -> None:
    """Raises a DataError, or counts what the mode does instead.

    Args:
      problem: description of what is wrong with the text.
      path: file of the text.
      offset: byte of the decompressed file.
      can_replace: whether the mode 'replace' keeps the document; otherwise it skips it too.
      hint: sentence of the error message about the format of the file.
      repair: advice about this problem; '': the general advice.
    Raises:
      DataError: the mode is 'error'.
    """
    if self.mode == "error":
      raise DataError(" ".join(filter(None, (
          f"{path}: {problem} at byte {offset}.", hint, (repair or self.repair) + self.choice))))
    replaced = self.mode == "replace" and can_replace
    self.counts[f"{problem}: {'replaced' if replaced else 'document skipped'}"] += 1

  def decode(self, raw: bytes, path: str, offset: int) -> str | None:
    """Returns the clean text of UTF-8 bytes, as `clean` does; None if it must be skipped.

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
    return self._finish(text, path, offset)

  def clean(self, text: str, path: str, offset: int, *, is_escaped: bool = False) -> str | None:
    """Returns text without NULs and lone surrogates, with LF line ends; None if it must be skipped.

    Args:
      text: a document.
      path: file of the document.
      offset: byte of the decompressed file where the document starts.
      is_escaped: whether the file holds the text with escapes, as JSON does. Bytes in it cannot be
        counted then, and errors name `offset`.
    Raises:
      DataError: the text is not clean, and the mode is 'error'.
    """
    try:
      text.encode()
    except UnicodeEncodeError:
      text = self._replace("lone surrogate", text, path, offset, is_escaped)
    return text and self._finish(text, path, offset, is_escaped)

  def _finish(self, text: str, path: str, offset: int, is_escaped: bool = False) -> str | None:
    """Returns valid text without NULs and with unified line ends."""
    clean = (self._replace("NUL character", text, path, offset, is_escaped) if "\0" in text
             else text)
    if clean is None or "\r" not in clean:
      return clean
    self.counts["carriage returns removed"] += clean.count("\r")
    return unify_line_ends(clean)

  def _replace(self, problem: str, text: str, path: str, offset: int,
               is_escaped: bool) -> str | None:
    pattern = _DIRT[problem]
    before = "" if is_escaped else text[:pattern.search(text).start()]
    self.reject(problem, path, offset + len(before.encode(errors="surrogatepass")))
    return None if self.mode == "skip" else pattern.sub("\ufffd", text)


# ------------------------------------------------------------------- rules


def unify_line_ends(text: str) -> str:
  """Returns a text whose line ends are all "\\n"."""
  return text.replace("\r\n", "\n").replace("\r", "\n")


def is_blank(line: bytes) -> bool:
  """Returns whether a line is empty or holds only white space of Unicode.

  Args:
    line: bytes in UTF-8, with or without a line end.
  """
  # The head decides for nearly every line. A character that is cut off at its end is ignored.
  return (not line[:64].decode(errors="ignore").strip()
          and not line.decode(errors="replace").strip())


def split_columns(line: str) -> list[str]:
  """Returns the columns of a CoNLL line, which spaces or tabs separate; other spaces are text.

  Args:
    line: line without its end.
  """
  stripped = line.strip(" \t")
  return _SPACES.split(stripped) if stripped else []


def take_text(value: Any, name: str, *, keeps_line_ends: bool = False) -> str:
  """Returns the text that a JSON value is, with "\\n" for every line end.

  Args:
    value: JSON value.
    name: name of the value, for messages.
    keeps_line_ends: leave line ends as they are, because its characters are counted.
  Raises:
    ValueError: it is not a text, or holds NULs or lone surrogates; the message is the second part
      of a sentence that begins with the place of the value.
  """
  if not isinstance(value, str):
    raise ValueError(f"{name} is not a text")
  for problem, pattern in _DIRT.items():
    if found := pattern.search(value):
      raise ValueError(f"{name} has a {problem} at character {found.start()}")
  return value if keeps_line_ends else unify_line_ends(value)


def parse_record(line: str, counts: Counts | None = None) -> Any:
  """Returns the JSON value of a line.

  Args:
    line: JSON, possibly after a byte-order mark, which occurs in the middle of concatenated files.
    counts: tally of the byte-order marks; None: not counted.
  Raises:
    ValueError: see `files.parse_json`.
  """
  if line.startswith(BYTE_ORDER_MARK):
    line = line[1:]
    if counts is not None:
      counts["byte-order marks removed"] += 1
  return files.parse_json(line)


# ------------------------------------------------------------------- files


def read_lines(path: str, cleaner: TextCleaner, *, can_replace: bool, start: int = 0,
               stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
  """Yields (offset in bytes, line with its line end as in the file) for every line of a file.

  A line of more than `MAX_LINE_BYTES` comes in pieces. If the line cannot be replaced, or should
  not be, every piece is None.

  Args:
    path: plain or compressed file.
    cleaner: decides about lines that are too long.
    can_replace: whether a line may be cut into several.
    start: byte of a plain file at which a line starts, the first to read.
    stop: byte of a plain file at which a line starts, the first not to read; None: the end.
  Raises:
    DataError: the file is damaged or truncated, or `cleaner` rejects a line.
  """
  offset, inside = start, False
  try:
    with open_file(path) as f:
      if start:
        f.seek(start)
      else:
        offset = len(f.read(mark_length(f.peek(HEAD_BYTES), path, cleaner.counts)))
      for line, is_long in _cut_lines(f):
        if stop is not None and offset >= stop:
          break
        if is_long and not inside:
          problem = f"line of more than {MAX_LINE_BYTES} bytes"
          cleaner.reject(problem, path, offset, can_replace=can_replace, repair=SHORTER)
        keep = not (is_long or inside) or (can_replace and cleaner.mode == "replace")
        yield offset, line if keep else None
        offset, inside = offset + len(line), is_long
  except DAMAGED as e:
    files.raise_if_unanswered(e)
    raise DataError(f"{path}: cannot be read beyond byte {offset} ({one_line(e)}). "
                    "Check the file or fetch it again") from e


def _cut_lines(f: io.BufferedReader) -> Iterator[tuple[bytes, bool]]:
  """Yields (line with its line end, whether the line continues) of a file.

  A line of more than `MAX_LINE_BYTES` comes in pieces, all of which but the last continue.
  """
  rest = b""
  while block := rest + f.readline(MAX_LINE_BYTES - len(rest)):
    if block.endswith(b"\r") and f.peek(1)[:1] == b"\n":
      block += f.read(1)
    rest = b""
    for line in (match[0] for match in _LINE.finditer(block)) if b"\r" in block else (block,):
      if line.endswith(_LINE_ENDS):
        yield line, False
      else:
        rest = line
    if len(rest) == MAX_LINE_BYTES:
      cut = cut_point(rest)
      yield rest[:cut], True
      rest = rest[cut:]
    elif rest and not f.peek(1):
      yield rest, False
      rest = b""


def find_start(path: str, position: int, *, is_document: bool) -> int:
  """Returns the first byte at or after a position at which a line of a plain file starts.

  Args:
    path: plain file.
    position: byte of the file, at least 1.
    is_document: whether to return instead where the text after the next complete blank line
      starts, so that no document continues there.
  Returns:
    The byte; the size of the file if there is none.
  Raises:
    DataError: the file cannot be read.
  """
  try:
    with files.open_read(path) as f:
      f.seek(position - 1)
      start, is_whole = position - 1, False
      for i, (line, goes_on) in enumerate(_cut_lines(f)):
        start += len(line)
        if i % 10_000 == 0:
          watchdog.renew()
        if not goes_on and (not is_document or (is_whole and is_blank(line))):
          break
        is_whole = not goes_on
      return start
  except OSError as e:
    raise DataError(f"{path}: cannot be read beyond byte {position} ({one_line(e)}). "
                    "Check the file or fetch it again") from e


def is_compressed(path: str) -> bool:
  """Returns whether the ending of a file names a compression that `open_file` knows."""
  return os.path.splitext(path)[1].lower() in _OPENERS


def open_file(path: str) -> io.BufferedReader:
  """Opens a plain, .gz, .xz or .zst file for reading its decompressed bytes.

  Args:
    path: file; its ending names the compression.
  Returns:
    A binary file. Reading a broken part raises one of `DAMAGED`.
  """
  opener = _OPENERS.get(os.path.splitext(path)[1].lower())
  return opener(path) if opener else files.open_read(path)


def read_blocks(path: str, cleaner: TextCleaner, start: int = 0,
                stop: int | None = None) -> Iterator[tuple[int, bytes, bool, bool]]:
  """Yields blocks between blank lines, or parts of blocks.

  A block of more than `MAX_DOCUMENT_BYTES` is cut between lines into parts; joined, they are the
  block. It is counted once.

  Args:
    path: plain or compressed file.
    cleaner: decides about lines that are too long.
    start, stop: see `read_lines`; no block continues across these bytes.
  Yields:
    (offset in bytes, lines, whether they are the last of the block, whether the block is cut).
  Raises:
    DataError: see `read_lines`.
  """
  block, begin, size, spoiled, is_cut = [], start, 0, False, False
  for offset, line in read_lines(path, cleaner, can_replace=True, start=start, stop=stop):
    if line is not None and is_blank(line):
      if block and not spoiled:
        yield begin, b"".join(block), True, is_cut
      block, size, spoiled, is_cut = [], 0, False, False
      continue
    if block and size + len(line or b"") > MAX_DOCUMENT_BYTES:
      cleaner.counts["long documents cut"] += not is_cut
      is_cut = True
      if not spoiled:
        yield begin, b"".join(block), False, True
      block, size = [], 0
    if not block:
      begin = offset
    spoiled |= line is None
    block.append(line or b"")
    size += len(block[-1])
  if block and not spoiled:
    yield begin, b"".join(block), True, is_cut


def mark_length(head: bytes, path: str, counts: Counts) -> int:
  """Returns the bytes of the byte-order mark at the start of a file; 0 if it has none.

  Args:
    head: the first `HEAD_BYTES` of the file, or all if it has fewer.
    path: file, for the error message.
    counts: tally of the marks.
  Raises:
    DataError: the mark is that of UTF-16 or UTF-32, or of a format that is not text.
  """
  for pattern, name, remedy in _OTHER_FORMATS:
    if re.match(pattern, head):
      if remedy.startswith("."):
        remedy = ("Decompress it once" if path.endswith(remedy) else
                  f"Give its name the ending {remedy}")
      raise DataError(f"{path}: is {name}, not text. {remedy.replace('PATH', path) or _CONVERT}")
  for name, marks in _OTHER_MARKS.items():
    if head.startswith(marks):
      raise DataError(f"{path}: is {name}. Convert it with: iconv -f {name} -t UTF-8")
  if not head.startswith(codecs.BOM_UTF8):
    return 0
  counts["byte-order marks removed"] += 1
  return len(codecs.BOM_UTF8)


# The mark of UTF-32 LE begins with that of UTF-16 LE.
_OTHER_MARKS = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
                "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}

_CONVERT = "Convert it to text or .jsonl"
# (start of the file, what the file is, remedy, or the ending by which `open_file` recognizes its
# compression). If the first characters could be text, the pattern includes the ones that follow.
_OTHER_FORMATS = (
    (rb"PAR1[\x00-\x08\x0e-\x1f]", "a Parquet file",
     f"{_CONVERT}, or train with data.source=parquet:PATH#COLUMN"),
    (rb"ARROW1\0|FEA1\0|(?s:\xff{4}.{4}\x10\0)", "an Arrow or Feather file",
     "Convert it with Dataset.to_parquet of `datasets`, or to text or .jsonl"),
    (files.LFS_POINTER, "a Git LFS pointer", "Fetch the file itself with git lfs pull"),
    (rb"%PDF-\d", "a PDF", ""),
    (rb"PK\x03\x04", "a zip archive (or an Office document)", ""),
    (rb"(?s:.{257})ustar[\0 ]", "a tar archive", "Unpack it with tar -xf PATH"),
    (rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", "compressed by bzip2", ""),
    (rb"\x1f\x8b", "compressed by gzip", ".gz"),
    (rb"\xfd7zXZ\0", "compressed by xz", ".xz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by Zstandard", ".zst"),
)


def cut_point(data: bytes) -> int:
  """Returns where to cut UTF-8: after the last space, or else before the last character.

  Args:
    data: bytes that may end inside a character.
  """
  space = data.rfind(b" ", 1)
  if space > 0:
    return space + 1
  return next((len(data) - i for i in range(1, 5) if data[-i] >= 0xC0), len(data))


_OPENERS: dict[str, Callable[[str], Any]] = {
    ".gz": frames.open_gzip,
    ".xz": frames.open_xz,
    ".zst": frames.open_zstd,
}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
