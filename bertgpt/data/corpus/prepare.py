"""Raw text to a prepared corpus: documents -> sentences -> token ids -> ArrayRecord.

The calling process reads the sources in order and writes the shards in order. Worker processes do
the work in between, see `encode`. Their results depend only on the text, so the corpus has the same
bytes for any number of workers. At any time only a few chunks of text per worker are in memory.

A corpus is built in a folder next to its final place and renamed at the very end.
"""

import contextlib
import hashlib
import heapq
import json
import os
import pathlib
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NoReturn

import tqdm

from bertgpt import console, files
from bertgpt.config import ConfigDict
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus import encode, publishing, splits
from bertgpt.data.corpus.splits import assign_splits, find_splits, validation_border
from bertgpt.data.corpus.writer import EncodedDocument, SplitWriter, write_metadata
from bertgpt.data.text import digests, paths, sources
from bertgpt.data.text.documents import Document, check_language, cut_sentences
from bertgpt.data.text.pieces import WHOLE, Part
from bertgpt.data.tokens import reading, tokenizers, training
from bertgpt.devices import watchdog
from bertgpt.errors import ConfigError, DataError

OPENED_FILES = 3  # Files per source whose first lines are checked.
NOTED_BYTES = 1_000_000  # With less text, a tokenizer is trained within about a second.
# Corpora, their locks and unfinished folders, and the digests of files; the user may have others.
_IN_CACHE = re.compile(rf"\.?corpus-[0-9a-f]{{20}}\b.*|{re.escape(digests.CACHE)}")

# ------------------------------------------------------------ entry points


def prepare(config: ConfigDict, out_dir: str | os.PathLike) -> pathlib.Path:
  """Prepares `config.data.source` as a corpus and prints a report.

  Does nothing if the same corpus exists already. Two processes with the same folder take turns.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    out_dir: new folder.
  Returns:
    The path of the corpus.
  Raises:
    ConfigError: `out_dir` holds something else, or `config.data.language` is not a known code.
    DataError: the source or the tokenizer is unusable, or a split would have no document.
    WorkerError: a worker process died.
    StorageError: a file could not be written.
  """
  path = files.make_path(out_dir)
  publishing.check_place(path)
  return _prepare(config, path, make_recipe(config))


def ensure_prepared(config: ConfigDict, *, reports: bool = True,
                    resumes: bool = False) -> pathlib.Path:
  """Returns `config.data.corpus`, or if that is '', the corpus in the cache, prepared if missing.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    reports: whether to print a report on a corpus that it prepared.
    resumes: whether a run began with this config, so that its language is not checked again, and
      its tokenizer may be as an earlier version read it.
  Raises:
    UserError: see `prepare`.
  """
  if config.data.corpus:
    return files.make_path(config.data.corpus)
  recipe, path = find_prepared(config, resumes)
  return path or _prepare(config, cached_path(config, recipe), recipe, reports=reports,
                          resumes=resumes)


def find_prepared(config: ConfigDict, resumes: bool) -> tuple[dict, pathlib.Path | None]:
  """Returns the recipe of a config's corpus, and the corpus in the cache; None: it is missing.

  A corpus in an older format is used too, because the runs that began with it need it.
  """
  try:
    recipe = make_recipe(config)
  except DataError:
    if path := _find_older(config):
      return {}, path
    raise
  for version in corpus_lib.FORMAT_VERSIONS:
    path = cached_path(config, recipe | {"format_version": version})
    if corpus_lib.is_corpus(path):
      if version != corpus_lib.FORMAT_VERSION:
        console.say(f"note: {path} was made by an earlier version, which left out blank lines and "
                    "indentation. Delete it to prepare the text as it is")
      return recipe, path
  if resumes and config.tokenizer.path:
    path = cached_path(config, make_recipe(config, load_tokenizer(config, is_saved=True)))
    if corpus_lib.is_corpus(path):
      return recipe, path
  return recipe, None


def _find_older(config: ConfigDict) -> pathlib.Path | None:
  """Returns the corpus in the cache that version 0.1 made with a vocab.txt, if there is one.

  That version inferred the case of a vocab.txt from its pieces and ignored `tokenizer.lowercase`.
  Its runs can still be resumed.
  """
  if not config.tokenizer.path:
    return None
  tokenizer = tokenizers.load_tokenizer(config.tokenizer.path)
  path = cached_path(config, make_recipe(config, tokenizer) | {"format_version": 1})
  return path if corpus_lib.is_corpus(path) else None


def cached_path(config: ConfigDict, recipe: dict) -> pathlib.Path:
  """Returns the place in the cache for a corpus.

  Args:
    config: whole config, of which `data.cache_dir` is read.
    recipe: result of `make_recipe`.
  """
  key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
  return files.make_path(config.data.cache_dir) / f"corpus-{key[:20]}"


def make_recipe(config: ConfigDict, loaded: tokenizers.Tokenizer | None = None,
                known: dict[str, str] | None = None) -> dict:
  """Returns everything that determines the content of a corpus; equal recipes give equal bytes.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    loaded: tokenizer at `config.tokenizer.path`; None: it is loaded if there is a path.
    known: SHA-256 (hex) of every file of the source by its path; None: the files are read.
  """
  # First: an unusable tokenizer, or wrong options, are found at once.
  tokenizer, options = describe_choice(config, loaded), describe_options(config)
  return {
      "format_version": corpus_lib.FORMAT_VERSION,
      "source_identity": sources.identity(config.data.source, config.data.cache_dir, known),
      "tokenizer": tokenizer,
      "options": options,
  }


def describe_options(config: ConfigDict) -> dict:
  """Returns the options of `config.data` that determine the content of a corpus.

  Raises:
    ConfigError: they do not fit `config.data.source`.
  """
  splits.check(config.data.source, config.data.validation_fraction)
  if not config.tokenizer.path and not splits.trains(config.data.validation_fraction):
    raise ConfigError("data.validation_fraction=1: holds out all documents, and leaves none to "
                      "train a tokenizer on. Add --config.tokenizer.path=CORPUS/tokenizer, of the "
                      "corpus of the training")
  return {n: config.data[n] for n in ("language", "validation_fraction", "invalid_text")}


def describe_choice(config: ConfigDict, loaded: tokenizers.Tokenizer | None = None) -> dict:
  """Returns what determines the tokenizer of a config, which is loaded or trained.

  Args:
    config: whole config, of which `tokenizer` is read.
    loaded: tokenizer at `config.tokenizer.path`; None: it is loaded if there is a path.
  Raises:
    ConfigError: tokenizers of this kind cannot be trained.
    DataError: the tokenizer cannot be loaded.
  """
  tokenizer = config.tokenizer
  if tokenizer.path:
    return describe_tokenizer(loaded or load_tokenizer(config))
  training.check_kind(tokenizer.kind)
  names = ("kind", "vocab_size", "model_type", "lowercase", "train_bytes")
  return {name: tokenizer[name] for name in names}


def load_tokenizer(config: ConfigDict, is_saved: bool = False) -> tokenizers.Tokenizer:
  """Returns the tokenizer at `config.tokenizer.path`.

  Args:
    config: whole config, of which `tokenizer` is read.
    is_saved: see `tokenizers.load_tokenizer`.
  Raises:
    DataError: see `tokenizers.load_tokenizer`.
  """
  return tokenizers.load_tokenizer(config.tokenizer.path, config.tokenizer.lowercase, is_saved)


def describe_tokenizer(tokenizer: tokenizers.Tokenizer) -> dict:
  """Returns what determines the ids of a loaded tokenizer, for the recipe of a corpus."""
  described = {"fingerprint": tokenizer.fingerprint()}
  # Earlier versions took the file as it was, so their corpora may have special ids within texts.
  return described if tokenizer.is_unchanged else described | {"without_special_texts": True}


# ------------------------------------------------- a folder, complete or not at all


def _prepare(config: ConfigDict, path: pathlib.Path, recipe: dict, *,
             reports: bool = True, resumes: bool = False) -> pathlib.Path:
  def build(folder: pathlib.Path, recipe: dict) -> dict:
    if not resumes:  # Earlier versions accepted more codes.
      check_language(config.data.language)
      check_endings(config.data.source)
    return _build(config, folder, recipe)

  return publishing.publish_corpus(path, recipe, build, reports=reports)


# ---------------------------------------------------------------- pipeline


def _build(config: ConfigDict, folder: pathlib.Path, recipe: dict) -> dict:
  """Writes the whole corpus into an empty folder and returns its manifest."""
  check_own_files(config, folder)
  tokenizer, skipped = _make_tokenizer(config), sources.Counts()
  tokenizer.save(folder / corpus_lib.TOKENIZER)
  encoded = encode_source(config, folder / corpus_lib.TOKENIZER, tokenizer, skipped)
  manifest = write_corpus(config, folder, recipe, tokenizer, encoded, skipped)
  if sources.identity(config.data.source, config.data.cache_dir) != recipe["source_identity"]:
    raise_changed(config, folder)
  return manifest


def raise_changed(config: ConfigDict, folder: pathlib.Path) -> NoReturn:
  """Raises the error about a source that changed while it was read.

  Args:
    config, folder: see `check_own_files`.
  Raises:
    ConfigError: this program itself has changed it.
    DataError: another one has.
  """
  check_own_files(config, folder)
  raise DataError(f"data.source={config.data.source}: changed while it was read. Run the same "
                  "command again when no other program writes to it")


def check_endings(spec: str) -> None:
  """Checks that no file whose ending says that it is not plain text is read as such.

  Its braces, quotes and headers would become the text. The first files with other endings must not
  be JSON lines either: some programs write those without an ending.

  Args:
    spec: `config.data.source`.
  Raises:
    ConfigError: there is such a file; the message names it and what to write.
  """
  known = {**paths.KINDS, **paths.UNREAD}
  for source in sources.parse(spec):
    is_plain_text = sources.SOURCE_KINDS[source.kind].is_plain_text
    for i, path in enumerate(sources.find_files(source) if is_plain_text else ()):
      ending = paths.find_ending(path)
      if i < OPENED_FILES and ending not in known and paths.holds_json_lines(path):
        ending = ".jsonl"
      if ending in known:
        raise ConfigError(f"data.source: {path} is not plain text. "
                          + paths.correct(ending, source.prefix, source.target))


def check_own_files(config: ConfigDict, folder: pathlib.Path) -> None:
  """Checks that the source has no file that the preparation itself writes.

  Args:
    config: whole config, of which `data` is read.
    folder: folder that the corpus, or its parts, are written into.
  Raises:
    ConfigError: it has; the message names the file.
  """
  # Folder, names in it that this program writes, and what else it may write into.
  places = [(pathlib.Path(os.path.realpath(place)), names, remedy) for place, names, remedy in (
      (files.make_path(config.data.cache_dir), _IN_CACHE, "set data.cache_dir to a folder"),
      (folder, re.compile(".*"), "give an --out")) if not files.is_remote(place)]
  matched = (path for source in sources.parse(config.data.source)
             if sources.SOURCE_KINDS[source.kind].is_glob and not files.is_remote(source.target)
             for path in sources.find_files(source))
  for path in matched:
    real = pathlib.Path(os.path.realpath(path))
    for place, names, remedy in places:
      if real.is_relative_to(place) and names.fullmatch(real.relative_to(place).parts[0]):
        raise ConfigError(f"data.source: its pattern includes {path}, which this program has "
                          f"written. Let it match no such files, or {remedy} elsewhere")


def encode_source(config: ConfigDict, saved: pathlib.Path, tokenizer: tokenizers.Tokenizer,
                  skipped: sources.Counts,
                  part: Part = WHOLE) -> Generator[EncodedDocument, None, None]:
  """Returns an iterator over the encoded documents of the source, in order.

  Args:
    config: whole config, of which `data` is read.
    saved: folder of the tokenizer, from which the worker processes load it.
    tokenizer: the tokenizer.
    skipped: tally of what is left out; added to.
    part: part of the source.
  """
  data = config.data
  documents = sources.open_source(data.source, invalid_text=data.invalid_text, counts=skipped,
                                  part=part)
  # Workers read the copy of this process: they are killed at the end, and would leave their own.
  worker = encode.Worker(os.fspath(files.copy_locally(saved, reading.is_read)), data.language,
                         corpus_lib.token_dtype(tokenizer.vocab_size))
  return encode.encode(documents, worker, data.prepare_workers, skipped)


def write_corpus(config: ConfigDict, folder: pathlib.Path, recipe: dict,
                 tokenizer: tokenizers.Tokenizer,
                 encoded: Generator[EncodedDocument, None, None],
                 skipped: sources.Counts) -> dict:
  """Writes a corpus into a folder that holds only its tokenizer, and returns its manifest.

  Args:
    config: whole config, of which `data` is read.
    folder: the folder.
    recipe: result of `make_recipe`.
    tokenizer: the tokenizer.
    encoded: all documents in order; closed at the end.
    skipped: tally of what was left out, complete when `encoded` ends.
  Raises:
    DataError: a split would have no document.
  """
  data = config.data
  writers = {split: SplitWriter(folder, split) for split in find_splits(data.validation_fraction)}
  border = validation_border(data.validation_fraction)
  is_given = splits.holds_out(data.source)
  with contextlib.closing(encoded):
    for split, document in assign_splits(encode.with_progress(encoded), border, is_given):
      writers[split].write(document)
  _check_splits(data.source, [writer.num_documents for writer in writers.values()], is_given)
  if not data.validation_fraction and not is_given:
    console.say("note: data.validation_fraction=0 holds out as few documents as possible: "
                f"{writers['validation'].num_documents}. To score all of a text, set it to 1")
  manifest = {
      "format_version": corpus_lib.FORMAT_VERSION,
      "source": data.source,
      "recipe": recipe,
      "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size,
                    "fingerprint": tokenizer.fingerprint()},
      "token_dtype": corpus_lib.token_dtype(tokenizer.vocab_size),
      "splits": {split: writer.finish() for split, writer in writers.items()},
      "skipped": {what: n for what, n in sorted(skipped.items()) if n},
  }
  return write_metadata(folder, manifest)


def _check_splits(source: str, num_documents: Sequence[int], is_given: bool) -> None:
  if not any(num_documents):
    raise DataError(f"data.source={source}: no document with text. Check the path and the field")
  if is_given and not all(num_documents):
    use = "hold out" if num_documents[0] else "train on"
    raise DataError(f"data.source={source}: no document with text to {use}. Check the path and "
                    "the field")
  if not all(num_documents):
    raise DataError(f"data.source={source}: at least two different documents are needed, one to "
                    "train on and one to hold out. Give more text, or separate its documents")


def _make_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
  if config.tokenizer.path:
    return load_and_note(config)
  return train_tokenizer(config, sources.open_source(
      config.data.source, invalid_text=config.data.invalid_text))


def load_and_note(config: ConfigDict) -> tokenizers.Tokenizer:
  """Returns the tokenizer at `config.tokenizer.path`, and prints its note, if it has one.

  Args:
    config: whole config, of which `tokenizer` is read.
  Raises:
    DataError: see `tokenizers.load_tokenizer`.
  """
  tokenizer = load_tokenizer(config)
  if tokenizer.note:
    console.say(f"note: {tokenizer.note}")
  return tokenizer


def train_tokenizer(config: ConfigDict, documents: Iterable[Document]) -> tokenizers.Tokenizer:
  """Returns a tokenizer that is trained on a sample of the documents to train on.

  Prints a note about its kind and the size of the sample, unless that is small.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
    documents: all documents of the source, or those that are in the sample of a part of it.
  Raises:
    DataError: there is no text to train on.
  """
  border = validation_border(config.data.validation_fraction)
  sample = sample_documents(documents, config.tokenizer.train_bytes, border)
  if not sample:
    raise DataError(f"data.source={config.data.source}: no text to train a tokenizer on. Check "
                    "the path and the field, and data.validation_fraction")
  size = sum(len(document.text.encode()) for document in sample)
  if size >= NOTED_BYTES:
    console.say(f"note: training a tokenizer ({config.tokenizer.kind}, "
                f"{config.tokenizer.vocab_size:,} tokens) on {size / 1e6:.3g} MB of the text")
  with watchdog.paused():
    return training.train_tokenizer(config.tokenizer, _drain(sample, config))


def _drain(sample: list[Document], config: ConfigDict) -> Iterator[str]:
  """Yields the sentences of a sample and empties it, because training needs the memory.

  Indentation and blank lines are included only if the tokenizer treats them as text.
  """
  keeps_space = tokenizers.KINDS[config.tokenizer.kind].keeps_space
  sample.reverse()
  while sample:
    for sentence in cut_sentences(sample.pop(), config.data.language):
      words = sentence.strip()
      is_indented = len(sentence) > len(words) + 1
      yield sentence if keeps_space and is_indented else words


def sample_documents(documents: Iterable[Document], max_bytes: int,
                     border: int) -> list[Document]:
  """Returns the documents with the largest keys, in their order; a terminal shows a bar.

  Keys are hashes, so the sample is spread evenly over the corpus. The validation split has the
  smallest keys, or sources of its own, and is not sampled.

  Args:
    documents: documents of the source.
    max_bytes: UTF-8 bytes of the sample; it is larger by less than the document with the smallest
      key.
    border: documents with smaller keys are held out.
  """
  heap, total = [], 0
  with tqdm.tqdm(desc="sample", unit="B", unit_scale=True, disable=None) as bar:
    for order, document in enumerate(documents):
      text = document.text.encode()
      key = encode.text_key(text)
      bar.update(len(text))
      if document.is_held_out or key < border:
        continue
      heapq.heappush(heap, (key, order, len(text), document))
      total += len(text)
      while total - heap[0][2] >= max_bytes:
        total -= heapq.heappop(heap)[2]
  return [document for _, _, _, document in sorted(heap, key=lambda entry: entry[1])]
