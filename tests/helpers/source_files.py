"""Writes text files for tests, and reads them as the program does."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

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


def write_dataset(folder: pathlib.Path, **splits: list[str]) -> pathlib.Path:
  """Writes texts as a dataset of TFDS in ArrayRecord, 300 records per shard; returns the folder."""
  folder.mkdir(exist_ok=True)
  identity = tfds.core.dataset_info.DatasetIdentity(
      name="toy", version="1.0.0", data_dir=str(folder), module_name="toy")
  text = tfds.features.Text()
  features = tfds.features.FeaturesDict({"text": text, "meta": {"title": text}, "n": np.int64})
  writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(builder=identity, features=features), 300, file_format="array_record")
  writer.initialize_splits([*splits])
  writer.add_examples({split: [
      {"text": text, "meta": {"title": f"Title {i}"}, "n": i} for i, text in enumerate(texts)]
      for split, texts in splits.items()})
  writer.close_all()
  return folder


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
  """Writes a file and returns its path."""
  path.write_bytes(content)
  return path
