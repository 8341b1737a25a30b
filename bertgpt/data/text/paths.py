"""Files that the path in a source names: those of a glob, or the one that has this very name."""

import glob
import os

from bertgpt.errors import DataError


def find_files(pattern: str) -> list[str]:
  """Returns the files of a pattern, in the order of their names.

  Args:
    pattern: path or glob. If a file or folder with this very name exists, as '[a]*', its
      characters have no special meaning.
  Raises:
    DataError: there is no such file, or one cannot be read.
  """
  paths = _match(pattern)
  if not paths and os.path.isdir(pattern):
    raise DataError(f"data.source: {pattern} is a folder. Name its files, as in "
                    f"{os.path.join(pattern, '*')}")
  if not paths:
    raise DataError(f"data.source: no file matches {pattern!r}. "
                    "Give an existing path or glob (relative to the current directory)")
  for path in paths:
    if not os.access(path, os.R_OK):
      raise DataError(f"data.source: {path} cannot be read. Change its permissions")
  return paths


def split_field(target: str, default: str) -> tuple[str, str]:
  """Returns (pattern, field) of 'pattern#field', or of a pattern that has '#' in its names.

  Args:
    target: pattern with or without a field. If files match it with all its '#', it has none.
    default: field if none is given.
  """
  pattern, mark, field = target.rpartition("#")
  return (pattern, field) if mark and not _match(target) else (target, default)


def _match(pattern: str) -> list[str]:
  literal = pattern
  while literal and not os.path.lexists(literal):
    literal = os.path.dirname(literal)
  for choice in (glob.escape(literal) + pattern[len(literal):], pattern):
    if paths := [path for path in glob.glob(choice, recursive=True) if os.path.isfile(path)]:
      return sorted(paths)
  return []
