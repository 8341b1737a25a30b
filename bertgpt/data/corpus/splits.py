"""Which documents of a corpus are held out for validation."""

from collections.abc import Iterable, Iterator

from bertgpt.data.corpus.corpus import SPLITS
from bertgpt.data.corpus.writer import EncodedDocument
from bertgpt.data.text import sources
from bertgpt.errors import ConfigError

HELD_OUT_KEY = 0  # The key of documents whose source is held out; it is below every border.
_ALL = 2**64  # All keys are smaller.


def validation_border(fraction: float) -> int:
  """Returns the key below which documents are held out.

  Args:
    fraction: `config.data.validation_fraction`, in [0, 1].
  """
  return int(fraction * _ALL) or HELD_OUT_KEY + 1


def find_splits(fraction: float) -> tuple[str, ...]:
  """Returns the splits of a corpus: only 'validation', if all documents are held out.

  Args:
    fraction: `config.data.validation_fraction`, in [0, 1].
  """
  return SPLITS[1:] if validation_border(fraction) == _ALL else SPLITS


def trains(fraction: float) -> bool:
  """Returns whether documents are left to train on.

  Args:
    fraction: `config.data.validation_fraction`, in [0, 1].
  """
  return find_splits(fraction) == SPLITS


def holds_out(spec: str) -> bool:
  """Returns whether a source says which documents are held out.

  Args:
    spec: `config.data.source`.
  """
  return any(source.is_held_out for source in sources.parse(spec))


def check(spec: str, validation_fraction: float) -> None:
  """Checks that a source can be parsed, and that only one field says what is held out.

  Args:
    spec: `config.data.source`.
    validation_fraction: `config.data.validation_fraction`.
  Raises:
    ConfigError: see `sources.parse`; or all sources are held out, or some and a fraction too, or
      the text of a file is both held out and trained on.
    DataError: a source has no files, and some are held out.
  """
  parsed = sources.parse(spec)
  held_out = [source.is_held_out for source in parsed]
  if all(held_out):
    raise ConfigError(f"data.source={spec!r}: all sources are held out. Add one to train on. To "
                      f"score them only, remove {sources.HELD_OUT} and set "
                      "data.validation_fraction=1")
  if any(held_out) and validation_fraction:
    raise ConfigError(f"data.validation_fraction={validation_fraction}: data.source says what is "
                      f"held out, with {sources.HELD_OUT}. Set data.validation_fraction=0")
  if any(held_out):
    # Parts of one split of a dataset may be in the same files.
    places = [{(file, source.field) for source in parsed if source.is_held_out == is_held_out
               and not source.split for file in sources.find_files(source)}
              for is_held_out in (True, False)]
    for file, _ in sorted(places[0] & places[1])[:1]:
      raise ConfigError(f"data.source={spec!r}: {file} is held out, and trained on as well. Name "
                        f"it only once, after {sources.HELD_OUT}")


def assign_splits(documents: Iterable[EncodedDocument], border: int,
                  is_given: bool = False) -> Iterator[tuple[str, EncodedDocument]]:
  """Assigns documents to splits by their keys, so that neither of two splits stays empty.

  As long as all keys are on one side of the border, the document nearest to the border is held
  back, together with its duplicates. If the corpus ends in that state, they become the other split.

  Args:
    documents: documents in order.
    border: documents with smaller keys belong to the validation split.
    is_given: whether the source says what is held out, so that a split may stay empty.
  Yields:
    ('train' or 'validation', document).
  """
  documents = iter(documents)
  if is_given or border == _ALL:
    yield from ((_split_name(d.key < border), d) for d in documents)
    return
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
      held.append(held[0])  # The same text; one copy in memory is enough.
    else:
      yield _split_name(side), document
  yield from ((_split_name(not side), d) for d in held)


def _split_name(is_validation: bool) -> str:
  return SPLITS[is_validation]
