"""The merges of a BPE tokenizer in a file of their own, and whether they fit its vocabulary."""

import pathlib
import re
from collections.abc import Mapping, Sequence, Set

from bertgpt import files
from bertgpt.data.tokens import pipelines
from bertgpt.errors import DataError

# So many pieces may be made by no merge, besides special tokens: some vocabularies have fillers,
# such as RoBERTa's madeupword0000.
_MAX_LOST, _MAX_LOST_SHARE = 16, 0.005


def read(file: pathlib.Path) -> list[tuple[str, str]]:
  """Returns the pairs of pieces in a file of merges, the first merge first.

  Args:
    file: merges.txt or vocab.bpe, with a pair per line.
  Raises:
    DataError: a line holds something else.
  """
  merges, data = [], file.read_bytes()
  if re.match(files.LFS_POINTER, data):
    raise DataError(f"{file}: is a Git LFS pointer. Fetch the file itself with git lfs pull")
  text = data.decode("utf-8-sig").rstrip()
  for i, line in enumerate(text.split("\n") if text else (), 1):
    if i == 1 and line.startswith("#version"):
      continue
    pair = tuple(line.rstrip("\r").split(" "))
    if len(pair) != 2 or not all(pair):
      raise DataError(f"{file}: line {i} is not a merge of two pieces. Give a file with two pieces "
                      "per line, as GPT-2 has it")
    merges.append(pair)
  return merges


def check(vocabulary: Mapping[str, int], merges: Sequence[str | Sequence[str]],
          file: pathlib.Path) -> None:
  """Refuses what would make the library panic or choose at random.

  Args:
    vocabulary: ids by piece.
    merges: pairs of pieces, or texts with a space between them.
    file: file of the vocabulary, for messages.
  Raises:
    DataError: two pieces have one id, or a merge needs a piece that is missing.
  """
  if len(set(vocabulary.values())) < len(vocabulary):
    raise DataError(f"{file}: two pieces have the same id. Fetch the vocabulary again")
  for merge in merges:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    lacking = next((p for p in (first, second, first + second) if p not in vocabulary), None)
    if lacking is not None:
      raise DataError(f"{file}: the merge of {first!r} and {second!r} needs the piece {lacking!r}, "
                      "which the vocabulary lacks. Give the files of one tokenizer")


def check_reach(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]],
                added: Set[str], file: pathlib.Path, merges_file: pathlib.Path) -> None:
  """Refuses a file of merges that was cut off: pieces that no merge makes never occur in a text.

  Args:
    vocabulary: ids by piece.
    merges: pairs of pieces.
    added: pieces that are not made by merges: special and added tokens.
    file, merges_file: files of both, for messages.
  Raises:
    DataError: many pieces cannot occur.
  """
  made = {first + second for first, second in merges} | added
  lost = [piece for piece in vocabulary
          if len(piece.removesuffix(pipelines.END_OF_WORD)) > 1 and piece not in made
          and piece[0] + piece[-1] not in ("<>", "[]")]  # Special tokens of other tokenizers.
  if len(lost) > max(_MAX_LOST, _MAX_LOST_SHARE * len(vocabulary)):
    raise DataError(f"{merges_file}: no merge makes {len(lost):,} pieces of {file.name}, such as "
                    f"{lost[-1]!r}. The file is incomplete, or of another tokenizer. Fetch it "
                    "again")
