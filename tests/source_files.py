"""Files of text for tests, and what the program reads from them."""

import pathlib

from bertgpt.data.text import sources


def read(spec, **kwargs):
  """Returns the documents of a source."""
  return list(sources.open_source(spec, **kwargs))


def paragraphs(spec, **kwargs):
  """Returns the paragraphs of every document of a source."""
  return [document.paragraphs for document in read(spec, **kwargs)]


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
  """Writes a file and returns its path."""
  path.write_bytes(content)
  return path
