"""Comparison of a corpus with its manifest, without reading all files in every process."""

import hashlib
import json
import os
import pathlib

from bertgpt import files
from bertgpt.data.text.digests import sha256_files
from bertgpt.errors import DataError


def identify(manifest: dict) -> str:
  """Returns the SHA-256 (hex) of the manifest of a corpus without the path of the text.

  The manifest holds the SHA-256 of every file, so equal identities mean equal corpora. Counts that
  earlier versions did not write are left out, so that their runs resume.

  Args:
    manifest: content of manifest.json.
  """
  content = {name: value for name, value in manifest.items() if name != "source"}
  content["splits"] = {split: {name: value for name, value in info.items()
                               if name != "unknown_bytes"}
                       for split, info in manifest["splits"].items()}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check(path: pathlib.Path, manifest: dict) -> None:
  """Checks that the files of a corpus exist and have the sizes and hashes of the manifest.

  Shards are not hashed, because their reader detects damage.

  Args:
    path: folder of the corpus, on a disk or in a bucket.
    manifest: content of its manifest.json.
  Raises:
    DataError: a file differs; the message names it.
  """
  if isinstance(path, files.BucketPath):
    _check_objects(path, manifest)
  else:
    _check_files(path, manifest)


def _check_objects(path: files.BucketPath, manifest: dict) -> None:
  """Compares the sizes of objects with the manifest; the copy of the index is hashed once."""
  found = path.list_tree()
  for name, expected in manifest["files"].items():
    size = found[name].st_size if name in found else None
    if size != expected["bytes"]:
      what = "missing" if size is None else f"{size} bytes instead of {expected['bytes']}"
      raise DataError(f"{path / name}: {what}. Delete the corpus and prepare it again")


def _check_files(path: pathlib.Path, manifest: dict) -> None:
  shards = {s["file"] for split in manifest["splits"].values() for s in split["shards"]}
  for name, expected in manifest["files"].items():
    file = path / name
    if not file.is_file():
      raise DataError(f"{file}: missing. Delete the corpus and prepare it again")
    if file.stat().st_size != expected["bytes"]:
      raise DataError(f"{file}: {file.stat().st_size} bytes instead of {expected['bytes']}. "
                      "Delete the corpus and prepare it again")
  checked = {os.fspath(path / name): expected["sha256"]
             for name, expected in manifest["files"].items() if name not in shards}
  # The index of hundreds of millions of documents has tens of gigabytes: it is not read every time.
  for file, found in sha256_files(checked, path.parent).items():
    if found != checked[file]:
      raise DataError(f"{file}: damaged (its SHA-256 differs from the manifest). "
                      "Delete the corpus and prepare it again")
