"""The prepared corpus: how it is made, stored and read."""

import importlib
from typing import Any

_FORMER_NAMES = ("Corpus", "open_corpus")  # In version 0.1 this package was one module.


def __getattr__(name: str) -> Any:
  """Returns what scripts that were written for version 0.1 import."""
  if name in _FORMER_NAMES:
    return getattr(importlib.import_module("bertgpt.data.corpus.corpus"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
