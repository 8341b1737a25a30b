"""The text that comes with every Python installation: docstrings and the language reference.

The docstrings of the standard library and of the installed packages are read with `ast`; nothing
is imported or run. One file makes one document: the docstring of the module, then those of its
classes and functions in the order of the file. `pydoc_data.topics` gives one document per topic.
Only prose is kept, without doctests, literal blocks, tables and lists of parameters. A paragraph
that has occurred before is left out. The result depends only on the installed files.
"""

import ast
import hashlib
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator

MAX_BYTES = 20_000_000  # A large corpus for a demonstration; more would only take time.

_SKIPPED_FOLDERS = {"__pycache__", "_vendor", "bertgpt", "dist-packages", "site-packages",
                    "test", "testdata", "testing", "tests"}
# A file is parsed only if at least this many bytes, and this share of it, are in triple quotes.
# Parsing takes most of the time. The limits save 60% of the work and lose 12% of the documentation.
_MIN_DOC_BYTES = 500
_MIN_DOC_SHARE = 0.2
_MIN_DOCUMENT_WORDS = 50

_TRIPLE_QUOTED = re.compile(rb'^[ \t]*[rRuU]?("""|\'\'\')(.*?)\1', re.DOTALL | re.MULTILINE)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_documents(max_bytes: int = MAX_BYTES) -> Iterator[tuple[str, tuple[str, ...]]]:
  """Yields (name, paragraphs) of every document.

  Args:
    max_bytes: UTF-8 bytes of all documents together, at most.
  """
  seen: set[bytes] = set()
  for name, texts in _raw_documents():
    paragraphs = [p for text in texts for p in prose_paragraphs(text)]
    paragraphs = [p for p in paragraphs if _is_new(p, seen)]
    if sum(p.count(" ") + 1 for p in paragraphs) < _MIN_DOCUMENT_WORDS:
      continue
    max_bytes -= sum(len(p.encode()) for p in paragraphs)
    if max_bytes < 0:
      return
    yield name, tuple(paragraphs)


def identify() -> Iterator[str]:
  """Yields lines that change when the installed files do: their names and sizes."""
  for root, path in _python_files():
    yield f"{os.path.relpath(path, root)} {os.path.getsize(path)}"


def _is_new(paragraph: str, seen: set[bytes]) -> bool:
  key = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
  is_new = key not in seen
  seen.add(key)
  return is_new


def _raw_documents() -> Iterator[tuple[str, list[str]]]:
  for topic, text in sorted(_topics().items()):
    yield f"pydoc topic {topic}", [text]
  for root, path in _python_files():
    with open(path, "rb") as f:
      source = f.read()
    if docstrings := _docstrings(source):
      yield os.path.relpath(path, root), docstrings


def _topics() -> dict[str, str]:
  try:
    from pydoc_data import topics
  except ImportError:  # Some Linux distributions leave the module out.
    return {}
  return topics.topics


def _python_files() -> Iterator[tuple[str, str]]:
  """Yields (root, file) of the standard library and then of the installed packages, by name."""
  names = ("stdlib", "platstdlib", "purelib", "platlib")
  for root in dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in names):
    for folder, folders, files in os.walk(root):
      folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
      for file in sorted(files):
        path = os.path.join(folder, file)
        if (file.endswith(".py") and not file.startswith("test_")
            and os.path.isfile(path) and os.access(path, os.R_OK)):
          yield root, path


def _docstrings(source: bytes) -> list[str]:
  """Returns the docstrings of a module in order; [] if it has few or cannot be parsed."""
  quoted = sum(len(match[2]) for match in _TRIPLE_QUOTED.finditer(source))
  if quoted < max(_MIN_DOC_BYTES, _MIN_DOC_SHARE * len(source)):
    return []
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Invalid escapes in files of other projects.
      tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return []
  return list(_walk(tree))


def _walk(node: ast.AST) -> Iterator[str]:
  if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
    yield inspect.cleandoc(text)
  for child in getattr(node, "body", ()):
    yield from _walk(child)


# ------------------------------------------------------------------- prose


_ROLE = re.compile(r":[\w:+-]+:`[~!.?]*([^`<]*?)(?:\s*<[^>`]*>)?`")  # :class:`~a.b` -> a.b
_CODE = re.compile(r"``?[~!.]*([^`]+)``?_{0,2}")
_EMPHASIS = re.compile(r"(?<!\w)\*{1,2}(\w[^*]*?)\*{1,2}(?!\w)")
_REWRITES = ((_ROLE, r"\1"), (_CODE, r"\1"), (_EMPHASIS, r"\1"), (re.compile(r"\s+"), " "),
             (re.compile(r" ?\[\d+\]_"), ""), (re.compile("::$"), ":"))

_HEADING_LINE = re.compile(r"\s*([-=~^*#+\"'])\1{2,}\s*")
_CODE_LINE = re.compile(r"\s*(?:>>>|\.\.\. |\.\. |[$%] |@\w)")
# "- ", "2. ", "name (type): " and the line "name : type" of numpydoc begin a unit; the match
# itself is left out.
_ITEM = re.compile(r"\s*(?:[-*+\u2022] +|\(?\d{1,2}[.)] +|\*{0,2}[\w.]+(?: ?\([^)]*\))?: +"
                   r"|\*{0,2}\w[\w*, .]* : .*)")

# Complete sentences. Text after the last one, such as the introduction of an example, is left out.
_SENTENCES = re.compile(r"[A-Z\"'(].*[.!?][)\"']?(?= |$)")
_NOT_PROSE = re.compile(r"[{}\\|\0\ud800-\udfff]|\.{4,}|-{3,}|==|https?://|\S {3,}\S")
_MIN_WORDS = 5
_MIN_LETTERS = 0.8  # Share of letters and spaces in prose; code and formulas have fewer.


def prose_paragraphs(text: str) -> Iterator[str]:
  """Yields the paragraphs of a docstring that are running text, as one line without markup.

  Args:
    text: docstring without its indentation, as `inspect.cleandoc` returns it.
  """
  for unit in _units(text.expandtabs().splitlines()):
    if _NOT_PROSE.search(unit):
      continue
    for pattern, replacement in _REWRITES:
      unit = pattern.sub(replacement, unit)
    sentences = _SENTENCES.match(unit.strip())
    if sentences and _is_prose(sentences[0]):
      yield sentences[0]


def _units(lines: list[str]) -> Iterator[str]:
  """Yields runs of lines with one indentation, between blank lines, or of one list item.

  Headings, doctests (up to a blank line), directives and literal blocks are left out.
  """
  unit, indent, is_item = [], 0, False
  in_doctest, code_indent = False, None  # Lines indented further than `code_indent` are code.
  for line in [*lines, ""]:
    depth, is_blank = len(line) - len(line.lstrip()), not line.strip()
    item, is_code = _ITEM.match(line), bool(_CODE_LINE.match(line))
    if _HEADING_LINE.fullmatch(line):
      unit = []
      continue
    begins = is_blank or item or is_code or (depth <= indent if is_item else depth != indent)
    if unit and begins:
      yield "\n".join(unit)
      code_indent = indent if unit[-1].endswith("::") else code_indent
      unit = []
    if is_blank:
      in_doctest = False
      continue
    if code_indent is not None and depth <= code_indent:
      code_indent = None
    if is_code and line.lstrip().startswith(".. "):
      code_indent = depth
    elif is_code:
      in_doctest = True
    if in_doctest or code_indent is not None:
      continue
    if not unit:
      indent, is_item = depth, bool(item)
    unit.append(line[item.end():] if item else line.strip())


def _is_prose(paragraph: str) -> bool:
  spaces = paragraph.count(" ")
  letters = sum(map(str.isalpha, paragraph))
  return spaces + 1 >= _MIN_WORDS and letters + spaces >= _MIN_LETTERS * len(paragraph)
