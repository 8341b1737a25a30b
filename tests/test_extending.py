"""docs/extending.md: the family that the page shows in full passes the command of the page."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def insert(path, before, line):
  """Adds a line to a table, after the line of another family."""
  text = path.read_text()
  assert text.count(before) == 1, f"{path}: {before!r}"
  path.write_text(text.replace(before, before + line))


def line_of_page(start):
  (line,) = (line for line in PAGE.splitlines() if line.startswith(start))
  return f"{line}\n"


def test_the_family_of_the_page_passes_its_command(tmp_path):
  """Pastes its files and its lines of tables into a copy of the repository."""
  for folder in ("bertgpt", "configs", "docs", "tests"):
    shutil.copytree(ROOT / folder, tmp_path / folder,
                    ignore=shutil.ignore_patterns("__pycache__", "_build"))
  shutil.copy(ROOT / "setup.cfg", tmp_path)
  files = re.findall(r"`(\w+/\S+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
  assert len(files) == 5  # Record, model, conversion, recipe, tests.
  for path, text in files:
    (tmp_path / path).write_text(text)
  record = tmp_path / "bertgpt" / "config" / "families" / "__init__.py"
  insert(record, "  bert,\n", "  bow,\n")
  insert(record, '    "bert": bert.FAMILY,\n', line_of_page('    "bow": bow.FAMILY,'))
  insert(tmp_path / "tests" / "helpers" / "small_runs.py", '    "bert": ("mlm_nsp",),\n',
         line_of_page('    "bow": ('))
  insert(tmp_path / "docs" / "families.md", "| vocabulary | preset: parameters |\n|---|---|---|\n",
         line_of_page("| Bag of words |"))

  (command,) = re.findall(r"^```\npython -m pytest (.*)\n```", PAGE, re.MULTILINE)
  arguments = [*shlex.split(command), "tests/models/test_bow.py", "tests/test_family_use.py",
               "-p", "no:cacheprovider", "-m", "not hf and not libtpu",
               "-k", "not test_family_use or bow or every_family"]
  result = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=tmp_path, check=False,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
                          text=True)
  assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
