"""Writes docs/reference/ from the fields, flags and tables of the program.

    python docs/generate.py            writes the pages that differ
    python docs/generate.py --check    only names the stale pages; exit code 1 if there are any

`make docs` does the first, and a test does the second. JAX is not imported.
"""

import argparse
import ast
import importlib
import importlib.util
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bertgpt import cli, errors  # noqa: E402
from bertgpt import config as config_lib  # noqa: E402
from bertgpt.commands import COMMANDS  # noqa: E402
from bertgpt.config import (  # noqa: E402
    choices,
    families,
    finetuning,
    pretraining,
    recipes,
    resuming,
)
from bertgpt.data.batches import formats  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate.py: change what it reads, then run `make docs`. -->"


# --------------------------------------------------------------- Markdown


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Returns the lines of a table."""
  return [_row(header), _row(["---"] * len(header)), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cells) + " |"


def prose(text: str) -> str:
  """Returns text for a cell of a table, with all Markdown markup escaped except code."""
  *pairs, last = re.split(r"(`[^`]*`)", " ".join(text.split()))
  parts = [part.replace("|", r"\|") if i % 2 else _escape(part) for i, part in enumerate(pairs)]
  return "".join([*parts, _escape(last)])


def _escape(text: str) -> str:
  return re.sub(r"([\\`*|<>\[\]])", r"\\\1", text)


def code(text: object) -> str:
  """Returns text as code for a cell of a table."""
  return f"`{text}`".replace("|", r"\|")


def codes(texts: Iterable[object]) -> str:
  return ", ".join(map(code, texts)) or "-"


def page(title: str, *blocks: str | Sequence[str]) -> str:
  """Returns a page of blocks: each is a paragraph or a list of lines."""
  parts = [block if isinstance(block, str) else "\n".join(block) for block in blocks]
  return "\n\n".join([NOTE, f"# {title}", *parts]) + "\n"


# ----------------------------------------------------------------- fields


def read_comments(module, function: str) -> dict[str, str]:
  """Returns the comment of every field that a function sets, by the path of the field.

  Args:
    module: the module that holds the function.
    function: its name; it sets fields as `config.data.source = ...`, through local names too.
  """
  path = pathlib.Path(module.__file__)
  beside, above = _split_comments(path)
  tree = ast.parse(path.read_text("utf-8"))
  (body,) = [node.body for node in tree.body
             if isinstance(node, ast.FunctionDef) and node.name == function]
  places: dict[str, str] = {}  # Local name -> path of the group that it stands for.
  comments = {}
  for node in body:
    if not isinstance(node, ast.Assign):
      continue
    fields = [_path_of(target, places) for target in node.targets
              if isinstance(target, ast.Attribute)]
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "ConfigDict":
      places |= dict.fromkeys(names, fields[0] if fields else "")
      continue
    for field in fields:
      comments[field] = beside.get(node.lineno) or " ".join(_block_above(above, node.lineno))
  return comments


def _path_of(target: ast.Attribute, places: dict[str, str]) -> str:
  first, *rest = ast.unparse(target).split(".")
  return ".".join(part for part in (places[first], *rest) if part)


def _split_comments(path: pathlib.Path) -> tuple[dict[int, str], dict[int, str]]:
  """Returns the comments at the ends of lines, and those with a line of their own, by line."""
  beside, above = {}, {}
  with tokenize.open(path) as file:
    for token in tokenize.generate_tokens(file.readline):
      if token.type == tokenize.COMMENT:
        is_alone = token.line.lstrip().startswith("#")
        (above if is_alone else beside)[token.start[0]] = token.string.lstrip("# ")
  return beside, above


def _block_above(comments: dict[int, str], line: int) -> list[str]:
  first = line
  while first - 1 in comments:
    first -= 1
  return [comments[i] for i in range(first, line)]


def field_table(leaves: Iterable[tuple[str, object]], comments: dict[str, str],
                named_choices: dict[str, Sequence[str]]) -> list[str]:
  """Returns a table of fields: name, default, meaning.

  Raises:
    ValueError: a field has no comment.
  """
  rows = []
  for field, default in leaves:
    text, names = comments[field], named_choices.get(field, ())
    if names:  # A comment that only lists them is left out.
      is_list = not text or {part.strip() for part in text.split("|")} == set(names)
      parts = ([] if is_list else [prose(text.rstrip("."))]) + [f"One of {codes(names)}"]
      text = ". ".join(parts)
    else:
      text = prose(text)
    if not text:
      raise ValueError(f"{field}: write a comment beside or above the line that sets it")
    rows.append((code(field), code(repr(default)), text))
  return table(("field", "default", "meaning"), rows)


def write_config() -> str:
  comments = read_comments(pretraining, "base")
  of_phase = read_comments(pretraining, "phase")
  defaults = dict(config_lib.leaves(config_lib.base()))
  groups: dict[str, list[tuple[str, object]]] = {}
  for field in comments:  # In the order of the source.
    if field in defaults:
      group = field.split(".")[0] if "." in field else "The run"
      groups.setdefault(group, []).append((field, defaults[field]))
  blocks: list[str | list[str]] = [
      "Every field of a pretraining config (`bertgpt.config.base()`), of one of its phases "
      "(`bertgpt.config.phase()`) and of a fine-tuning config "
      "(`bertgpt.config.finetuning.base()`). `--config.FIELD=VALUE` overrides a field; "
      "[config](../config.md) explains recipes."]
  for group, leaves in groups.items():
    blocks += [f"## {group}", field_table(leaves, comments, pretraining.CHOICES)]
  blocks += ["## A phase", "`config.phases` is a tuple of `phase(...)`; "
             "`--config.phases[0].steps=100` overrides a field of one.",
             field_table([(f, config_lib.phase()[f]) for f in of_phase], of_phase,
                         pretraining.PHASE_CHOICES)]
  blocks += ["## Fields that a choice reads",
             "A field that only other choices read must keep its default: a config that sets it "
             "is refused when a run begins.", read_by_choices()]
  blocks += ["## Fields that may change when a run resumes",
             f"{codes(resuming.RESUMABLE)}, and `phases[].steps`; a group stands for all its "
             "fields. `--allow_change=FIELD` permits another."]
  own = read_comments(finetuning, "base")
  shared = ("optimizer", "mesh", "log", "system")
  tuning_defaults = dict(config_lib.leaves(finetuning.base()))
  tuning = [(f, tuning_defaults[f]) for f in own if f.split(".")[0] not in shared]
  tuning_choices = {"task.truncation": finetuning.TRUNCATIONS, "save": finetuning.SAVES}
  blocks += ["## Fine-tuning", f"A fine-tuning config also has the groups {codes(shared)} of a "
             "pretraining config, with `log.tensorboard=False`.",
             field_table(tuning, own, tuning_choices),
             "These fields may change when fine-tuning resumes: "
             f"{codes(finetuning.RESUMABLE)}."]
  return page("Config fields", *blocks)


def read_by_choices() -> list[str]:
  rows = [("`model.family`", code(name), codes(f"model.{field}" for field in sorted(family.reads)))
          for name, family in families.FAMILIES.items()]
  rows += [("`objective.name`", code(name), codes(sorted(objective.reads)))
           for name, objective in choices.OBJECTIVES.items()]
  rows += [("`optimizer.name`", code(name), codes(sorted(reads)))
           for name, reads in choices.OPTIMIZERS.items()]
  rows += [("`tokenizer.kind`", code(name), codes(sorted(reads)))
           for name, reads in choices.TOKENIZERS.items()]
  rows += [("`phases[].schedule`", code(name), codes(sorted(reads)))
           for name, reads in choices.SCHEDULES.items()]
  return table(("choice", "value", "fields that it reads, but some other value does not"), rows)


# --------------------------------------------------------------- commands


def write_commands() -> str:
  parser = cli.make_parser()
  (commands,) = [action for action in parser._actions
                 if isinstance(action, argparse._SubParsersAction)]
  assert commands.choices.keys() == COMMANDS.keys()
  blocks: list[str | list[str]] = [
      "`python -m bertgpt` is the same program. Every command has `--help`.",
      table(("command", "what it does"),
            [(f"[`{name}`](#{name})", prose(command.description))
             for name, command in commands.choices.items()])]
  for name, command in commands.choices.items():
    rows = [_describe_flag(action) for action in command._actions
            if not isinstance(action, argparse._HelpAction)]
    blocks += [f"## {name}", prose(command.description),
               table(("argument", "default", "meaning"), rows)]
    if command.get_default("takes_fields"):
      blocks.append("Takes config fields: `--config.FIELD=VALUE`.")
  return page("Commands", *blocks)


def _describe_flag(action: argparse.Action) -> tuple[str, str, str]:
  name = action.option_strings[-1] if action.option_strings else ""
  value = action.metavar or ("" if action.nargs == 0 else
                             ",".join(map(str, action.choices or ())) or action.dest.upper())
  default = ("required" if action.required else
             "-" if action.default in (None, "", False, argparse.SUPPRESS) else
             code(action.default))
  return code(" ".join(part for part in (name, value) if part)), default, prose(action.help or "")


# ---------------------------------------------------- families and choices


def write_families() -> str:
  blocks: list[str | list[str]] = [
      "The choices that a config makes by name. Each of them is one record in a table and one "
      "file; see [extending](../extending.md).",
      "## Families",
      table(("`model.family`", "kind", "objectives", "abilities", "presets"),
            [(code(name), family.kind, codes(family.objectives), codes(sorted(family.abilities)),
              codes(family.presets)) for name, family in families.FAMILIES.items()]),
      "## Objectives",
      table(("`objective.name`", "meaning", "rows", "special tokens", "loss shown"),
            [(code(name), first_line(f"bertgpt.training.objectives.{name}"), code(o.rows),
              codes(o.needs), code(o.loss)) for name, o in choices.OBJECTIVES.items()]),
      "## Optimizers",
      table(("`optimizer.name`", "meaning"),
            [(code(name), first_line(f"bertgpt.training.optimizers.{name}"))
             for name in choices.OPTIMIZERS]),
      "## Schedules",
      f"{codes(choices.SCHEDULES)}; `bertgpt/training/schedules.py` has the formulas and their "
      "sources."]
  return page("Families, objectives, optimizers, schedules", *blocks)


def first_line(module: str) -> str:
  """Returns the first line of a module's docstring, without importing the module."""
  path = ROOT / f"{module.replace('.', '/')}.py"
  return prose((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0])


def write_presets() -> str:
  blocks: list[str | list[str]] = [
      "Published sizes. A recipe takes one with `config.model.update(presets.BERT[\"base\"])`; see "
      "`bertgpt/config/presets.py` for the names that recipes use."]
  for name, family in families.FAMILIES.items():
    fields = list(dict.fromkeys(f for preset in family.presets.values() for f in preset))
    blocks += [f"## {name}", table(("field of `config.model`", *map(code, family.presets)),
                                   [(code(field), *(code(preset.get(field, "-"))
                                                    for preset in family.presets.values()))
                                    for field in fields if field != "family"])]
  return page("Presets", *blocks)


def write_recipes() -> str:
  blocks: list[str | list[str]] = [
      "The recipes that come with bertgpt, by name: `--config demo` is `--config configs/demo.py`. "
      "The texts are their docstrings."]
  for name in recipes.names():
    docstring = ast.get_docstring(ast.parse((recipes.folder() / f"{name}.py").read_text("utf-8")))
    blocks += [f"## {name}", f"```text\n{docstring}\n```"]
  return page("Recipes", *blocks)


# --------------------------------------------------------- rows of a batch


def write_rows() -> str:
  """Returns the page of rows. The sizes are all different, so letters can stand for them."""
  blocks: list[str | list[str]] = [
      "The arrays of a batch before it is corrupted, per objective: `formats.specs` is the only "
      "schema. B rows of L tokens; P: sequences that a row may hold, "
      "`config.data.max_sequences`."]
  for name, objective in choices.OBJECTIVES.items():
    config = config_lib.base()
    config.objective.name = name
    length, sequences = 131, 7
    config.data.max_sequences = sequences
    specs = formats.specs(config, config_lib.phase(seq_len=length))
    letters = {length: "L", sequences: "P"}
    row_format = importlib.import_module(f"bertgpt.data.batches.{objective.rows}")
    blocks += [f"## {name}", f"Rows: `bertgpt/data/batches/{objective.rows}.py`.",
               table(("array", "shape", "dtype"), [
                   (code(array), code(f"[{', '.join(['B', *(letters[n] for n in shape)])}]"),
                    code(dtype.__name__)) for array, (shape, dtype) in specs.items()]),
               f"```text\n{row_format.__doc__.strip()}\n```"]
  return page("Rows of a batch", *blocks)


# -------------------------------------------------------------- exit codes


def write_exit_codes() -> str:
  header, *rows = _read_table(errors.__doc__)
  rest = errors.__doc__.rpartition("|\n")[2].strip()
  return page("Exit codes", "Bad input gives one line that names the file, the field or the flag, "
              "and what to do.", table(header, rows), rest)


def write_faults() -> str:
  path = ROOT / "tests" / "faults" / "matrix.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  matrix = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(matrix)
  rows = [(prose(fault.what), prose(fault.promise), "<br>".join(code(t) for t in fault.tests))
          for fault in matrix.MATRIX]
  return page("Faults", "What the program promises when something goes wrong, and the tests, in "
              "`tests/`, that show it. The numbers are [exit codes](exit_codes.md).",
              table(("fault", "promise", "tests"), rows),
              "## Soak",
              "`make soak MINUTES=20 SEED=1 PROCESSES=2` kills, stops and damages small runs at "
              "random: while they start, in training, in saves and in evaluations. Each of them "
              "must end like an undisturbed one, bit for bit, with every step logged once.",
              table(*_header_and_rows(matrix.SOAKS)),
              "## Recovery",
              "`make recovery REPETITIONS=5` measures runs of two processes. The end is the time "
              "from the fault until the last process has ended, with a full disk from the moment "
              "when it is full, before the next save. The run is back when the same command has "
              "saved a checkpoint beyond the last one.",
              table(*_header_and_rows(matrix.RECOVERY)), matrix.MACHINE)


def _header_and_rows(text: str) -> tuple[list[str], list[list[str]]]:
  header, *rows = _read_table(text)
  return header, rows


def _read_table(text: str) -> Iterator[list[str]]:
  """Yields the rows of a table in a docstring; a row without a first cell continues the last."""
  rows: list[list[str]] = []
  for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
    cells = [cell.strip() for cell in line.split("|")]
    if set(line) <= set("-| "):
      continue
    if cells[0]:
      rows.append(cells)
    else:
      rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
  return iter(rows)


# -------------------------------------------------------------------- all


PAGES: dict[str, Callable[[], str]] = {
    "commands": write_commands,
    "config": write_config,
    "exit_codes": write_exit_codes,
    "families": write_families,
    "faults": write_faults,
    "presets": write_presets,
    "recipes": write_recipes,
    "rows": write_rows,
}


def stale_pages() -> dict[str, str]:
  """Returns file name -> new text of the pages that are missing or stale."""
  texts = {f"{name}.md": make() for name, make in PAGES.items()}
  return {name: text for name, text in texts.items()
          if not (FOLDER / name).is_file() or (FOLDER / name).read_text("utf-8") != text}


def main(argv: Sequence[str]) -> int:
  stale = stale_pages()
  if "--check" in argv:
    for name in stale:
      print(f"docs/reference/{name} is stale; run `make docs`", file=sys.stderr)
    return bool(stale)
  FOLDER.mkdir(exist_ok=True)
  for name, text in stale.items():
    (FOLDER / name).write_text(text, "utf-8")
    print(f"docs/reference/{name}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
