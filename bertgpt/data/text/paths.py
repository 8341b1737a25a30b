"""Files that match a glob, or the file with exactly that name; what their endings mean."""

import glob
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from bertgpt import files
from bertgpt.data.text import intake
from bertgpt.errors import DataError

JSON_ENDINGS = frozenset({".jsonl", ".json", ".ndjson"})  # One JSON object per line.
# Ending -> kind of source that reads such files, or what they are if there is none.
KINDS = dict.fromkeys(JSON_ENDINGS, "jsonl") | {".parquet": "parquet"}
UNREAD = {".csv": "CSV and TSV", ".tsv": "CSV and TSV", ".arrow": "Arrow files",
          ".feather": "Feather files"}
# What is read of a file at most to find out whether it holds JSON lines.
_HEAD_LINES, _HEAD_LINE_BYTES = 8, 1 << 20


def find_files(pattern: str) -> dict[str, Any]:
  """Returns the files of a pattern, in the order of their names.

  For a bucket, the entries of its listing hold size and digest, so that no request per object is
  needed.

  Args:
    pattern: path or glob. If a file or folder with exactly this name exists, such as '[a]*', its
      characters have no special meaning.
  Returns:
    Path -> its `Info` of the listing; None for a file on a disk.
  Raises:
    DataError: there is no such file, or one cannot be read.
  """
  paths = _match(pattern)
  if files.is_remote(pattern):
    if paths:
      return paths
    raise DataError(f"data.source: no object matches {pattern!r}. Give an existing name or glob")
  if not paths and os.path.isdir(pattern):
    raise DataError(f"data.source: {pattern} is a folder. Name its files, as in "
                    f"{os.path.join(pattern, '*')}")
  if not paths and os.path.exists(pattern):
    raise DataError(f"data.source: {pattern} is not a regular file. Write its content to one first")
  if not paths:
    raise DataError(f"data.source: no file matches {pattern!r}. "
                    "Give an existing path or glob (relative to the current directory)")
  for path in paths:
    if not os.path.exists(path):
      raise DataError(f"data.source: {path} is a link to {os.path.realpath(path)}, which does not "
                      "exist. Fetch that file, or remove the link")
    if not os.access(path, os.R_OK):
      raise DataError(f"data.source: {path} cannot be read. Change its permissions")
  return paths


def split_field(target: str, default: str) -> tuple[str, str]:
  """Returns (pattern, field) of 'pattern#field', both of which may hold '#' too.

  The pattern is the longest one that files match, so that their names may contain '#'.

  Args:
    target: pattern with or without a field.
    default: field if none is given.
  """
  if files.is_remote(target):  # No request is sent: a source is parsed before anything is opened.
    pattern, mark, field = target.rpartition("#")
    return (pattern, field) if mark else (target, default)
  if "#" not in target or _match(target):
    return target, default
  last, _, _ = target.rpartition("#")
  pattern = last
  while "#" in pattern and not _match(pattern):
    pattern, _, _ = pattern.rpartition("#")
  pattern = pattern if pattern == last or _match(pattern) else last
  return pattern, target[len(pattern) + 1:]


def exists(pattern: str) -> bool:
  """Returns whether files match a path or glob, as in `find_files`."""
  return bool(_match(pattern))


def _match(pattern: str) -> dict[str, Any]:
  if files.is_remote(pattern):
    return files.match_objects(pattern)
  literal = pattern
  while literal and not os.path.lexists(literal):
    literal = os.path.dirname(literal)
  for choice in (glob.escape(literal) + pattern[len(literal):], pattern):
    if paths := [path for path in _expand(choice) if os.path.isfile(path) or _is_broken(path)]:
      return dict.fromkeys(sorted(paths))
  return {}


def _expand(pattern: str) -> Iterator[str]:
  """Yields the paths of files that a glob matches, by the rules of `glob`.

  After `**`, a link to a folder that it is in is not followed. `glob` follows one such link 40
  times, and does not end with two of them.
  """
  parts = pattern.split("/")
  first = parts.index("**") if "**" in parts else len(parts)
  tail = [part for part in parts[first:] if part]
  if not tail or {".", ".."} & {*tail}:
    yield from glob.glob(pattern, recursive=True)
  elif parts[-1]:  # Otherwise, the pattern matches folders only.
    root = "/" if pattern.startswith("/") else ""
    head = root + "".join(f"{part}/" for part in parts[:first] if part)
    for folder in glob.glob(head) if head else [""]:
      for name in _list_tree(folder, any(part.startswith(".") for part in tail)):
        if files.is_matched(name.split("/"), tail):
          yield os.path.join(folder, name)


def _list_tree(top: str, with_hidden: bool) -> Iterator[str]:
  """Yields the names, relative to a folder, of all files in it and in its folders.

  Args:
    top: the folder; '': the current one.
    with_hidden: whether names that begin with a dot are among them.
  """
  real = os.path.realpath(top) if top or os.path.exists(".") else ""
  waiting = [("", real, frozenset(map(str, pathlib.PurePath(real).parents)))]
  while waiting:
    prefix, real, above = waiting.pop()
    above |= {real}
    try:
      with os.scandir(os.path.join(top, prefix) or ".") as scan:
        entries = [entry for entry in scan if with_hidden or not entry.name.startswith(".")]
    except OSError:  # It is no folder, or cannot be listed: `glob` leaves both out.
      continue
    for entry in entries:
      is_link = entry.is_symlink()
      is_folder = os.path.isdir(entry) if is_link else entry.is_dir()
      target = os.path.realpath(entry) if is_link else os.path.join(real, entry.name)
      if not is_folder:
        yield prefix + entry.name
      elif target not in above:
        waiting.append((f"{prefix}{entry.name}/", target, above))


def _is_broken(path: str) -> bool:
  """Returns whether a path is a link to nothing, such as a file that git-annex has not fetched."""
  return os.path.islink(path) and not os.path.exists(path)


def find_ending(path: str | os.PathLike) -> str:
  """Returns the ending of a file's name in lower case, such as '.tsv', without a compression's.

  Args:
    path: the file.
  """
  name = pathlib.PurePath(path)
  return (name.with_suffix("") if intake.is_compressed(str(name)) else name).suffix.lower()


def is_json_lines(path: str | os.PathLike) -> bool:
  """Returns whether the ending of a file, without that of a compression, is in JSON_ENDINGS."""
  return find_ending(path) in JSON_ENDINGS


def holds_json_lines(path: str) -> bool:
  """Returns whether the first lines of a file that are not blank are JSON objects.

  Args:
    path: plain or compressed file. Only its start is read. One that cannot be read has none.
  """
  try:
    with intake.open_file(path) as f:
      lines = itertools.islice(iter(lambda: f.readline(_HEAD_LINE_BYTES), b""), _HEAD_LINES)
      whole = itertools.takewhile(lambda line: len(line) < _HEAD_LINE_BYTES, lines)
      records = [intake.parse_record(line.decode()) for line in whole if line.strip()]
  except (*intake.DAMAGED, ValueError):
    return False
  return bool(records) and all(isinstance(record, dict) for record in records)


def correct(ending: str, weight: str, name: str) -> str:
  """Returns what to write as a source for files with an ending, or that they are not read.

  Args:
    ending: result of `find_ending`.
    weight: weight of the source with its asterisk, or ''.
    name: path or glob of the files, with their field if they have one.
  """
  if ending in UNREAD:
    return f"{UNREAD[ending]} are not read. Convert the file to .jsonl or .parquet"
  return f"Write {weight}{KINDS.get(ending, 'text')}:{name}"
