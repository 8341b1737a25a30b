"""Files of features that are written text by text, in bounded memory.

The header is rewritten in place when the shapes in it are known; its size does not change. A format
is a class and a line of `FORMATS`.
"""

import abc
import io
import json
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertgpt.inference import resumable

NAME = "features"
_TOKENS = "tokens"  # Tokens of the texts, which are put at the end of the file.
_MOST_ROWS = 10 ** 15  # A header reserves space for this number.


class FeatureFile(abc.ABC):
  """A file of features, [D] per text or [N, D] per text of N tokens.

  Args:
    work: unfinished results, which hold the file.
    count: number of texts.
    width: D.
    is_by_token: whether there is a vector per token.
  """

  def __init__(self, work: resumable.Unfinished, count: int, width: int, is_by_token: bool):
    self._count, self._width, self._is_by_token = count, width, is_by_token
    self._work, self._file = work, work.open(NAME)
    self._rows: int = work.state.get("rows", 0)
    self._texts: int = work.state.get("texts", 0)
    self._first = len(self._head(self._rows))
    if not work.state:
      self._file.write(self._head(0))

  @abc.abstractmethod
  def _head(self, rows: int) -> bytes:
    """Returns the bytes before the features; their number does not depend on the number of rows."""

  def begin(self, tokens: Sequence[np.ndarray]) -> None:
    """Begins a chunk of texts.

    Args:
      tokens: int32 [N] each, the rows of the texts.
    """
    sizes = [len(ids) if self._is_by_token else 1 for ids in tokens]
    self._starts = self._rows + np.cumsum([0, *sizes])

  def write(self, i: int, features: np.ndarray) -> None:
    """Writes the features of a text.

    Args:
      i: index of the text in the chunk.
      features: float32 [D] or [N, D].
    """
    self._file.seek(self._first + int(self._starts[i]) * self._width * 4)
    self._file.write(np.ascontiguousarray(features, "<f4").data)

  def end(self) -> int:
    """Ends the chunk, and returns the total number of rows of features written so far."""
    self._rows = int(self._starts[-1])
    self._texts += len(self._starts) - 1
    return self._rows

  def finish(self) -> int:
    """Completes the file after the last chunk, and returns its number of rows."""
    self._file.seek(0)
    self._file.write(self._head(self._rows))
    return self._rows


class Npy(FeatureFile):
  """A .npy file of one array, float32 [texts, D]."""

  def _head(self, rows: int) -> bytes:
    del rows  # In the end, it equals the number of texts.
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {
        "descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)})
    return head.getvalue()


class Safetensors(FeatureFile):
  """A .safetensors file.

  Its arrays are `features`, float32 [texts, D]. With a vector per token, they are `offsets`,
  int64 [texts + 1]; `features`, float32 [T, D]; and `tokens`, int32 [T]: text i has the rows from
  offsets[i] up to offsets[i + 1].
  """

  def __init__(self, work: resumable.Unfinished, count: int, width: int, is_by_token: bool):
    super().__init__(work, count, width, is_by_token)
    if is_by_token:
      self._offsets_at, self._first = self._first, self._first + (count + 1) * 8
      self._tokens = work.open(_TOKENS)
      if not work.state:
        self._file.write(bytes(8))  # The first offset is 0.

  def _arrays(self, rows: int) -> list[tuple[str, str, list[int], int]]:
    """Returns (name, type, shape, bytes) of every array, in the order of the file."""
    features = ("features", "F32", [rows, self._width], rows * self._width * 4)
    if not self._is_by_token:
      return [features]
    # The offsets come first, so that every array is aligned to the size of its elements.
    return [("offsets", "I64", [self._count + 1], (self._count + 1) * 8), features,
            ("tokens", "I32", [rows], rows * 4)]

  def _head(self, rows: int) -> bytes:
    def describe(rows: int) -> str:
      header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
      at = 0
      for name, kind, shape, size in self._arrays(rows):
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
      return json.dumps(header, separators=(",", ":"))

    room = -(-len(describe(_MOST_ROWS)) // 8) * 8
    return room.to_bytes(8, "little") + describe(rows).ljust(room).encode()

  def begin(self, tokens: Sequence[np.ndarray]) -> None:
    """Begins a chunk of texts; see the base class."""
    super().begin(tokens)
    if self._is_by_token:
      self._file.seek(self._offsets_at + (self._texts + 1) * 8)
      self._file.write(self._starts[1:].astype("<i8").data)
      self._tokens.write(np.concatenate(tokens).astype("<i4").data)

  def finish(self) -> int:
    """Completes the file; see the base class."""
    if self._is_by_token:
      self._tokens.flush()
      self._tokens.seek(0)
      self._file.seek(self._first + self._rows * self._width * 4)
      shutil.copyfileobj(self._tokens, self._file)
    return super().finish()


FORMATS: dict[str, type[FeatureFile]] = {".safetensors": Safetensors, ".npy": Npy}
