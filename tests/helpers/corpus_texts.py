"""Texts of random words, configs that prepare them, and the resulting files."""

import hashlib
import os
import time

import numpy as np

from bertgpt import config as config_lib

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_text(path, num_documents, seed=0, words=60):
  """Writes documents of random words, one sentence per line, separated by blank lines."""
  rng = np.random.default_rng(seed)
  documents = []
  for _ in range(num_documents):
    lines = []
    for _ in range(rng.integers(1, 12)):
      line = rng.choice(list(LETTERS), (rng.integers(1, words), 4))
      lines.append(" ".join("".join(word) for word in line) + ".")
    documents.append("\n".join(lines))
  path.write_text("\n\n".join(documents) + "\n")
  return documents


def write_much_text(path):
  """Writes 10 MB, which take some seconds to prepare: 300 documents, many times."""
  documents = write_text(path, 300)
  path.write_text("\n\n".join(documents * 20))


def make_config(tmp_path, source=None, workers=1, **data):
  """Returns a config for `text.txt` with a WordPiece tokenizer of single letters."""
  vocabulary = tmp_path / "vocab.txt"
  specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  pieces = [*specials, ".", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
  vocabulary.write_text("\n".join(pieces) + "\n")
  config = config_lib.base()
  config.tokenizer.path = os.fspath(vocabulary)
  config.data.source = source or f"text:{tmp_path}/text.txt"
  config.data.cache_dir = os.fspath(tmp_path / "cache")
  config.data.prepare_workers = workers
  config.data.update(data)
  return config


def hashes(folder):
  """Returns the SHA-256 of every file of a folder."""
  return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
          for f in sorted(folder.rglob("*")) if f.is_file()}


def wait_for(condition, seconds=1200):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)
