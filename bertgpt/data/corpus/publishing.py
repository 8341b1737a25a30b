"""Folders that are there completely or not at all: corpora, and parts of them."""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from bertgpt import console, files
from bertgpt.data.corpus import corpus as corpus_lib
from bertgpt.devices import watchdog
from bertgpt.errors import ConfigError, StorageError

_INDEX = "|".join(re.escape(corpus_lib.index_file(split, name))
                  for split in corpus_lib.SPLITS for name in corpus_lib.INDEX_DTYPES)
# Files of a corpus without its manifest. Others may have a folder named tokenizer, too.
_OWN_FILE = re.compile(rf"{corpus_lib.DATASET_NAME}-.+|(features|dataset_info)\.json|{_INDEX}")
_FILE = re.compile(rf"{corpus_lib.TOKENIZER}/.+|{_OWN_FILE.pattern}")


def publish_corpus(path: pathlib.Path, recipe: dict,
                   build: Callable[[pathlib.Path, dict], dict], *,
                   reports: bool = True) -> pathlib.Path:
  """Makes a corpus, unless it exists already, and prints a report.

  Args:
    path: folder of the corpus.
    recipe: result of `make_recipe`.
    build: (empty folder, recipe) -> manifest; writes the corpus.
    reports: whether to print a report.
  Raises:
    ConfigError: something else is there.
    StorageError: a file could not be written.
  """
  made: list[dict] = []
  publish(path, lambda: _is_done(path, recipe),
          lambda folder: made.append(build(folder, recipe)))
  if reports and made:
    console.print_stdout(f"corpus {path}\n{corpus_lib.report(made[0])}")
  return path


def publish(path: pathlib.Path, is_done: Callable[[], bool],
            build: Callable[[pathlib.Path], None], last: str = files.MANIFEST) -> None:
  """Makes a folder, completely or not at all. Processes that make the same one take turns.

  Args:
    path: the folder.
    is_done: whether the folder is there; raises an error if something else is.
    build: writes into an empty folder, which is then renamed to `path`.
    last: see `files.publish_when_done`.
  Raises:
    ConfigError: the name of the folder is not UTF-8.
    StorageError: a file could not be written, or another process has taken over the lock in a
      bucket and is not done.
  """
  files.require_utf8(path)
  lock = path.with_name(f".{path.name}.lock")

  @functools.cache  # In a bucket, the lock asks again and again.
  def wait(holder: files.Holder) -> None:
    console.print_stdout(f"waiting for {holder}, which prepares {path}")

  with _as_storage_error(path), contextlib.ExitStack() as stack:
    path.parent.mkdir(parents=True, exist_ok=True)
    with watchdog.paused():  # The other process has its own limit.
      stack.enter_context(files.lock(lock, wait))
    if is_done():
      return
    files.remove_leftovers(path.parent, path.name)
    try:
      with watchdog.restored(), files.publish_when_done(
          path, last=last, before=lambda: files.check_lock(lock)) as folder:
        folder.mkdir()
        build(folder)
        watchdog.disarm()  # A slow disk, or an upload, may take longer than a step.
    except StorageError:
      if not is_done():  # By the process that has taken over the lock.
        raise


def check_place(path: pathlib.Path) -> None:
  """Checks that a corpus can appear at a path, as far as this is known before its text is read.

  Args:
    path: folder of the corpus, which may be there.
  Raises:
    ConfigError: it is a link or a mount point without a corpus.
  """
  if not files.is_remote(path) and not corpus_lib.is_corpus(path) and (
      path.is_symlink() or os.path.ismount(path)):
    raise ConfigError(f"{path}: is a link or a mount point, which no folder can replace. Name a "
                      f"new folder, such as {path / 'corpus'}")


def _is_done(path: pathlib.Path, recipe: dict) -> bool:
  """Returns whether the corpus of a recipe is complete at `path`; False if nothing is there.

  Raises:
    ConfigError: something else is there.
  """
  if corpus_lib.is_corpus(path) and corpus_lib.read_manifest(path)["recipe"] == recipe:
    return True
  if isinstance(path, files.BucketPath):
    names = list(path.list_tree())
    is_rest = all(map(_FILE.fullmatch, names)) and any(map(_OWN_FILE.fullmatch, names))
    if not names or is_rest:  # The rest of an interrupted upload.
      return False
  check_place(path)
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    # Nobody should be told to delete the folder of their own text.
    raise ConfigError(f"{path}: exists and " + (
        "was not made from this source, tokenizer and options. Delete it or choose another place"
        if corpus_lib.is_corpus(path) else "is not a corpus. Name a new or an empty folder"))
  return False


@contextlib.contextmanager
def _as_storage_error(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise StorageError(f"{e.filename or path}: {e.strerror or e}. The corpus {path} "
                       "was not prepared") from e
