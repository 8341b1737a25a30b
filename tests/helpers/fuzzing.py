"""Random inputs for the readers of files, and the one property that all of them have.

The tests in tests/fuzz draw a few examples, always the same ones. With BERTGPT_FUZZ_SECONDS=N,
each draws new ones for N seconds: `BERTGPT_FUZZ_SECONDS=30 python -m pytest tests/fuzz`. An example
that fails is printed, with the seed that finds it again.
"""

import contextlib
import copy
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

from bertgpt.errors import UserError

SECONDS = float(os.environ.get("BERTGPT_FUZZ_SECONDS", "0"))
FAILED = object()  # Result of `attempt` after an error that is meant for the user.

# Fragments that have a meaning for readers and tokenizers, or that libraries treat differently.
FRAGMENTS = (
    " ", "\t", "\n", "\r", "\r\n", "\n\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0",
    "\u1680", "\u2028", "\u2029", "\u3000", "\u200b", "\u200d", "\u202e", "\ufeff", "\ufffd",
    "\uffff", "\0", "\x7f", "\xad", "\ud800", "\udfff", "[MASK]", "[SEP]", "[CLS]", "[PAD]",
    "[UNK]", "<s>", "</s>", "<unk>", "<mask>", "<pad>", "<|endoftext|>", "##", "##a", "\u2581",
    "\u0120", "\u010a", "<0x0A>", "e\u0301", "\u00e9", "\u0301", "a\u0300\u0323", "\uac01",
    "\u1100\u1161\u11a8", "\u304b\u3099", "\uff76\uff9e", "\u0915\u094d\u0937\u093f",
    "\u0628\u0650", "\u0130", "\u0131", "\u00df", "\ufb01", "\u2167", "\U0001f600",
    "\U0001f468\u200d\U0001f469", "\U0001d400", "\U000e0041", "\u4e2d\u6587", "\u3002", ".", "?",
    "!", "Dr.", "a", "A", "the", "It is.", "1", "1,000.5", "-", "_", "'", '"', "\\", "#", "{",
    "}", "a" * 120, "\u4e2d" * 120)


def texts(max_size: int = 40) -> st.SearchStrategy[str]:
  """Texts of any Unicode characters, even lone surrogates, in which `FRAGMENTS` are frequent."""
  pieces = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(), max_size=3),
                    max_size=max_size // 3)
  return pieces.map("".join) | st.text(max_size=max_size)


def names() -> st.SearchStrategy[str]:
  """Short texts that may stand in a line of a table."""
  return st.sampled_from(("a", "B-X", "I-X", "O", "B-", "_", "1", "10", "0.5", "nan", "", "\xa0"))


def values(leaves: st.SearchStrategy | None = None) -> st.SearchStrategy[Any]:
  """JSON values, including numbers that JSON lacks."""
  if leaves is None:
    leaves = (st.none() | st.booleans() | st.integers() | st.floats() | texts(12)
              | st.sampled_from((10**400, -1, 0, 2**31, 2**63, 1e308)))
  return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(texts(6), inner, max_size=3), max_leaves=8)


def changed(content: Any, replacement: st.SearchStrategy | None = None) -> st.SearchStrategy[Any]:
  """JSON in which some values, at any depth, are replaced, missing, or doubled."""
  replacement = values() if replacement is None else replacement
  places = list(_places(content))

  @st.composite
  def draw_changed(draw):
    new = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
      *path, last = draw(st.sampled_from(places))
      with contextlib.suppress(KeyError, IndexError, TypeError):  # An earlier change removed it.
        holder = new
        for key in path:
          holder = holder[key]
        if draw(st.integers(0, 3)):
          holder[last] = copy.deepcopy(draw(replacement))
        elif isinstance(holder, list):
          holder.append(holder[last])
        else:
          del holder[last]
    return new
  return draw_changed()


def _places(content: Any) -> Iterator[tuple]:
  inner = content.items() if isinstance(content, dict) else enumerate(content)
  for key, value in inner:
    yield (key,)
    if isinstance(value, (dict, list)):
      yield from ((key, *path) for path in _places(value))


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
  """A file with a few changed bytes, or without its end or its start."""
  size = len(content)

  def damage(cuts, start, end):
    data = bytearray(content)
    for place, new in cuts:
      data[place:place + len(new)] = new
    return bytes(data[start:size - end])
  end = st.just(0) | st.integers(0, size)
  return st.builds(damage, st.lists(st.tuples(st.integers(0, size), st.binary(max_size=4)),
                                    max_size=3), st.sampled_from((0, 0, 0, 1)), end)


def run(check: Callable, examples: int, **strategies: st.SearchStrategy) -> None:
  """Calls a check with random arguments.

  Args:
    check: function that raises an error if its property does not hold.
    examples: number of calls, unless BERTGPT_FUZZ_SECONDS is set.
    **strategies: arguments of the check.
  """
  end, is_first = time.monotonic() + SECONDS, True
  while is_first or time.monotonic() < end:
    settings = hypothesis.settings(
        max_examples=examples, derandomize=not SECONDS, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck))
    test = settings(hypothesis.given(**strategies)(check))
    if SECONDS:
      test = hypothesis.seed(random.getrandbits(32))(test)
    test()
    is_first = False


def attempt(action: Callable, *arguments: Any, **options: Any) -> Any:
  """Returns the result of an action; `FAILED` if it raises an error for the user, of one line.

  Any other error is a bug, and is raised.
  """
  try:
    return action(*arguments, **options)
  except UserError as e:
    assert str(e).strip() and "\n" not in str(e), f"not one line: {str(e)!r}"
    return FAILED


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
  """Yields a new folder, which is removed; a fixture would be shared by the examples."""
  with tempfile.TemporaryDirectory() as path:
    yield pathlib.Path(path)
