"""Documents from the places where text lies, one at a time and in a fixed order.

A source is one string; several are joined by commas:

| source                        | what it reads                                                  |
|-------------------------------|----------------------------------------------------------------|
| `pydocs`                      | the documentation that every Python installation carries       |
| `text:GLOB`                   | one sentence a line, a blank line between documents            |
| `text+paragraphs:GLOB`        | running text: one paragraph a line, blank lines as above       |
| `jsonl:GLOB#field`            | running text: one JSON object a line (`#text` if not given)    |
| `tfds:name/config:split#feature`   | running text: a dataset prepared by TFDS as ArrayRecord   |
| `tfds:/prepared/folder:split#feature` | the same, by its folder                                |

A number before a source is its weight in documents: `2*text:a.txt,0.5*jsonl:b.jsonl` reads
every document of the first twice and every second document of the second. Files may end in
.gz, .xz or .zst. Globs know `**`; files are read in the order of their names.

What is not clean text is treated as `data.invalid_text` says and tallied in `Counts`:

| found                                    | error      | replace                | skip          |
|------------------------------------------|------------|------------------------|---------------|
| invalid UTF-8, NUL, lone surrogate       | DataError  | U+FFFD in its place    | drop document |
| a line of more than `MAX_LINE_BYTES`     | DataError  | cut; JSON: drop it     | drop document |
| a line of JSON without the text          | DataError  | drop document          | drop document |

A DataError names the file and the byte, counted in the decompressed stream. Never an error, only
tallied: a byte-order mark at the start of a file and carriage returns (removed), documents
without text (dropped), documents of one word (kept), documents of more than
`MAX_DOCUMENT_BYTES` (cut into several, between paragraphs where possible). So these two
constants, 16 MiB and 4 MiB, bound the memory, whatever the input.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import sentencex

from bertgpt.config import remote_problem
from bertgpt.data.text import pydocs
from bertgpt.data.text.digests import sha256_files
from bertgpt.data.text.intake import MAX_DOCUMENT_BYTES, Counts, Intake, read_blocks, read_lines
from bertgpt.errors import ConfigError, DataError, one_line

MAX_SENTENCE_CHARS = 1 << 14  # What is longer is no sentence; a tokenizer's memory grows with it.


@dataclasses.dataclass(frozen=True)
class Document:
  """One document and where it was found.

  Attributes:
    paragraphs: text without line breaks, none empty.
    sentences_given: every paragraph is one sentence already.
    path: file; for datasets, name and number of the record.
    offset: byte of the decompressed file where it starts.
  """
  paragraphs: tuple[str, ...]
  sentences_given: bool
  path: str = ""
  offset: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
  """One parsed source.

  Attributes:
    kind: key of `READERS`.
    target: glob, dataset name or folder.
    split: of a dataset.
    field: of the JSON objects, or feature of the dataset.
    weight: how often every document is read.
  """
  kind: str
  target: str = ""
  split: str = ""
  field: str = ""
  weight: float = 1.0


def open_source(spec: str, *, invalid_text: str = "error",
                counts: Counts | None = None) -> Iterator[Document]:
  """Opens a source and yields its documents, in an order that depends on the files only.

  Args:
    spec: see the module's docstring.
    invalid_text: error | replace | skip.
    counts: tally to add to.
  Raises:
    ConfigError: at once, when `spec` is no source.
    DataError: at once, when a source has no files; while reading, when text is not clean.
  """
  intake = Intake(invalid_text, Counts() if counts is None else counts)
  opened = [(source, READERS[source.kind].open(source, intake)) for source in parse(spec)]
  return itertools.chain.from_iterable(
      _weigh(documents, source.weight) for source, documents in opened)


def identity(spec: str, cache_dir: str) -> str:
  """SHA-256 (hex) of what the source will read.

  It changes when the text does, and not when the files are moved.

  Args:
    cache_dir: remembers the digests of files, so that an unchanged one is read once; see
      `digests` for what is trusted.
  """
  digest = hashlib.sha256()
  for source in parse(spec):
    kind = READERS[source.kind]
    digest.update(f"{source.kind} {source.split} {source.field} {source.weight}\n".encode())
    for line in kind.identify(source, pathlib.Path(cache_dir).expanduser()):
      digest.update(line.encode() + b"\n")
  return digest.hexdigest()


def split_sentences(document: Document, language: str) -> list[str]:
  """The sentences of a document, in order, none empty.

  Args:
    language: ISO 639-1; abbreviations and quotes are treated by its rules. An end mark of any
      script ends a sentence in every language.
  """
  if document.sentences_given:
    sentences = document.paragraphs
  else:
    sentences = itertools.chain.from_iterable(
        _split_paragraph(p, language) for p in document.paragraphs)
  pieces = (piece for s in sentences for piece in cut_at_spaces(s, MAX_SENTENCE_CHARS))
  return [piece for piece in pieces if not piece.isspace()]


def _split_paragraph(paragraph: str, language: str) -> Iterator[str]:
  sentence = ""
  for segment in sentencex.segment(language, paragraph):
    sentence += segment
    # sentencex also cuts "os.path": a mark in ASCII ends a sentence only before a space.
    if segment[-1].isspace() or not segment[-1].isascii():
      if sentence := sentence.strip():
        yield sentence
      sentence = ""
  if sentence := sentence.strip():
    yield sentence


def cut_at_spaces(text: str, max_chars: int) -> list[str]:
  """Cuts `text` into pieces of at most `max_chars`, at spaces where there are any."""
  pieces, start = [], 0
  while len(text) - start > max_chars:
    space = text.rfind(" ", start + 1, start + max_chars + 1)
    cut = space if space > 0 else start + max_chars
    pieces.append(text[start:cut])
    start = cut + (space > 0)
  return [*pieces, text[start:]]


# ------------------------------------------------------------------- specs


_NEXT_SOURCE = re.compile(r",(?=(?:[\d.]+\*)?(?:[a-z+]+:|pydocs(?:,|$)))")
_WEIGHTED = re.compile(r"(?:(?P<weight>\d*\.?\d+)\*)?(?P<kind>[^:]*):?(?P<rest>.*)", re.DOTALL)
_TFDS = re.compile(r"(?P<target>.+):(?P<split>[A-Za-z_]\w*(?:\[[^\]]*\])?)")


def parse(spec: str) -> tuple[Source, ...]:
  """Parses 'kind:target,...'.

  Raises:
    ConfigError: names the part that is no source.
  """
  return tuple(_parse_one(part.strip()) for part in _NEXT_SOURCE.split(spec))


def _parse_one(part: str) -> Source:
  match = _WEIGHTED.fullmatch(part)
  kind, rest = match["kind"], match["rest"]
  weight = float(match["weight"] or 1)
  if kind not in READERS:
    raise ConfigError(f"data.source: {part!r} is no source; it starts with one of "
                      f"{', '.join(READERS)} (see bertgpt/data/text/sources.py)")
  if weight <= 0:
    raise ConfigError(f"data.source: {part!r}: the weight must be above 0")
  if bool(rest) != bool(READERS[kind].form):
    raise ConfigError(f"data.source: {part!r}: write {kind}{READERS[kind].form}")
  if problem := remote_problem(part):
    raise ConfigError(f"data.source={problem}")
  target, field = rest, "text"
  if "#" in READERS[kind].form and "#" in rest:
    target, _, field = rest.rpartition("#")
  if kind != "tfds":
    return Source(kind, os.path.expanduser(target), "", field, weight)
  name = _TFDS.fullmatch(target)
  if name is None:
    raise ConfigError(f"data.source: {part!r}: write tfds{READERS[kind].form}")
  return Source(kind, name["target"], name["split"], field, weight)


def _weigh(documents: Iterable[Document], weight: float) -> Iterator[Document]:
  """Document i is read floor((i + 1) w) - floor(i w) times."""
  if weight == 1:
    yield from documents
    return
  for i, document in enumerate(documents):
    yield from itertools.repeat(document, math.floor((i + 1) * weight) - math.floor(i * weight))


# ------------------------------------------------------------------- files


def _find_files(source: Source) -> list[str]:
  paths = sorted(p for p in glob.glob(source.target, recursive=True) if os.path.isfile(p))
  if not paths:
    raise DataError(f"data.source: no file matches {source.target!r}; "
                    "give an existing path or glob (relative to the current directory)")
  for path in paths:
    if not os.access(path, os.R_OK):
      raise DataError(f"data.source: {path} may not be read; change its permissions")
  return paths


def _identify_files(source: Source, cache_dir: pathlib.Path) -> Iterator[str]:
  for path, digest in sha256_files(_find_files(source), cache_dir).items():
    yield f"{os.path.getsize(path)} {digest}"


# --------------------------------------------------------------- documents


_ONE_WORD = re.compile(r"\w{1,40}\W{0,3}")


def _make_documents(whole: Document, counts: Counts) -> Iterator[Document]:
  """The document with its text parted at line breaks: none if empty, several if too long."""
  text, = whole.paragraphs
  if "\r" in text:
    counts["carriage returns removed"] += text.count("\r")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
  paragraphs = list(filter(None, map(str.strip, text.split("\n"))))
  if not paragraphs:
    counts["documents without text: skipped"] += 1
    return
  if len(paragraphs) == 1 and _ONE_WORD.fullmatch(paragraphs[0]):
    counts["documents of one word"] += 1
  if len(text) * 4 <= MAX_DOCUMENT_BYTES:
    yield dataclasses.replace(whole, paragraphs=tuple(paragraphs))
    return
  groups = list(_group(paragraphs))
  if len(groups) > 1:
    counts["long documents cut"] += 1
  for group in groups:
    yield dataclasses.replace(whole, paragraphs=tuple(group))


def _group(paragraphs: list[str]) -> Iterator[list[str]]:
  """Paragraphs in groups of at most `MAX_DOCUMENT_BYTES`; longer ones are cut at spaces."""
  group, size = [], 0
  for piece in (p for long in paragraphs for p in cut_at_spaces(long, MAX_DOCUMENT_BYTES // 4)):
    length = len(piece.encode())
    if group and size + length > MAX_DOCUMENT_BYTES:
      yield group
      group, size = [], 0
    group.append(piece)
    size += length
  yield group


# ----------------------------------------------------------------- readers


def _open_text(source: Source, intake: Intake, *, sentences_given: bool) -> Iterator[Document]:
  return itertools.chain.from_iterable(
      _read_text(path, sentences_given, intake) for path in _find_files(source))


def _read_text(path: str, sentences_given: bool, intake: Intake) -> Iterator[Document]:
  for offset, block in read_blocks(path, intake):
    text = intake.decode(block, path, offset)
    if text is not None:
      yield from _make_documents(Document((text,), sentences_given, path, offset), intake.counts)


def _open_jsonl(source: Source, intake: Intake) -> Iterator[Document]:
  return itertools.chain.from_iterable(
      _read_jsonl(path, source.field, intake) for path in _find_files(source))


def _read_jsonl(path: str, field: str, intake: Intake) -> Iterator[Document]:
  for offset, line in read_lines(path, intake, mendable=False):
    if line is None or not line.strip():
      continue
    record = intake.decode(line, path, offset)
    text = record and _json_field(record, field, path, offset, intake)
    text = text and intake.clean(text, path, offset)
    if text is not None:
      yield from _make_documents(Document((text,), False, path, offset), intake.counts)


def _json_field(record: str, field: str, path: str, offset: int, intake: Intake) -> str | None:
  try:
    value = json.loads(record)
  except (json.JSONDecodeError, RecursionError):
    return intake.reject("malformed JSON", path, offset, mendable=False)
  text = value.get(field) if isinstance(value, dict) else None
  if not isinstance(text, str):
    problem = f"no text in field {field!r} of the JSON object"
    return intake.reject(problem, path, offset, mendable=False)
  return text


def _open_tfds(source: Source, intake: Intake) -> Iterator[Document]:
  return _read_records(open_dataset(source.target, source.split), source, intake)


def _read_records(records, source: Source, intake: Intake) -> Iterator[Document]:
  name = f"tfds:{source.target}:{source.split}"
  for i, record in read_dataset(records, name):
    value, path = _feature(record, source, name), f"{name} record {i}"
    make_clean = intake.decode if isinstance(value, bytes) else intake.clean
    text = make_clean(value, path, 0)
    if text is not None:
      yield from _make_documents(Document((text,), False, path), intake.counts)


def open_dataset(target: str, split: str, field: str = "data.source") -> Sequence:
  """The records of a split of a dataset prepared by TFDS, for random access.

  Args:
    target: name/config:version, or a folder.
    field: of the config, for messages.
  Raises:
    DataError: there is no such dataset or split, or it is not prepared.
  """
  builder = open_builder(target, field)
  try:
    return builder.as_data_source(split=split)
  except Exception as e:  # TFDS raises its own and bare errors for one cause.
    raise DataError(f"{field}: tfds:{target}:{split} cannot be read "
                    f"({one_line(e)}); prepare it with tfds.builder({target!r}, "
                    "file_format='array_record').download_and_prepare()") from e


def read_dataset(records: Sequence, name: str) -> Iterator[tuple[int, dict]]:
  """(number, record) of every record.

  Args:
    name: for messages.
  """
  for first in range(0, len(records), 256):
    batch = range(first, min(first + 256, len(records)))
    try:
      values = records.__getitems__(list(batch))
    except Exception as e:  # ArrayRecord and the decoders of TFDS raise bare errors.
      raise DataError(f"{name}: records from {first} cannot be read ({one_line(e)}); "
                      "prepare the dataset again") from e
    yield from zip(batch, values, strict=True)


def _feature(record, source: Source, name: str) -> bytes | str:
  for key in source.field.split("/"):
    if not isinstance(record, dict) or key not in record:
      raise DataError(f"{name}: no feature {source.field!r}; choose one of {', '.join(record)}")
    record = record[key]
  if not isinstance(record, (bytes, str)):
    raise DataError(f"{name}: feature {source.field!r} is no text")
  return record


def open_builder(target: str, field: str = "data.source"):
  """The TFDS builder of a dataset. Arguments as of `open_dataset`."""
  # TFDS takes seconds to import and few sources need it.
  import tensorflow_datasets as tfds
  is_folder = target.startswith((".", "/", "~"))
  try:
    if is_folder:
      return tfds.builder_from_directory(os.path.expanduser(target))
    return tfds.builder(target)
  except Exception as e:  # As above.
    raise DataError(f"{field}: TFDS knows no dataset {target!r} ({one_line(e)}); "
                    "give name/config:version or the folder of a prepared one") from e


def _identify_tfds(source: Source, cache_dir: pathlib.Path) -> Iterator[str]:
  del cache_dir
  info = open_builder(source.target).info
  for name, split in sorted(info.splits.items()):
    yield f"{info.full_name} {name} {split.num_examples} {split.num_bytes} {split.shard_lengths}"


def _open_pydocs(source: Source, intake: Intake) -> Iterator[Document]:
  for name, paragraphs in pydocs.read_documents():
    yield Document(paragraphs, False, name)


@dataclasses.dataclass(frozen=True)
class _Kind:
  """How one kind of source is written, opened and identified."""
  form: str
  open: Callable[[Source, Intake], Iterator[Document]]
  identify: Callable[[Source, pathlib.Path], Iterable[str]] = _identify_files


READERS = {
    "pydocs": _Kind("", _open_pydocs, lambda source, cache_dir: pydocs.identify()),
    "text": _Kind(":GLOB", functools.partial(_open_text, sentences_given=True)),
    "text+paragraphs": _Kind(":GLOB", functools.partial(_open_text, sentences_given=False)),
    "jsonl": _Kind(":GLOB#field", _open_jsonl),
    "tfds": _Kind(":name/config:split#feature", _open_tfds, _identify_tfds),
}
