"""The documentation of the installation is read as prose, and is the same every time."""

import ast
import inspect
import os
import pathlib
import re
import subprocess
import sys
import sysconfig

from bertgpt.data.text import pydocs
from bertgpt.data.text.documents import Document, cut_sentences

DOCSTRING = '''Adds two numbers that the caller gives.

    The ``sum`` is exact, see :func:`~math.fsum`, unless *both* are
    infinite. There are two ways to call it::

        this = code(that, is="left out")

    Parameters
    ----------
    first : float, optional
        The number to begin with, which may be negative.
    second
        A number.

    Args:
      third (int): The number that nobody expected here. It has
        a second line.

    >>> add(1, 2)
    3

    What follows an example is prose again, of course.

    .. math:: this is
        not shown at all to anyone

    ====  ====
    a     b
    ====  ====
    '''


def test_prose_of_a_docstring_is_kept_without_code_tables_and_markup():
  assert list(pydocs.prose_paragraphs(inspect.cleandoc(DOCSTRING))) == [
      "Adds two numbers that the caller gives.",
      "The sum is exact, see math.fsum, unless both are infinite.",
      "The number to begin with, which may be negative.",
      "The number that nobody expected here. It has a second line.",
      "What follows an example is prose again, of course."]


def test_pydocs_are_the_same_twice_and_hold_documents_of_several_sentences():
  code = ("import hashlib; from bertgpt.data.text import pydocs;"
          "print(hashlib.sha256(repr(list(pydocs.read_documents(400_000))).encode()).hexdigest())")
  hashes = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in "12"}
  assert len(hashes) == 1
  documents = list(pydocs.read_documents(400_000))
  text = [p for _, document in documents for p in document]
  assert 300_000 < sum(len(p.encode()) for p in text) <= 400_000
  assert len(set(text)) == len(text)
  assert not [p for p in text if ">>>" in p or "  " in p or "``" in p]
  lengths = sorted(len(cut_sentences(Document("\n".join(d), False), "en"))
                   for _, d in documents)
  assert lengths[len(lengths) // 4] >= 4


def test_pydocs_come_from_the_docstrings_of_the_files():
  name, document = next((n, d) for n, d in pydocs.read_documents() if n == "textwrap.py")
  import textwrap
  tree = ast.parse(pathlib.Path(textwrap.__file__).read_text())
  whole = " ".join(ast.get_docstring(node) or "" for node in ast.walk(tree)
                   if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
  whole = " ".join(re.sub("[`*]", "", whole).split())
  assert len(document) > 10
  assert all(p in whole for p in document)


def test_files_that_cannot_be_read_and_characters_that_are_not_text_are_left_out(
    tmp_path, monkeypatch):
  """Editors and small container images leave links that lead nowhere."""
  monkeypatch.setattr(sysconfig, "get_path", lambda name: tmp_path)
  (tmp_path / ".#a.py").symlink_to("user@host.1234")
  prose = "This sentence is prose, and it is long enough to be kept by everyone who reads it. "
  texts = [f"{prose}{i}. {mark} is here.\n\n" for i, mark in
           enumerate(["A", r"\0", r"\ud800", "B", *"CDEFGH"])]
  (tmp_path / "a.py").write_text('"""' + "".join(texts) + '"""\n')
  documents = [*pydocs.read_documents()]
  paragraphs = [p for name, found in documents for p in found if name == "a.py"]
  assert len(paragraphs) == 8 and all("\0" not in p and p.encode() for p in paragraphs)
  assert [*pydocs.identify()] == [f"a.py {(tmp_path / 'a.py').stat().st_size}"]
