"""Division of the files of a source into parts, which may be read by several machines.

A part is a run of neighboring pieces. A piece is a file, or `PIECE_BYTES` of a large plain file of
lines. The pieces, and the parts that they belong to, depend only on the sizes of the files, so the
machines need not communicate. A piece of a file nominally begins at some byte; reading begins with
the first line, or the first document, that starts there or later. So the parts together are the
source, document by document, however many there are.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bertgpt import files
from bertgpt.data.text import intake

PIECE_BYTES = 2**26
_READ_BYTES = 2**20

# What a source can be divided into. Documents of a text end at a blank line.
SOURCE, FILE, DOCUMENT, LINE = "source", "file", "document", "line"


class Part(NamedTuple):
  """One of several parts of a source.

  Attributes:
    number: index of the part, from 0.
    total: number of parts.
  """

  number: int
  total: int

  def __str__(self) -> str:
    return f"{self.number}/{self.total}"


WHOLE = Part(0, 1)


class Piece(NamedTuple):
  """Some bytes of a file.

  Attributes:
    path: the file; '' for text that is not in files.
    start: first byte.
    size: number of bytes.
  """

  path: str
  start: int
  size: int


class Span(NamedTuple):
  """Neighboring pieces of one file.

  Attributes:
    path: the file; '' for text that is not in files.
    start: byte at which the first piece begins.
    stop: byte at which the last piece ends; None: the end of the file.
  """

  path: str
  start: int = 0
  stop: int | None = None


class Pieces(NamedTuple):
  """The pieces of one source.

  Attributes:
    unit: SOURCE, FILE, DOCUMENT or LINE.
    pieces: all pieces in order.
  """

  unit: str
  pieces: list[Piece]


def cut_files(sizes: dict[str, int], unit: str) -> Pieces:
  """Cuts the files of a source into pieces.

  Args:
    sizes: path -> bytes, in order.
    unit: SOURCE, FILE, DOCUMENT or LINE. Compressed files are never cut.
  """
  pieces = []
  for path, size in sizes.items():
    can_cut = unit in (DOCUMENT, LINE) and not intake.is_compressed(path)
    step = PIECE_BYTES if can_cut else max(size, 1)
    pieces += [Piece(path, start, min(step, size - start))
               for start in range(0, max(size, 1), step)]
  return Pieces(unit, pieces)


def assign(sources: Sequence[Pieces], total: int) -> list[list[int]]:
  """Returns the part that every piece of every source belongs to, ascending.

  The bytes of all sources, one after the other, are divided evenly, and a piece belongs to the part
  that contains its middle. The pieces of a source that cannot be divided belong to one part.

  Args:
    sources: pieces of every source.
    total: number of parts.
  """
  num_bytes = sum(piece.size for source in sources for piece in source.pieces)
  before, owners = 0, []
  for source in sources:
    sizes = [piece.size for piece in source.pieces]
    groups = [sum(sizes)] if source.unit == SOURCE else sizes
    found = []
    for size in groups:
      found.append(min(total - 1, (2 * before + size) * total // max(2 * num_bytes, 1)))
      before += size
    owners.append(found * len(sizes) if source.unit == SOURCE else found)
  return owners


def divide(sources: Sequence[Pieces], total: int) -> list[list[tuple[int, Span]]]:
  """Returns what every part reads of every source.

  Args:
    sources: pieces of every source.
    total: number of parts.
  Returns:
    For every source, (part, span) in the order of the text.
  """
  divided = []
  for source, owners in zip(sources, assign(sources, total), strict=True):
    spans: list[tuple[int, Span]] = []
    for i, (piece, owner) in enumerate(zip(source.pieces, owners, strict=True)):
      goes_on = i + 1 < len(owners) and source.pieces[i + 1].path == piece.path
      stop = piece.start + piece.size if goes_on else None
      start = piece.start
      if spans and spans[-1][0] == owner and spans[-1][1].path == piece.path:
        start = spans.pop()[1].start
      spans.append((owner, Span(piece.path, start, stop)))
    divided.append(spans)
  return divided


def bounds(span: Span, unit: str) -> tuple[int, int | None]:
  """Returns the first byte that a span is read from, and the one after the last; None: the end.

  Args:
    span: pieces of a file.
    unit: LINE or DOCUMENT; the bounds are between two lines or two documents.
  """
  return _find_bound(span, span.start, unit), _find_bound(span, span.stop, unit)


def _find_bound(span: Span, position: int | None, unit: str) -> int | None:
  if not position:
    return position
  return intake.find_start(span.path, position, is_document=unit == DOCUMENT)


# ----------------------------------------------------------------- digests


def digest_spans(sources: Sequence[Pieces], part: Part) -> dict[str, dict[str, str]]:
  """Returns the SHA-256 (hex) of what several parts read of one file.

  The part that reads the start of the file hashes what every part reads of it, so that a merge can
  tell whether all parts read the same file.

  Args:
    sources: pieces of every source.
    part: the part that asks.
  Returns:
    "SOURCE FILE" -> part -> digest, with indices from 0, for the files of which this part reads
    some, but not all.
  """
  found: dict[str, dict[str, str]] = {}
  for s, (source, spans) in enumerate(zip(sources, divide(sources, part.total), strict=True)):
    sizes = {piece.path: piece.start + piece.size for piece in source.pieces}
    groups = itertools.groupby(spans, key=lambda pair: pair[1].path)
    for f, (path, group) in enumerate((path, dict(group)) for path, group in groups):
      if len(group) > 1 and part.number in group:
        mine = group if part.number == min(group) else {part.number: group[part.number]}
        bounds_of = _bounds_of_all([*mine.values()], source.unit, sizes[path])
        found[f"{s} {f}"] = {str(owner): _hash(path, start, stop)
                             for owner, (start, stop) in zip(mine, bounds_of, strict=True)}
  return found


def _bounds_of_all(spans: Sequence[Span], unit: str,
                   size: int) -> Iterator[tuple[int, int | None]]:
  """Yields the `bounds` of spans of one file, each of which starts where the one before stops.

  Args:
    spans: spans of a file.
    unit: LINE or DOCUMENT.
    size: bytes of the file. A search that ends there has read the rest of the file, so there is
      only one.
  """
  stop = _find_bound(spans[0], spans[0].start, unit)
  for span in spans:
    start = stop
    stop = size if start == size and span.stop else _find_bound(span, span.stop, unit)
    yield start, stop


def _hash(path: str, start: int, stop: int | None) -> str:
  digest = hashlib.sha256()
  with files.open_read(path) as f:
    f.seek(start)
    while stop is None or f.tell() < stop:
      size = _READ_BYTES if stop is None else min(_READ_BYTES, stop - f.tell())
      data = f.read(size)
      if not data:
        break
      digest.update(data)
  return digest.hexdigest()
