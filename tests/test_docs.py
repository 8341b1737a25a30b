"""README.md, docs/ and docstrings: commands are accepted, links have targets, `Args:` are complete.

Nothing is run or built: the program's own parser reads the commands, and their config overrides are
applied and checked. `make docs` builds the pages and checks links to headings.
"""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex
from collections.abc import Iterator

import pytest

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.config import finetuning, pretraining, recipes, unread
from bertgpt.config.overrides import try_override
from bertgpt.finetuning import tasks

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"])
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README_LINES = 130  # About two minutes of reading.


def blocks(text: str) -> Iterator[tuple[str, str]]:
  """Yields (language, content) of the fenced blocks of a page."""
  for language, content in re.findall(r"^```([^\n`]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
    yield language.strip(), content


def shell_lines(text: str) -> Iterator[str]:
  """Yields the lines of shell blocks, each joined with its continuation lines."""
  for language, content in blocks(text):
    if language in ("", "bash", "sh"):
      yield from content.replace("\\\n", " ").splitlines()


def commands(text: str) -> Iterator[list[str]]:
  """Yields the arguments of every `bertgpt ...` of a page, without pipes and redirections."""
  for line in shell_lines(text):
    words = shlex.split(line.strip().removeprefix("$ "), comments=True) if "bertgpt" in line else []
    if words and words[0] == "bertgpt":
      end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "&")), None)
      yield words[1:end]


ALL_COMMANDS = [(str(page.relative_to(ROOT)), argv) for page in WRITTEN
                for argv in commands(page.read_text("utf-8"))]


def problems_of(argv: list[str]) -> list[str]:
  """Returns the problems that the program finds before it opens devices or the user's files."""
  arguments = cli.parse(argv)
  if not arguments.takes_fields:
    return []
  is_tuning = arguments.command == "finetune"
  make_base = finetuning.base if is_tuning else config_lib.base
  recipe = getattr(arguments, "recipe", None)
  if recipe and recipe.startswith("continued:"):  # It reads a run, which is not here.
    recipe = "continued"
  config = recipes.load(recipe, make_base) if recipe else make_base()
  config, problems = try_override(config, arguments.overrides)
  if is_tuning:
    name = arguments.task or config.task.name
    return problems + tasks.name_problems(name) + finetuning.find_problems(config)
  if recipe:
    unread.check(config)
  return problems + config_lib.find_problems(config)


def load_script(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# ------------------------------------------------------------------- commands


def test_there_are_commands_to_check():
  assert len(ALL_COMMANDS) > 30
  assert {argv[0] for _, argv in ALL_COMMANDS} == set(cli.COMMANDS)  # Each is shown somewhere.


@pytest.mark.parametrize("page, argv", ALL_COMMANDS,
                         ids=[f"{page}: {' '.join(argv)}" for page, argv in ALL_COMMANDS])
def test_a_command_of_a_page_is_accepted(page, argv, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert problems_of(argv) == []


@pytest.mark.parametrize("line, fragment", [
    ("train --config demo --workdir x --confg=1", "unknown argument --confg"),
    ("train --config nowhere --workdir x", "no such file or recipe"),
    ("generate --prompt x", "required: --workdir"),
    ("evaluate --workdir x --config.eval.batch_size=none", "expected int")])
def test_a_command_that_is_wrong_is_found(line, fragment, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(cli.UserError, match=fragment):
    raise cli.UserError("\n".join(problems_of(line.split())))


def test_every_page_opens_with_a_command():
  for page in (ROOT / "docs").glob("*.md"):
    language, content = next(blocks(page.read_text("utf-8")))
    assert language == "" and re.match(r"\$? ?(bertgpt|make|python) ", content), page.name


def test_make_targets_exist():
  rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  for page in WRITTEN:
    text = page.read_text("utf-8")
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(shell_lines(text)), re.MULTILINE))
    named |= set(re.findall(r"`make ([a-z-]+)", text))
    assert named <= rules, page.name
    if page.name == "quick_start.md":
      assert named == rules


# ---------------------------------------------------------------------- links


def headings(page: pathlib.Path) -> set[str]:
  """Returns the anchors of a page, in the form of GitHub and MyST."""
  text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
  titles = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
  page = ROOT / name
  text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if "://" in target:
      continue
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), target
    if anchor and file.suffix == ".md":
      assert anchor in headings(file), target


@pytest.mark.parametrize("name", [n for n in NAMES if "reference/" not in n])
def test_files_named_in_the_text_exist(name):
  """A path in capitals stands for a file that the reader writes, like that of the toy family."""
  text = (ROOT / name).read_text("utf-8")
  folders = "bertgpt|configs|tests|docs|benchmarks|launch"
  for path in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", text):
    if not re.search(r"[A-Z]{3}|bow", path):
      assert (ROOT / path).exists(), path


def test_every_page_is_in_the_table_of_contents():
  named = set()
  for language, content in blocks((ROOT / "docs/index.md").read_text("utf-8")):
    if language == "{toctree}":
      named |= {line for line in content.splitlines() if line and not line.startswith(":")}
  pages = {str(page.relative_to(ROOT / "docs").with_suffix(""))
           for page in (ROOT / "docs").rglob("*.md")}
  assert named == pages - {"index"}


def test_readme_stays_short():
  assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


# --------------------------------------------------------------------- Python


def python_of(name: str) -> str:
  """Returns the Python blocks of a page as one program."""
  return "\n".join(content for language, content in
                   blocks((ROOT / name).read_text("utf-8")) if language == "python")


def imported_names(tree: ast.AST) -> dict[str, object]:
  """Returns the objects that a program imports from bertgpt, by name.

  Raises:
    ImportError, AttributeError: a module or a name is not there.
  """
  names = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "bertgpt":
      for alias in node.names:
        try:
          value = importlib.import_module(f"{node.module}.{alias.name}")
        except ModuleNotFoundError:
          value = getattr(importlib.import_module(node.module), alias.name)
        names[alias.asname or alias.name] = value
  return names


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_python_blocks_compile(page):
  for language, content in blocks(page.read_text("utf-8")):
    if language == "python":
      compile(content, page.name, "exec")


@pytest.mark.parametrize("name", ["docs/python.md", "docs/sweeps.md", "docs/extending.md"])
def test_imports_of_the_pages_exist(name):
  assert imported_names(ast.parse(python_of(name)))


def test_calls_of_the_python_page_fit_the_signatures():
  """Every function of bertgpt that the page calls exists, and takes these arguments."""
  tree = ast.parse(python_of("docs/python.md"))
  names, checked = imported_names(tree), set()
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    first, *rest = ast.unparse(node.func).split(".")
    if first not in names or not all(part.isidentifier() for part in rest):
      continue
    function = names[first]
    for part in rest:
      function = getattr(function, part)
    inspect.signature(function).bind(*node.args, **{k.arg: k.value for k in node.keywords})
    checked.add(ast.unparse(node.func))
  assert len(checked) > 15


@pytest.mark.parametrize("attribute", ["config", "model", "params", "step", "tokenizer", "can"])
def test_a_trained_model_has_what_the_python_page_reads(attribute):
  from bertgpt.runs.trained import Trained
  assert attribute in Trained._fields or hasattr(Trained, attribute)


# ----------------------------------------------------------------- docstrings


def documented_arguments(docstring: str) -> set[str] | None:
  """Returns the names in front of the colons of `Args:`, or None if there is no such section."""
  section = re.search(r"^Args:\n((?:  .*\n?)+)", docstring, re.MULTILINE)
  if section is None:
    return None
  names = re.findall(r"^  ([*\w][*\w, ]*):", section[1], re.MULTILINE)
  return {name.strip(" *") for entry in names for name in entry.split(",")}


def unlike_their_docstring(tree: ast.AST) -> list[str]:
  """Returns the functions whose `Args:` lacks a parameter, or has one that is not there.

  `_` needs no line, and a docstring may refer to another function for the other arguments.
  """
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      docstring = ast.get_docstring(node) or ""
      named, a = documented_arguments(docstring), node.args
      parameters = {p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p}
      parameters -= {"self", "cls", "_"}
      if "For the other arguments, see `" in docstring:
        parameters &= named
      if named is not None and named != parameters:
        found.append(f"{node.name}: {', '.join(sorted(named ^ parameters))}")
  return found


@pytest.mark.parametrize("folder", ["bertgpt", "tests", "benchmarks"])
def test_args_of_a_docstring_are_the_parameters(folder):
  found = {str(path.relative_to(ROOT)): unlike_their_docstring(ast.parse(path.read_text("utf-8")))
           for path in (ROOT / folder).rglob("*.py")}
  assert {path: functions for path, functions in found.items() if functions} == {}


@pytest.mark.parametrize("parameters, entries, fault", [
    ("self, a, *, b", ["a: one."], ["f: b"]),
    ("a, b", ["a, b: two.", "  more: text."], []),
    ("a", ["a: one.", "b: two."], ["f: b"]),
    ("*a, **b", ["*a: all."], ["f: b"]),
    ("*a, **b", ["*a, **b: all."], []),
    ("a, b", ["a: one. For the other arguments, see `g`."], [])])
def test_a_parameter_without_a_line_is_seen(parameters, entries, fault):
  lines = "\n".join(f"    {entry}" for entry in entries)
  text = f'def f({parameters}):\n  """Does.\n\n  Args:\n{lines}\n  """'
  assert unlike_their_docstring(ast.parse(text)) == fault


# ------------------------------------------------------------------ reference


def test_the_reference_is_fresh():
  stale = load_script(ROOT / "docs/generate.py").stale_pages()
  assert not stale, f"run `python docs/generate.py`, which writes {', '.join(stale)}"


def test_every_field_is_in_the_reference():
  text = (ROOT / "docs/reference/config.md").read_text("utf-8")
  for fields in (config_lib.base(), config_lib.phase(), finetuning.base()):
    for field, _ in config_lib.leaves(fields):
      assert f"| `{field}` |" in text or field.startswith("phases["), field


CHOICES = {**{("base", field): names for field, names in pretraining.CHOICES.items()},
           **{("phase", field): names for field, names in pretraining.PHASE_CHOICES.items()}}


@pytest.mark.parametrize("function, field", CHOICES)
def test_a_comment_that_lists_choices_lists_these_and_no_others(function, field):
  """The reference lists them from the table; the comments are read with the code."""
  generate = load_script(ROOT / "docs/generate.py")
  comment = generate.read_comments(pretraining, function)[field]
  if "|" in comment and "SETS" not in comment:
    names = set(CHOICES[function, field])
    assert set(re.findall(r"\| (\w+)", comment)) <= names <= set(re.findall(r"\w+", comment))
