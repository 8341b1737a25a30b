"""Documents to token ids in worker processes: sentences, ids, serialization.

The results depend only on the text and are yielded in its order, so they are the same for any
number of workers. At any time only a few chunks of text per worker are in memory.
"""

import collections
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import queue
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures

import numpy as np
import tqdm

from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.data.corpus.splits import HELD_OUT_KEY
from bertgpt.data.corpus.writer import EncodedDocument
from bertgpt.data.text.documents import Document, cut_sentences
from bertgpt.data.tokens import text_parts, tokenizers, unknown
from bertgpt.devices import children, watchdog
from bertgpt.errors import DataError, WorkerError, one_line, without_panics

CHUNK_CHARS = 2**19    # Characters sent to a worker at once.
DOCUMENT_CHARS = 2**8  # Characters whose memory the objects of a document take, besides its text.
CHUNKS_PER_WORKER = 3  # One chunk is being encoded; the others are ready, so that no worker waits.


@dataclasses.dataclass(frozen=True)
class Worker:
  """Settings of a worker process: all that it needs except the text."""

  tokenizer_path: str
  language: str
  token_dtype: str


def encode(documents: Iterable, worker: Worker, num_workers: int,
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
      watchdog.renew()
      skipped.update(counts)
      yield from encoded


@contextlib.contextmanager
def _start_workers(worker: Worker, num_workers: int) -> Iterator[Callable[[list], futures.Future]]:
  """Starts worker processes, each with its own pipe, on which a thread of this process waits.

  ProcessPoolExecutor has one queue for all workers and can wait forever after a worker was killed
  (Python 3.11.7). Here, the parent sees a dead worker as a closed pipe, and a worker sees a dead
  parent in the same way.

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
      raise WorkerError("a worker process of prepare died, probably because memory ran out. Lower "
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
      process = context.Process(target=_serve, args=(theirs, worker), daemon=True)
      with children.spawning():
        process.start()
        processes.append(process)  # Before Ctrl-C may arrive.
      theirs.close()
      idle.put(ours)
    yield lambda chunk: threads.submit(ask, chunk)
  finally:
    for process in processes:
      process.kill()  # SIGTERM would not end a process that is suspended.
    threads.shutdown(cancel_futures=True)
    for process in processes:
      process.join()


def _serve(connection, settings: Worker) -> None:
  """Runs in a worker: answers chunks of documents until the other end is closed."""
  tokenizer = encode_parts = None
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      chunk = connection.recv()
      try:
        with without_panics():
          if tokenizer is None or encode_parts is None:
            tokenizer = tokenizers.load_tokenizer(settings.tokenizer_path, is_saved=True)
            encode_parts = text_parts.make_encoder(tokenizer)
          answer = _encode_chunk(chunk, settings, encode_parts, tokenizer)
      except Exception as e:  # The parent raises it again.
        is_library = type(e) is Exception or isinstance(e, RuntimeError)
        answer = DataError(
            f"{chunk[0].path}: the tokenizer cannot encode a document at byte {chunk[0].offset} or "
            f"after it ({one_line(e)}). Remove the document, or give another tokenizer"
        ) if is_library else e
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


def _chunks(documents: Iterable[Document]) -> Iterator[tuple[list, int]]:
  """Yields (documents, characters), each with whole documents of at least `CHUNK_CHARS`."""
  chunk, size = [], 0
  for document in documents:
    chunk.append(document)
    size += len(document.text) + DOCUMENT_CHARS
    if size >= CHUNK_CHARS:
      yield chunk, size
      chunk, size = [], 0
  if chunk:
    yield chunk, size


def _encode_chunk(documents: list[Document], settings: Worker, encode_parts: text_parts.Encoder,
                  tokenizer: tokenizers.Tokenizer
                  ) -> tuple[list[EncodedDocument], collections.Counter]:
  """Returns the documents that have tokens, and a tally of what is left out."""
  counts = collections.Counter()
  sentences = [cut_sentences(document, settings.language) for document in documents]
  encoded = []
  for document, parts, (ids, lengths) in zip(documents, sentences, encode_parts(sentences),
                                             strict=True):
    if len(ids):
      counts["sentences without a token: left out"] += int(np.count_nonzero(lengths == 0))
      num_unknown = int(np.count_nonzero(ids == tokenizer.unk_id))
      unknown_bytes = unknown.count_bytes(
          tokenizer, parts, np.split(ids, np.cumsum(lengths)[:-1])) if num_unknown else 0
      encoded.append(_encoded_document(document, ids, lengths, settings.token_dtype, num_unknown,
                                       unknown_bytes))
    else:
      counts["documents without a token: skipped"] += 1
  return encoded, counts


def _encoded_document(document: Document, ids: np.ndarray, lengths: np.ndarray, dtype: str,
                      num_unknown: int, unknown_bytes: int) -> EncodedDocument:
  """Returns a document with the ids of its sentences; sentences without a token are left out."""
  text, lengths = document.text.encode(), lengths[lengths > 0].astype(np.int32)
  return EncodedDocument(
      key=HELD_OUT_KEY if document.is_held_out else text_key(text),
      record=corpus_lib.encode_record(ids.astype(dtype), lengths),
      sentence_lengths=lengths, text_bytes=len(text),
      num_unknown=num_unknown, unknown_bytes=unknown_bytes, max_id=int(ids.max()))


def text_key(text: bytes) -> int:
  """Returns a 64-bit hash of a text, so that equal texts have equal keys.

  Args:
    text: UTF-8.
  """
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def with_progress(documents: Iterable[EncodedDocument]) -> Iterator[EncodedDocument]:
  """Yields the documents, and shows on a terminal how many bytes of text they have."""
  with tqdm.tqdm(desc="prepare", unit="B", unit_scale=True, disable=None) as bar:
    for document in documents:
      yield document
      bar.update(document.text_bytes)
