"""Documents from files and datasets, one at a time and in a fixed order.

A source is one string; several are joined by commas:

| source                                | what it reads                                          |
|---------------------------------------|--------------------------------------------------------|
| `pydocs`                              | the documentation in every Python installation         |
| `text:GLOB`                           | one sentence per line, blank lines between documents   |
| `text+paragraphs:GLOB`                | one paragraph per line, blank lines between documents  |
| `jsonl:GLOB#field`                    | running text: one JSON object per line; default `#text`|
| `parquet:GLOB#column`                 | running text: one document per row; default `#text`    |
| `parquet+sentences:GLOB#column`       | one sentence per row, empty rows between documents     |
| `tfds:name/config:split#feature`      | running text: a dataset that TFDS prepared as          |
|                                       | ArrayRecord                                            |
| `tfds:/prepared/folder:split#feature` | the same, given by its folder                          |

A number before a source is its weight in documents: `2*text:a.txt,0.5*jsonl:b.jsonl` reads
every document of the first twice and every second document of the second. `validation*` before a
source holds out all its documents, and those of the other sources are trained on. Files may end in
.gz, .xz or .zst. Globs may contain `**`; files are read in the order of their names. If a file with
exactly the given name exists, the name may contain brackets, `*`, `#` and commas.

Fields and columns may be nested, as in `#meta.title`, and there may be several, as in
`#title,text`: they are joined by a blank line, and those that are null or absent are left out.

`data.invalid_text` decides about text that is not clean, and `Counts` counts it:

| problem                                  | error      | replace                | skip          |
|------------------------------------------|------------|------------------------|---------------|
| invalid UTF-8, NUL, lone surrogate       | DataError  | U+FFFD in its place    | drop document |
| a line of more than `MAX_LINE_BYTES`     | DataError  | cut; JSON: drop it     | drop document |
| a line of JSON without the text          | DataError  | drop document          | drop document |

A DataError names the file and the byte, counted in the decompressed stream. Other irregularities
are never an error but only counted: a byte-order mark at the start of a file or of a JSON record,
and carriage returns (removed), documents without text (dropped), documents of one word (kept),
documents of more than `MAX_DOCUMENT_BYTES` (cut into several, between paragraphs if possible). So
the two constants, 16 MiB and 4 MiB, bound the memory, whatever the input. Everything else is kept:
the text of a document has its white space, line breaks and blank lines. `intake` says what a line
and a blank line are.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bertgpt import files
from bertgpt.config import remote_problem
from bertgpt.data.text import datasets, fields, parquet, paths, pieces, pydocs
from bertgpt.data.text.digests import sha256_files
from bertgpt.data.text.documents import Document, make_documents, weigh
from bertgpt.data.text.intake import (
    JSON_LINES,
    Counts,
    TextCleaner,
    is_blank,
    parse_record,
    read_blocks,
    read_lines,
)
from bertgpt.data.text.pieces import DOCUMENT, FILE, LINE, SOURCE, WHOLE, Part, Piece, Pieces, Span
from bertgpt.devices import watchdog
from bertgpt.errors import ConfigError

Place = tuple[str, str, str]  # Target, split and field of a `Source`.
MAX_WEIGHT = 1e6
HELD_OUT = "validation*"  # Before a source whose documents are all held out.
WATCHED_DOCUMENTS = 1000  # Documents that must be read within the limit of a step.
MAX_COMMAS = 8  # Commas in the name of a file that look like the start of another source.


@dataclasses.dataclass(frozen=True)
class Source:
  """One parsed source.

  Attributes:
    kind: key of `SOURCE_KINDS`.
    target: glob, dataset name or folder; '' for pydocs.
    split: split of a dataset; '' for other kinds.
    field: field of the JSON objects, or feature of the dataset.
    weight: how often every document is read.
    is_held_out: whether all its documents are held out.
  """
  kind: str
  target: str = ""
  split: str = ""
  field: str = ""
  weight: float = 1.0
  is_held_out: bool = False

  @property
  def prefix(self) -> str:
    """What stands before the kind in the text of the source."""
    return HELD_OUT if self.is_held_out else "" if self.weight == 1 else f"{self.weight:g}*"


def open_source(spec: str, *, invalid_text: str = "error", counts: Counts | None = None,
                part: Part = WHOLE) -> Iterator[Document]:
  """Opens a source and yields its documents, in an order that depends only on the files.

  Args:
    spec: `config.data.source`; see the docstring of the module.
    invalid_text: 'error', 'replace' or 'skip'.
    counts: tally to add to; None: not counted.
    part: part to read. The documents of all parts, in order, and the sums of their tallies, are
      those of the whole source.
  Raises:
    ConfigError: at once, if `spec` is not a valid source.
    DataError: at once, if a source has no files; while reading, if text is not clean.
  """
  cleaner = TextCleaner(invalid_text, Counts() if counts is None else counts,
                        choice=", or set data.invalid_text to replace or skip")
  uncounted = TextCleaner(invalid_text, Counts(), choice=cleaner.choice)
  parsed = parse(spec)
  opened = []
  for source, owned in zip(parsed, pieces.divide(list_pieces(parsed), part.total), strict=True):
    before = [span for owner, span in owned if owner < part.number]
    spans = [span for owner, span in owned if owner == part.number]
    if spans:
      is_counted = before and not source.weight.is_integer()
      earlier = _open(source, uncounted, before) if is_counted else iter(())
      opened.append(weigh(_open(source, cleaner, spans), source.weight, earlier))
  return itertools.chain.from_iterable(opened)


def _open(source: Source, cleaner: TextCleaner, spans: list[Span]) -> Iterator[Document]:
  documents = _watched(SOURCE_KINDS[source.kind].open(source, cleaner, spans))
  if source.is_held_out:
    return (dataclasses.replace(document, is_held_out=True) for document in documents)
  return documents


def _watched(documents: Iterable[Document]) -> Iterator[Document]:
  """Yields documents; reading them, even to count or to skip them, renews the limit of a step."""
  for i, document in enumerate(documents):
    if i % WATCHED_DOCUMENTS == 0:
      watchdog.renew()
    yield document


def list_pieces(parsed: Iterable[Source]) -> list[Pieces]:
  """Returns the pieces of every source, from which parts are made.

  Args:
    parsed: result of `parse`.
  Raises:
    DataError: a source has no files.
  """
  return [pieces.cut_files({path: _size(path, info) for path, info in find_files(s).items()},
                           SOURCE_KINDS[s.kind].unit) if SOURCE_KINDS[s.kind].is_glob
          else Pieces(SOURCE, [Piece("", 0, 1)]) for s in parsed]


def find_files(source: Source) -> dict[str, Any]:
  """Returns the files of a source, or the shards of a dataset, as `paths.find_files` does.

  Args:
    source: the parsed source; pydocs has none.
  Raises:
    DataError: a source has no files, or TFDS cannot read the dataset.
  """
  return SOURCE_KINDS[source.kind].list_files(source)


def identity(spec: str, cache_dir: str, known: dict[str, str] | None = None) -> str:
  """Returns a SHA-256 (hex) that identifies the text of a source.

  It changes when the text does, but not when the files are moved.

  Args:
    spec: `config.data.source`.
    cache_dir: folder that keeps the digests of files, so that an unchanged file is read only once;
      see `digests` for how changes are noticed.
    known: SHA-256 (hex) of every file by its path, if it is known.
  Raises:
    ConfigError: `spec` is not a valid source.
    DataError: a source has no files, or TFDS does not know the dataset.
  """
  def hash_files(found: dict[str, Any]) -> dict[str, str]:
    if known is not None:
      return {path: known[path] for path in found}
    hashed = {path: info.digest for path, info in found.items() if info}
    return hashed or sha256_files(found, files.make_path(cache_dir))

  return _identify(spec, hash_files)


def outline(spec: str) -> str:
  """Returns a SHA-256 (hex) of all that identifies a source except what its files hold.

  Args:
    spec: `config.data.source`.
  Raises:
    ConfigError, DataError: see `identity`.
  """
  return _identify(spec, lambda files: dict.fromkeys(files, ""))


def _identify(spec: str, hash_files: Callable[[dict[str, Any]], dict[str, str]]) -> str:
  digest = hashlib.sha256()
  for source in parse(spec):
    weight = HELD_OUT if source.is_held_out else source.weight
    about = f"{source.kind} {source.split} {source.field} {weight}\n"
    # A command line in another encoding leaves surrogates.
    digest.update(about.encode(errors="surrogateescape"))
    for line in SOURCE_KINDS[source.kind].identify(source, hash_files):
      digest.update(line.encode(errors="surrogateescape") + b"\n")
  return digest.hexdigest()


# ------------------------------------------------------------------- specs


_WEIGHTED = re.compile(r"(?:(?P<weight>\d*\.?\d+|validation(?=\s*\*\s*[a-z]))\s*\*\s*)?"
                       r"(?P<kind>[^:]*):?(?P<rest>.*)", re.DOTALL)
_TFDS = re.compile(r"(?P<target>.+):(?P<split>[A-Za-z_][\w.-]*(?:\[[^\]]*\])?)")


def parse(spec: str) -> tuple[Source, ...]:
  """Parses 'kind:target,...'.

  Args:
    spec: `config.data.source`; see the docstring of the module.
  Raises:
    ConfigError: a part is not a valid source; the message names the part.
  """
  if "\0" in spec:
    raise ConfigError(f"data.source={spec!r}: no file has a NUL character in its name. Remove it")
  parts, parsed = _NEXT_SOURCE.split(spec), []
  while parts:
    # The name of a file may hold what looks like the next source.
    joined = (n for n in range(min(len(parts), MAX_COMMAS + 1), 1, -1)
              if _is_file(",".join(parts[:n])))
    size = next(joined, 1)
    parsed.append(_parse_one(",".join(parts[:size]).strip()))
    parts = parts[size:]
  return tuple(parsed)


def _is_file(part: str) -> bool:
  """Returns whether a part is the exact name of a file, with or without a field."""
  rest = _WEIGHTED.fullmatch(part.strip())["rest"]
  name, _, field = rest.rpartition("#")
  names = [rest] if _NEXT_SOURCE.search(field) else [rest, name]
  return any(os.path.isfile(os.path.expanduser(name)) for name in names)


def _parse_one(part: str) -> Source:
  match = _WEIGHTED.fullmatch(part)
  name, rest = match["kind"], match["rest"]
  is_held_out = match["weight"] == HELD_OUT[:-1]
  weight = 1.0 if is_held_out else float(match["weight"] or 1)
  if name not in SOURCE_KINDS:
    raise ConfigError(f"data.source: {part!r} is not a valid source. {_correct(part)}")
  if not 0 < weight <= MAX_WEIGHT:
    raise ConfigError(f"data.source: {part!r}: the weight must be greater than 0 and at most "
                      f"{MAX_WEIGHT:.0f}")
  kind = SOURCE_KINDS[name]
  malformed = ConfigError(f"data.source: {part!r} is malformed. Write {name}{kind.form}")
  if bool(rest) != bool(kind.form):
    raise malformed
  if problem := (files.find_problem(rest) if kind.is_glob else remote_problem(part)):
    raise ConfigError(f"data.source={problem}")
  if (place := kind.parse(rest)) is None:
    raise malformed
  return Source(name, *place, weight, is_held_out)


def _parse_glob_and_field(rest: str) -> Place:
  target, field = paths.split_field(os.path.expanduser(rest), "text")
  return target, "", field


def _parse_tfds(rest: str) -> Place | None:
  target, _, field = rest.rpartition("#") if "#" in rest else (rest, "", "text")
  match = _TFDS.fullmatch(target)
  return (match["target"], match["split"], field) if match else None


def _correct(part: str) -> str:
  """Returns the end of a message: what to write instead of a part without a valid kind."""
  match = _WEIGHTED.fullmatch(part)
  weight, star, kind = match["kind"].rpartition("*")
  if star and kind.strip() in SOURCE_KINDS:
    return (f"{weight.strip()!r} stands before its kind. Write one number such as 2 or 0.5 there, "
            "or only validation, which holds its documents out")
  whole = part[match.start("kind"):]
  for name in filter(None, (whole, match["rest"])):  # Without a kind, or with a wrong one.
    file, _ = paths.split_field(os.path.expanduser(name), "")
    ending = paths.find_ending(file)
    if ending in paths.UNREAD or paths.exists(file):
      return paths.correct(ending, part[:match.start("kind")], name)
  return ("Start it with one of "
          + ", ".join(name + kind.form for name, kind in SOURCE_KINDS.items()))


# ------------------------------------------------------------------- files


def _identify_files(source: Source, hash_files: Callable) -> Iterator[str]:
  found = find_files(source)
  for path, digest in hash_files(found).items():
    yield f"{_size(path, found[path])} {digest}"


def _size(path: str, info: Any) -> int:
  return info.st_size if info else files.size_of(path)


# ----------------------------------------------------------------- readers


def _open_text(source: Source, cleaner: TextCleaner, spans: list[Span], *,
               sentences_given: bool) -> Iterator[Document]:
  return itertools.chain.from_iterable(
      _read_text(span, sentences_given, cleaner) for span in spans)


def _read_text(span: Span, sentences_given: bool, cleaner: TextCleaner) -> Iterator[Document]:
  path = span.path
  for offset, block, is_last, is_cut in read_blocks(path, cleaner, *pieces.bounds(span, DOCUMENT)):
    text = cleaner.decode(block, path, offset)
    if text is not None:
      text = text.removesuffix("\n" * is_last)  # The line end before a blank line.
      whole = Document(text, sentences_given, path, offset)
      yield from make_documents(whole, cleaner.counts, is_cut=is_cut)


def _open_jsonl(source: Source, cleaner: TextCleaner, spans: list[Span]) -> Iterator[Document]:
  return itertools.chain.from_iterable(_read_jsonl(span, source.field, cleaner) for span in spans)


def _read_jsonl(span: Span, field: str, cleaner: TextCleaner) -> Iterator[Document]:
  path, (start, stop) = span.path, pieces.bounds(span, LINE)
  for offset, line in read_lines(path, cleaner, can_replace=False, start=start, stop=stop):
    if line is None or is_blank(line):
      continue
    record = cleaner.decode(line.rstrip(b"\r\n"), path, offset)
    text = record and _json_field(record, field, path, offset, cleaner)
    text = text and cleaner.clean(text, path, offset, is_escaped=True)
    if text is not None:
      yield from make_documents(Document(text, False, path, offset), cleaner.counts)


def _json_field(record: str, field: str, path: str, offset: int,
                cleaner: TextCleaner) -> str | None:
  try:
    value = parse_record(record, cleaner.counts)
  except ValueError as e:
    cleaner.reject("malformed JSON", path, offset, can_replace=False, hint=f"It {e}. {JSON_LINES}")
    return None
  text = fields.find_text(value, field)
  if text is None:
    problem = f"no text in field {field!r} of the JSON object"
    hint, repair = fields.advise(value, field)
    cleaner.reject(problem, path, offset, can_replace=False, hint=hint, repair=repair)
    return None
  return text


def _open_parquet(source: Source, cleaner: TextCleaner, spans: list[Span], *,
                  sentences_given: bool) -> Iterator[Document]:
  rows = parquet.open_files([span.path for span in spans], source.field)
  texts = (parquet.gather(rows, cleaner.counts) if sentences_given
           else ((place, values, False) for place, values in rows))
  return _read_rows(texts, sentences_given, cleaner)


def _read_rows(rows: Iterable[tuple[str, list[bytes], bool]], sentences_given: bool,
               cleaner: TextCleaner) -> Iterator[Document]:
  for place, values, is_cut in rows:
    texts = [cleaner.decode(value, place, 0) for value in values]
    if None not in texts:
      whole = Document(fields.join(texts), sentences_given, place)
      yield from make_documents(whole, cleaner.counts, is_cut=is_cut)


def _open_tfds(source: Source, cleaner: TextCleaner, spans: list[Span]) -> Iterator[Document]:
  del spans  # The whole dataset is read.
  return _read_records(datasets.open_dataset(source.target, source.split), source, cleaner)


def _read_records(records, source: Source, cleaner: TextCleaner) -> Iterator[Document]:
  name = f"tfds:{source.target}:{source.split}"
  for i, record in datasets.read_dataset(records, name):
    path = f"{name} record {i}"
    value = datasets.find_value(record, source.field, name)
    text = datasets.take_text(value, source.field, path, cleaner)
    if text is not None:
      yield from make_documents(Document(text, False, path), cleaner.counts)


def _identify_tfds(source: Source, hash_files: Callable) -> Iterator[str]:
  info = datasets.open_builder(source.target).info
  for name, split in sorted(info.splits.items()):
    yield f"{info.full_name} {name} {split.num_examples} {split.num_bytes} {split.shard_lengths}"
  # A dataset that is prepared again may have other texts with the same sizes.
  yield from filter(None, hash_files(find_files(source)).values())


def _open_pydocs(source: Source, cleaner: TextCleaner, spans: list[Span]) -> Iterator[Document]:
  del source, cleaner, spans  # Everything is read.
  for name, paragraphs in pydocs.read_documents():
    yield Document("\n".join(paragraphs), False, name)


@dataclasses.dataclass(frozen=True)
class SourceKind:
  """One kind of source: the form of its target, how it is opened, cut, parsed and identified.

  With one sentence per row, documents continue from file to file, so such a source is not cut.
  """
  form: str
  open: Callable[[Source, TextCleaner, list[Span]], Iterator[Document]]
  unit: str = SOURCE
  parse: Callable[[str], Place | None] = lambda rest: (os.path.expanduser(rest), "", "text")
  list_files: Callable[[Source], dict[str, Any]] = lambda source: paths.find_files(source.target)
  identify: Callable[[Source, Callable], Iterable[str]] = _identify_files
  is_glob: bool = True
  is_plain_text: bool = False


SOURCE_KINDS = {
    "pydocs": SourceKind("", _open_pydocs, list_files=lambda source: {},
                         identify=lambda source, hash_files: pydocs.identify(), is_glob=False),
    "text": SourceKind(":GLOB", functools.partial(_open_text, sentences_given=True), DOCUMENT,
                       is_plain_text=True),
    "text+paragraphs": SourceKind(":GLOB", functools.partial(_open_text, sentences_given=False),
                                  DOCUMENT, is_plain_text=True),
    "jsonl": SourceKind(":GLOB#field", _open_jsonl, LINE, _parse_glob_and_field),
    "parquet": SourceKind(":GLOB#column", functools.partial(_open_parquet, sentences_given=False),
                          FILE, _parse_glob_and_field),
    "parquet+sentences": SourceKind(
        ":GLOB#column", functools.partial(_open_parquet, sentences_given=True),
        parse=_parse_glob_and_field),
    "tfds": SourceKind(":name/config:split#feature", _open_tfds, parse=_parse_tfds,
                       list_files=lambda source: dict.fromkeys(
                           datasets.list_shards(source.target, source.split)),
                       identify=_identify_tfds, is_glob=False),
}
# Commas before the name of a kind, known or misspelled; others are part of the name of a file.
_KIND = "|".join(re.escape(n) + (":" if k.form else r"\s*(?:,|$)") for n, k in SOURCE_KINDS.items())
_NEXT_SOURCE = re.compile(rf",(?=\s*(?:(?:[\d.]+|validation)\s*\*\s*)?(?:[a-z+]+:|{_KIND}))")
