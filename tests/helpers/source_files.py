"""Writes text files for tests, and reads them as the program does."""

import pathlib

from bertgpt.data.text import documents, sources


def read(spec, **kwargs):
  """Returns the documents of a source."""
  return list(sources.open_source(spec, **kwargs))


def paragraphs(spec, **kwargs):
  """Returns the lines of every document of a source."""
  return [tuple(document.text.split("\n")) for document in read(spec, **kwargs)]


def sentences(spec):
  """Yields the sentences of all documents of a source in English, without spaces around them."""
  for document in sources.open_source(spec):
    yield from map(str.strip, documents.cut_sentences(document, "en"))


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
  """Writes a file and returns its path."""
  path.write_bytes(content)
  return path
