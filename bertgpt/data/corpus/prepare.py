"""Raw text to a prepared corpus: documents -> sentences -> token ids -> ArrayRecord.

The calling process reads the sources in order and writes the shards in order. Worker processes do
the work in between: sentences, token ids, serialization. Their results depend only on the text, so
the corpus has the same bytes for any number of workers. At any time only a few chunks of text per
worker are in memory.

A corpus is built in a folder next to its final place and renamed at the very end.
"""

import collections
import contextlib
import dataclasses
import hashlib
import heapq
import json
import multiprocessing
import os
import pathlib
import queue
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures

import numpy as np
import tqdm

from bertgpt import files
from bertgpt.config import ConfigDict
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus.writer import EncodedDocument, SplitWriter, write_metadata
from bertgpt.data.text import sources
from bertgpt.data.tokens import tokenizers, training
from bertgpt.errors import ConfigError, DataError, PeerError, StorageError

CHUNK_CHARS = 2**19    # Characters sent to a worker at once.
CHUNKS_PER_WORKER = 3  # Chunks in memory: one being encoded, the others so that no worker waits.


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
    ConfigError: `out_dir` holds something else.
    DataError: the source or the tokenizer is unusable, or a split would have no document.
    PeerError: a worker process died.
    StorageError: a file could not be written.
  """
  return _prepare(config, pathlib.Path(out_dir).expanduser().absolute(), make_recipe(config))


def ensure_prepared(config: ConfigDict) -> pathlib.Path:
  """Returns `config.data.corpus`, or if that is '', the corpus in the cache.

  Prepares the latter if it does not exist yet.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
  Raises:
    UserError: as `prepare`.
  """
  if config.data.corpus:
    return pathlib.Path(config.data.corpus).expanduser().absolute()
  recipe = make_recipe(config)
  path = _cached_path(config, recipe)
  return path if corpus_lib.is_corpus(path) else _prepare(config, path, recipe)


def cached_corpus_path(config: ConfigDict) -> pathlib.Path:
  """Returns the place in the cache for the corpus of a source, tokenizer and options.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
  """
  return _cached_path(config, make_recipe(config))


def _cached_path(config: ConfigDict, recipe: dict) -> pathlib.Path:
  key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
  return pathlib.Path(config.data.cache_dir).expanduser().absolute() / f"corpus-{key[:20]}"


def make_recipe(config: ConfigDict) -> dict:
  """Returns everything that determines the content of a corpus; equal recipes give equal bytes.

  Args:
    config: whole config, of which `data` and `tokenizer` are read.
  """
  data, tokenizer = config.data, config.tokenizer
  if tokenizer.path:
    made_of = {"fingerprint": tokenizers.load_tokenizer(tokenizer.path).fingerprint()}
  else:
    names = ("kind", "vocab_size", "model_type", "lowercase", "train_bytes")
    made_of = {name: tokenizer[name] for name in names}
  return {
      "format_version": corpus_lib.FORMAT_VERSION,
      "source_identity": sources.identity(data.source, data.cache_dir),
      "tokenizer": made_of,
      "options": {n: data[n] for n in ("language", "validation_fraction", "invalid_text")},
  }


# ---------------------------------------------------- one folder, all or nothing


def _prepare(config: ConfigDict, path: pathlib.Path, recipe: dict) -> pathlib.Path:
  def wait(holder: str) -> None:
    print(f"waiting for {holder}, which prepares {path}", flush=True)

  with _as_storage_error(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path.with_name(f".{path.name}.lock"), wait):
      if _is_done(path, recipe):
        return path
      files.remove_leftovers(path.parent, path.name)
      with files.publish_when_done(path) as folder:
        folder.mkdir()
        manifest = _build(config, folder, recipe)
  print(f"corpus {path}\n{corpus_lib.report(manifest)}", flush=True)
  return path


def _is_done(path: pathlib.Path, recipe: dict) -> bool:
  """Returns whether the corpus of a recipe is complete at `path`; False if nothing is there.

  Raises:
    ConfigError: something else is there.
  """
  if corpus_lib.is_corpus(path) and corpus_lib.read_manifest(path)["recipe"] == recipe:
    return True
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise ConfigError(f"{path}: exists and was not made from this source, tokenizer and options. "
                      "Delete it or choose another place")
  return False


@contextlib.contextmanager
def _as_storage_error(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise StorageError(f"{e.filename or path}: {e.strerror or e}. The corpus {path} "
                       "was not prepared") from e


# ---------------------------------------------------------------- pipeline


def _build(config: ConfigDict, folder: pathlib.Path, recipe: dict) -> dict:
  """Writes the whole corpus into an empty folder and returns its manifest."""
  data, skipped = config.data, sources.Counts()
  border = validation_border(data.validation_fraction)
  tokenizer = _make_tokenizer(config, border)
  tokenizer.save(folder / corpus_lib.TOKENIZER)
  dtype = corpus_lib.token_dtype(tokenizer.vocab_size)
  documents = sources.open_source(data.source, invalid_text=data.invalid_text, counts=skipped)
  worker = _Worker(os.fspath(folder / corpus_lib.TOKENIZER), data.language, dtype)
  writers = {split: SplitWriter(folder, split) for split in corpus_lib.SPLITS}
  with contextlib.closing(_encode(documents, worker, data.prepare_workers, skipped)) as encoded:
    for split, document in assign_splits(_with_progress(encoded), border):
      writers[split].write(document)
  _check_splits(data.source, *(writers[split].num_documents for split in corpus_lib.SPLITS))
  manifest = {
      "format_version": corpus_lib.FORMAT_VERSION,
      "source": data.source,
      "recipe": recipe,
      "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size,
                    "fingerprint": tokenizer.fingerprint()},
      "token_dtype": dtype,
      "splits": {split: writer.finish() for split, writer in writers.items()},
      "skipped": {what: n for what, n in sorted(skipped.items()) if n},
  }
  return write_metadata(folder, manifest)


def _check_splits(source: str, num_train: int, num_validation: int) -> None:
  if not num_train + num_validation:
    raise DataError(f"data.source={source}: no document with text. Check the path and the field")
  if not num_train or not num_validation:
    raise DataError(f"data.source={source}: at least two different documents are needed, one to "
                    "train on and one to hold out. Give more text, or separate its documents")


def _make_tokenizer(config: ConfigDict, border: int) -> tokenizers.Tokenizer:
  if config.tokenizer.path:
    return tokenizers.load_tokenizer(config.tokenizer.path)
  documents = sources.open_source(config.data.source, invalid_text=config.data.invalid_text)
  sample = sample_documents(documents, config.tokenizer.train_bytes, border)
  if not sample:
    raise DataError(f"data.source={config.data.source}: no text to train a tokenizer on. Check "
                    "the path and the field, and data.validation_fraction")
  return training.train_tokenizer(config.tokenizer, _drain(sample, config.data.language))


def _drain(sample: list[sources.Document], language: str) -> Iterator[str]:
  """Yields the sentences of a sample and empties it, because training needs the memory."""
  sample.reverse()
  while sample:
    yield from sources.split_sentences(sample.pop(), language)


def sample_documents(documents: Iterable[sources.Document], max_bytes: int,
                     border: int) -> list[sources.Document]:
  """Returns the documents with the largest keys, in their order.

  Keys are hashes, so the sample is spread evenly over the corpus. The validation split has the
  smallest keys and is not sampled.

  Args:
    documents: documents of the source.
    max_bytes: UTF-8 bytes of the sample. It exceeds them by less than its smallest-keyed document.
    border: documents with smaller keys are held out.
  """
  heap, total = [], 0
  for order, document in enumerate(documents):
    text = _text(document).encode()
    key = text_key(text)
    if key < border:
      continue
    heapq.heappush(heap, (key, order, len(text), document))
    total += len(text)
    while total - heap[0][2] >= max_bytes:
      total -= heapq.heappop(heap)[2]
  return [document for _, _, _, document in sorted(heap, key=lambda entry: entry[1])]


def _text(document: sources.Document) -> str:
  return "\n".join(document.paragraphs)


def text_key(text: bytes) -> int:
  """Returns a 64-bit hash of a text, so that equal texts have equal keys.

  Args:
    text: UTF-8.
  """
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _with_progress(documents: Iterable[EncodedDocument]) -> Iterator[EncodedDocument]:
  with tqdm.tqdm(desc="prepare", unit="B", unit_scale=True, disable=None) as bar:
    for document in documents:
      yield document
      bar.update(document.text_bytes)


# ------------------------------------------------------------------ splits


def validation_border(fraction: float) -> int:
  """Returns the key below which documents are held out.

  Args:
    fraction: `config.data.validation_fraction`, in [0, 1].
  """
  return int(fraction * 2**64)


def assign_splits(documents: Iterable[EncodedDocument],
                  border: int) -> Iterator[tuple[str, EncodedDocument]]:
  """Assigns documents to splits by their keys, so that neither split stays empty.

  As long as all keys lie on one side of the border, the document nearest to it is held back,
  together with its duplicates. If the corpus ends in that state, they become the other split.

  Args:
    documents: documents in order.
    border: documents with smaller keys belong to the validation split.
  Yields:
    ('train' or 'validation', document).
  """
  documents = iter(documents)
  side, held, held_distance = None, [], 0
  for document in documents:
    if side is None:
      side = document.key < border
    if (document.key < border) != side:
      yield from ((_split_name(d.key < border), d) for d in [*held, document])
      yield from ((_split_name(d.key < border), d) for d in documents)
      return
    distance = abs(document.key - border)
    if not held or distance < held_distance:
      yield from ((_split_name(side), d) for d in held)
      held, held_distance = [document], distance
    elif distance == held_distance:
      held.append(held[0])  # The same text, which is not kept in memory twice.
    else:
      yield _split_name(side), document
  yield from ((_split_name(not side), d) for d in held)


def _split_name(is_validation: bool) -> str:
  return corpus_lib.SPLITS[is_validation]


# ----------------------------------------------------------------- workers


@dataclasses.dataclass(frozen=True)
class _Worker:
  """Settings of a worker process: everything that it needs except the text."""

  tokenizer_path: str
  language: str
  token_dtype: str


def _encode(documents: Iterable, worker: _Worker, num_workers: int,
            skipped: collections.Counter) -> Generator[EncodedDocument, None, None]:
  """Encodes documents in worker processes and yields them in order.

  Args:
    documents: documents of the source.
    worker: settings of the processes.
    num_workers: number of processes; 0: one per core.
    skipped: tally of the documents that are left out; added to.
  """
  num_workers = num_workers or len(os.sched_getaffinity(0))
  room = CHUNKS_PER_WORKER * num_workers * CHUNK_CHARS
  with _start_workers(worker, num_workers) as submit:
    for encoded, counts in _map_in_order(submit, _chunks(documents), room):
      skipped.update(counts)
      yield from encoded


@contextlib.contextmanager
def _start_workers(worker: _Worker, num_workers: int) -> Iterator[Callable[[list], futures.Future]]:
  """Worker processes, each with its own pipe, on which a thread of this process waits.

  ProcessPoolExecutor has one queue for all workers and can wait forever after one was killed
  (Python 3.11.7). Here a dead worker is a closed pipe, and so is a dead parent for a worker.

  Yields:
    A function that sends a chunk to a worker and returns the future of the answer.
  """
  # Spawned, not forked: the caller may run threads of JAX, which do not survive a fork.
  context = multiprocessing.get_context("spawn")
  idle, processes = queue.SimpleQueue(), []

  def ask(chunk: list):
    connection = idle.get()
    try:
      connection.send(chunk)
      answer = connection.recv()
    except (EOFError, ConnectionError) as e:
      raise PeerError("a prepare worker died, most likely because memory ran out. Lower "
                      "data.prepare_workers") from e
    finally:
      idle.put(connection)
    if isinstance(answer, Exception):
      raise answer
    return answer

  threads = futures.ThreadPoolExecutor(num_workers)
  try:
    for _ in range(num_workers):
      ours, theirs = context.Pipe()
      processes.append(context.Process(target=_serve, args=(theirs, worker), daemon=True))
      processes[-1].start()
      theirs.close()
      idle.put(ours)
    yield lambda chunk: threads.submit(ask, chunk)
  finally:
    for process in processes:
      process.terminate()
    threads.shutdown(cancel_futures=True)
    for process in processes:
      process.join()


def _serve(connection, settings: _Worker) -> None:
  """Runs in a worker: answers chunks of documents until the other end is closed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers.
  tokenizer = tokenizers.load_tokenizer(settings.tokenizer_path)
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      chunk = connection.recv()
      try:
        answer = _encode_chunk(chunk, settings, tokenizer)
      except Exception as e:  # The parent raises it again.
        answer = e
      connection.send(answer)


def _map_in_order(submit: Callable, sized: Iterable[tuple], room: int) -> Iterator:
  """Yields the results of all items in order.

  Args:
    submit: starts the work on an item and returns its future.
    sized: (item, size) pairs.
    room: sum of the sizes of the pending items, at most; a single item may be larger.
  """
  pending = collections.deque()
  for item, size in sized:
    while pending and size > room:
      future, freed = pending.popleft()
      yield future.result()
      room += freed
    pending.append((submit(item), size))
    room -= size
  for future, _ in pending:
    yield future.result()


def _chunks(documents: Iterable[sources.Document]) -> Iterator[tuple[list, int]]:
  """Yields (documents, characters), each with whole documents of at least `CHUNK_CHARS`."""
  chunk, size = [], 0
  for document in documents:
    chunk.append(document)
    size += sum(map(len, document.paragraphs))
    if size >= CHUNK_CHARS:
      yield chunk, size
      chunk, size = [], 0
  if chunk:
    yield chunk, size


def _encode_chunk(documents: list[sources.Document], settings: _Worker,
                  tokenizer: tokenizers.Tokenizer
                  ) -> tuple[list[EncodedDocument], collections.Counter]:
  """Returns the documents that have tokens, and a tally of those that are left out."""
  counts = collections.Counter()
  sentences = [_sentences(document, settings.language) for document in documents]
  ids = iter(tokenizer.encode([s for texts in sentences for s in texts]))
  encoded = []
  for document, texts in zip(documents, sentences, strict=True):
    sentence_ids = [next(ids) for _ in texts]
    if any(map(len, sentence_ids)):
      encoded.append(
          _encoded_document(document, sentence_ids, settings.token_dtype, tokenizer.unk_id))
    else:
      counts["documents without a token: skipped"] += 1
  return encoded, counts


def _encoded_document(document: sources.Document, ids: list[np.ndarray], dtype: str,
                      unk_id: int) -> EncodedDocument:
  """Returns a document with the ids of its sentences; sentences without a token are dropped."""
  text, tokens = _text(document).encode(), np.concatenate(ids)
  lengths = np.fromiter(filter(None, map(len, ids)), np.int32)
  return EncodedDocument(
      key=text_key(text), record=corpus_lib.encode_record(tokens.astype(dtype), lengths),
      sentence_lengths=lengths, text_bytes=len(text),
      num_unknown=int(np.count_nonzero(tokens == unk_id)), max_id=int(tokens.max()))


def _sentences(document: sources.Document, language: str) -> list[str]:
  """Returns the sentences of a document, each with the white space before it.

  Joined they are the whole text, so byte-level BPE yields the same ids as for running text.
  The other tokenizers drop white space at the start.
  """
  text = _text(document)
  start, sentences = 0, []
  for sentence in sources.split_sentences(document, language):
    end = text.index(sentence, start) + len(sentence)
    sentences.append(text[start:end])
    start = end
  return sentences
