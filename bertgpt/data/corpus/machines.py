"""Preparing a corpus on several machines: parts of the source, and their merging.

    prepare_part    documents of a part -> OUT.parts/part-00003-of-00007
    merge           all parts -> the corpus OUT, with the bytes that `prepare` makes of the source
    sample_part, train_tokenizer     the same for a tokenizer that is trained -> OUT.parts/tokenizer

A part holds the encoded documents in order. The merge reads the parts one after the other and does
what `prepare` does with documents that come from its workers, so that there is only one way from
documents to a corpus. Parts do not depend on each other: they may be made in any order and on any
machine that reads the source and writes to OUT.parts.

`part.json` is written last. It describes what the part was made from, and holds the SHA-256 of the
files of the source that begin in the part, so that no machine reads all of the source.
"""

import contextlib
import itertools
import json
import pathlib
import re
from collections.abc import Generator, Iterator

import numpy as np

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import encode, prepare, publishing
from bertgpt.data.corpus.writer import EncodedDocument
from bertgpt.data.text import pieces, sources
from bertgpt.data.text.digests import read_states, sha256_file, sha256_files
from bertgpt.data.text.documents import Document, check_language
from bertgpt.data.text.pieces import Part
from bertgpt.data.tokens import tokenizers
from bertgpt.devices import watchdog
from bertgpt.errors import ConfigError, DataError

# Versions of what an encoded part holds, and of samples and tokenizers.
PART_VERSION, TRAINING_VERSION = 3, 1
ENCODED, SAMPLE, TOKENIZER = "part", "sample", "tokenizer"  # What OUT.parts holds.
INFO = "part.json"
SAMPLE_FILE = "documents.jsonl"

# A document of a part. Its record and the lengths of its sentences are in separate files.
DOCUMENT = np.dtype([("key", "<u8"), ("record", "<i8"), ("sentences", "<i8"),
                     ("text_bytes", "<i8"), ("unknown", "<i8"), ("unknown_bytes", "<i8"),
                     ("max_id", "<i8")])
FILES = ("documents", "records", "sentence_lengths")
_DOCUMENTS_AT_ONCE = 2**12
_NAME = re.compile(r"(part|sample)-(\d+)-of-(\d+)")


def parts_folder(out: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the parts of a corpus."""
  return out.with_name(f"{out.name}.parts")


def part_path(out: pathlib.Path, part: Part, kind: str = ENCODED) -> pathlib.Path:
  """Returns the folder of a part.

  Args:
    out: folder of the corpus.
    part: the part.
    kind: ENCODED or SAMPLE.
  """
  return parts_folder(out) / f"{kind}-{part.number:05d}-of-{part.total:05d}"


# ------------------------------------------------------------------- parts


def prepare_part(config: ConfigDict, out: pathlib.Path, part: Part) -> pathlib.Path:
  """Encodes the documents of a part. Does nothing if the same part is there already.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    out: folder of the corpus, which `merge` makes.
    part: the part.
  Returns:
    The folder of the part.
  Raises:
    ConfigError: the tokenizer is not trained yet, or the folder holds something else.
    DataError: the source or the tokenizer is unusable, or the source changes while it is read.
    StorageError: a file could not be written.
  """
  prepare.check_own_files(config, parts_folder(out))
  tokenizer, saved = _find_tokenizer(config, out)
  recipe = _describe(config, tokenizer)
  path = part_path(out, part)

  def build(folder: pathlib.Path) -> None:
    check_language(config.data.language)
    prepare.check_endings(config.data.source)
    here = saved or folder / corpus_lib.TOKENIZER
    if not saved:
      tokenizer.save(here)
    skipped = sources.Counts()
    with _unchanged_source(config, out, part):
      encoded = prepare.encode_source(config, here, tokenizer, skipped, part)
      with contextlib.closing(encoded):
        num_documents = _write_documents(folder, encoded)
      with watchdog.paused():
        digests = _digest_source(config, part)
    with watchdog.paused():
      info = {"recipe": recipe, "part": str(part), "documents": num_documents,
              "skipped": dict(skipped), "digests": digests,
              "files": {name: _describe_file(folder / name) for name in FILES}}
    files.write_json(folder / INFO, info)

  publishing.publish(path, lambda: _is_done(path, recipe), build, INFO)
  return path


def _write_documents(folder: pathlib.Path, encoded: Iterator[EncodedDocument]) -> int:
  """Writes the documents of a part and returns their number."""
  count = 0
  with contextlib.ExitStack() as stack:
    rows, records, lengths = (stack.enter_context(open(folder / name, "wb")) for name in FILES)
    for document in encode.with_progress(encoded):
      row = (document.key, len(document.record), len(document.sentence_lengths),
             document.text_bytes, document.num_unknown, document.unknown_bytes, document.max_id)
      rows.write(np.array(row, DOCUMENT).tobytes())
      records.write(document.record)
      lengths.write(document.sentence_lengths.astype("<i4").tobytes())
      count += 1
  return count


def _read_documents(folder: pathlib.Path) -> Iterator[EncodedDocument]:
  with contextlib.ExitStack() as stack:
    rows, records, lengths = (stack.enter_context(files.open_read(folder / name))
                              for name in FILES)
    while block := rows.read(_DOCUMENTS_AT_ONCE * DOCUMENT.itemsize):
      rows_read = np.frombuffer(block, DOCUMENT).tolist()
      for key, size, sentences, *counts in rows_read:
        sentence_lengths = np.frombuffer(lengths.read(4 * sentences), "<i4")
        yield EncodedDocument(key, records.read(size), sentence_lengths, *counts)
      watchdog.renew()


@contextlib.contextmanager
def _unchanged_source(config: ConfigDict, out: pathlib.Path, part: Part) -> Iterator[None]:
  """Raises an error at the end if what a part reads of the source is not what it was before."""
  before = _read_states(config, part)
  yield
  if _read_states(config, part) != before:
    prepare.raise_changed(config, parts_folder(out))


def _read_states(config: ConfigDict, part: Part) -> list[tuple[list[pieces.Span], dict]]:
  """Returns (spans, path -> state) of what a part reads, for every source."""
  parsed, states = sources.parse(config.data.source), []
  divided = pieces.divide(sources.list_pieces(parsed), part.total)
  for source, owned in zip(parsed, divided, strict=True):
    # Documents of earlier parts are counted, see `sources.open_source`.
    first = part.number if source.weight.is_integer() else 0
    spans = [span for owner, span in owned if first <= owner <= part.number]
    names = {span.path for span in spans}  # '' is the whole source.
    found = sources.find_files(source) if spans else {}
    states.append((spans, read_states({path: info for path, info in found.items()
                                       if names & {path, ""}})))
  return states


def _digest_source(config: ConfigDict, part: Part) -> dict:
  """Returns digests of the source files from which a part reads something.

  Returns:
    {"files": "SOURCE FILE" -> SHA-256 of the files that begin in the part,
     "spans": see `pieces.digest_spans`}, in hex, with indices from 0.
  """
  parsed = sources.parse(config.data.source)
  listed = sources.list_pieces(parsed)
  begins: dict[str, str] = {}
  for s, (source, spans) in enumerate(zip(parsed, pieces.divide(listed, part.total), strict=True)):
    firsts = ([(owner, span.path) for owner, span in spans if span.path and not span.start]
              or [(spans[0][0], shard) for shard in sources.find_files(source)])
    begins |= {f"{s} {f}": path for f, (owner, path) in enumerate(firsts) if owner == part.number}
  hashed = sha256_files(sorted(set(begins.values())), files.make_path(config.data.cache_dir))
  return {"files": {name: hashed[path] for name, path in begins.items()},
          "spans": pieces.digest_spans(listed, part)}


def _describe_file(path: pathlib.Path) -> dict:
  return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _describe(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> dict:
  """Returns what all parts of a corpus must have been made from."""
  loaded = tokenizer if config.tokenizer.path else None
  return {"part_version": PART_VERSION,
          "format_version": corpus_lib.FORMAT_VERSION,
          "source_outline": sources.outline(config.data.source),
          "tokenizer": prepare.describe_choice(config, loaded),
          "fingerprint": tokenizer.fingerprint(),
          "options": prepare.describe_options(config)}


def _is_done(path: pathlib.Path, recipe: dict) -> bool:
  """Returns whether a folder is complete; False if it is missing or only half uploaded.

  Raises:
    ConfigError: it was made from something else.
  """
  if (path / INFO).is_file() and _read_info(path).get("recipe") == recipe:
    return True
  if path.exists() and not (files.is_remote(path) and not (path / INFO).is_file()):
    raise ConfigError(f"{path}: was not made from this source, tokenizer and options. Delete it, "
                      "or give another --out")
  return False


def _read_info(path: pathlib.Path) -> dict:
  return files.read_json(path / INFO, f"Delete {path} and make it again")


# ------------------------------------------------------------------- merge


def merge(config: ConfigDict, out: pathlib.Path) -> pathlib.Path:
  """Makes the corpus of all parts and prints a report. The parts stay.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    out: folder of the corpus.
  Returns:
    The folder of the corpus.
  Raises:
    ConfigError: `out` holds something else.
    DataError: a part is missing, damaged, or was made from something else, or a split would have no
      document.
    StorageError: a file could not be written.
  """
  prepare.check_own_files(config, parts_folder(out))
  tokenizer, _ = _find_tokenizer(config, out)
  infos = _read_parts(out, ENCODED, _describe(config, tokenizer))
  known = _join_digests(config, infos)
  recipe = prepare.make_recipe(config, tokenizer if config.tokenizer.path else None, known)

  def build(folder: pathlib.Path, recipe: dict) -> dict:
    tokenizer.save(folder / corpus_lib.TOKENIZER)
    skipped = sum((sources.Counts(info["skipped"]) for info in infos.values()), sources.Counts())
    return prepare.write_corpus(config, folder, recipe, tokenizer, _read_all(infos), skipped)

  return publishing.publish_corpus(out, recipe, build)


def _read_all(infos: dict[pathlib.Path, dict]) -> Generator[EncodedDocument, None, None]:
  """Yields the documents of all parts; every part is checked before it is read."""
  for path, info in infos.items():
    _check_files(path, info)
    yield from _read_documents(path)


def _check_files(path: pathlib.Path, info: dict) -> None:
  """Checks that the files of a part are those that its `part.json` describes."""
  with watchdog.paused():
    for name, expected in info["files"].items():
      if not (path / name).is_file() or _describe_file(path / name) != expected:
        raise DataError(f"{path / name}: damaged (its size or SHA-256 differs from {INFO}). "
                        f"Delete {path} and make it again")


def _read_parts(out: pathlib.Path, kind: str, recipe: dict) -> dict[pathlib.Path, dict]:
  """Returns folder -> content of `part.json` of all parts in order.

  Args:
    out: folder of the corpus.
    kind: ENCODED or SAMPLE.
    recipe: what they must have been made from.
  Raises:
    DataError: a part is missing, was made from something else, or is a copy of another part.
  """
  folder, flag = parts_folder(out), "--part" if kind == ENCODED else "--train_tokenizer --part"
  found = {(int(match[3]), int(match[2])): path for path in folder.glob(f"{kind}-*")
           if (match := _NAME.fullmatch(path.name)) and (path / INFO).is_file()}
  totals = sorted({total for total, _ in found})
  if not totals:
    raise DataError(f"{folder}: holds no {kind}. Make each one with {flag} I/N")
  if len(totals) > 1:
    raise DataError(f"{folder}: holds {kind}s of several divisions, into "
                    f"{' and '.join(map(str, totals))}. Keep those of one, and delete the others")
  total = totals[0]
  if beyond := [path for (_, number), path in found.items() if number >= total]:
    raise DataError(f"{beyond[0]}: a division into {total} has no such {kind}. Delete it")
  first = next((i for i in range(total) if (total, i) not in found), None)
  if first is not None:
    raise DataError(f"{part_path(out, Part(first, total), kind)}: missing ({kind}s made so far: "
                    f"{len(found)} of {total}). Make it with {flag} {first}/{total}")
  infos = {path: _read_info(path) for _, path in sorted(found.items())}
  for number, (path, info) in enumerate(infos.items()):
    part = str(Part(number, total))
    problem = ("was not made from this source, tokenizer and options"
               if info.get("recipe") != recipe else
               # Earlier versions did not write down which part it is.
               "is a copy of another part" if info.get("part", part) != part else "")
    if problem:
      raise DataError(f"{path}: {problem}. Delete it, and make it with {flag} {part}")
  return infos


def _join_digests(config: ConfigDict, infos: dict[pathlib.Path, dict]) -> dict[str, str]:
  """Returns the SHA-256 (hex) of every file of the source by its path, as the parts read it.

  Raises:
    DataError: two parts read different files of one name.
  """
  hashed, spans = {}, {}
  for path, info in infos.items():
    hashed |= info["digests"]["files"]
    for name, digests in info["digests"]["spans"].items():
      for part, digest in digests.items():
        if spans.setdefault((name, part), digest) != digest:
          raise DataError(f"{path}: the text changed before this part was made, or after. Delete "
                          f"all of {path.parent} and make the parts again")
  known, parsed = {}, sources.parse(config.data.source)
  for s, (source, listed) in enumerate(zip(parsed, sources.list_pieces(parsed), strict=True)):
    paths = (dict.fromkeys(piece.path for piece in listed.pieces if piece.path)
             or sources.find_files(source))
    known |= {path: hashed[f"{s} {f}"] for f, path in enumerate(paths)}
  return known


# --------------------------------------------------------------- tokenizer


def sample_part(config: ConfigDict, out: pathlib.Path, part: Part) -> pathlib.Path:
  """Writes the documents of a part that may be in the sample on which a tokenizer is trained.

  The sample consists of the documents with the largest keys. A document that is not in the sample
  of its part is not in that of the source either, so the samples of all parts together contain the
  sample of the source.

  Args:
    config, out, part: see `prepare_part`.
  Returns:
    The folder of the sample.
  Raises:
    UserError: see `prepare_part`.
  """
  prepare.check_own_files(config, parts_folder(out))
  recipe, path = _describe_training(config), part_path(out, part, SAMPLE)

  def build(folder: pathlib.Path) -> None:
    documents = sources.open_source(config.data.source, invalid_text=config.data.invalid_text,
                                    part=part)
    border = prepare.validation_border(config.data.validation_fraction)
    with open(folder / SAMPLE_FILE, "w", encoding="utf-8") as f:
      for document in prepare.sample_documents(documents, config.tokenizer.train_bytes, border):
        f.write(json.dumps([document.text, document.sentences_given]) + "\n")
    info = {"recipe": recipe, "part": str(part),
            "files": {SAMPLE_FILE: _describe_file(folder / SAMPLE_FILE)}}
    files.write_json(folder / INFO, info)

  publishing.publish(path, lambda: _is_done(path, recipe), build, INFO)
  return path


def train_tokenizer(config: ConfigDict, out: pathlib.Path, *, merges: bool) -> pathlib.Path:
  """Trains the tokenizer that the parts of a corpus are encoded with.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    out: folder of the corpus.
    merges: whether to train it on the samples of all parts, which gives the same tokenizer as
      training on the source.
  Returns:
    The folder of the tokenizer.
  Raises:
    UserError: see `prepare_part` and `merge`.
  """
  prepare.check_own_files(config, parts_folder(out))
  recipe, path = _describe_training(config), parts_folder(out) / TOKENIZER
  if merges:
    samples = _read_parts(out, SAMPLE, recipe)
    documents = itertools.chain.from_iterable(map(_read_sample, samples, samples.values()))
  else:
    documents = sources.open_source(config.data.source, invalid_text=config.data.invalid_text)

  def build(folder: pathlib.Path) -> None:
    prepare.train_tokenizer(config, documents).save(folder / corpus_lib.TOKENIZER)
    files.write_json(folder / INFO, {"recipe": recipe})

  publishing.publish(path, lambda: _is_done(path, recipe), build, INFO)
  return path


def _read_sample(folder: pathlib.Path, info: dict) -> Iterator[Document]:
  _check_files(folder, info)
  with files.open_read(folder / SAMPLE_FILE) as f:
    for line in f:
      yield Document(*json.loads(line))


def _describe_training(config: ConfigDict) -> dict:
  """Returns what a trained tokenizer, and the samples for it, are made from.

  Raises:
    ConfigError: the config names a tokenizer, so none is trained, or an unknown language.
  """
  check_language(config.data.language)
  prepare.check_endings(config.data.source)
  if config.tokenizer.path:
    raise ConfigError(f"--train_tokenizer: tokenizer.path={config.tokenizer.path} names a "
                      "tokenizer. Leave it empty to train one, or leave out the flag")
  return {"part_version": TRAINING_VERSION,
          "source_outline": sources.outline(config.data.source),
          "tokenizer": prepare.describe_choice(config),
          "options": prepare.describe_options(config)}


def _find_tokenizer(config: ConfigDict,
                    out: pathlib.Path) -> tuple[tokenizers.Tokenizer, pathlib.Path | None]:
  """Returns the tokenizer of a config, and its folder if it was trained for the parts.

  Raises:
    ConfigError: it must be trained first, or was trained on something else.
  """
  if config.tokenizer.path:
    return prepare.load_and_note(config), None
  path = parts_folder(out) / TOKENIZER
  if not _is_done(path, _describe_training(config)):
    raise ConfigError(f"{path}: missing. Parts need a tokenizer: train it first with "
                      "--train_tokenizer, or name one with tokenizer.path")
  saved = path / corpus_lib.TOKENIZER
  return tokenizers.load_tokenizer(saved, is_saved=True), saved
