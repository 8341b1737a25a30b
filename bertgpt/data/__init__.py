"""Data, from text to batches, without JAX: reader processes must start quickly."""

import importlib
from typing import Any

# Name in version 0.1 -> module now. Scripts of users import them.
_FORMER_NAMES = {"tokenizers": "bertgpt.data.tokens.tokenizers"}


def __getattr__(name: str) -> Any:
  """Returns a module under its name in version 0.1."""
  if name in _FORMER_NAMES:
    return importlib.import_module(_FORMER_NAMES[name])
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
