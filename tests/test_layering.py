"""Layers: imports point down, data/ imports no JAX, no API is deprecated, modules have tests."""

import ast
import functools
import graphlib
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from bertgpt.config import choices, families

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / "bertgpt"

# Layers of the package by folder, lowest first. A module may import its own layer and those below.
LAYERS = (
    ("console", "errors", "files", "progress", "trees"),
    ("config",),
    ("data", "devices"),
    ("models",),
    ("runs",),
    ("training",),
    ("finetuning", "planning", "hub"),
    ("inference",),
    ("report",),
    ("commands", "cli", "__main__"),
)
# The same inside data/.
DATA_LAYERS = (("text",), ("tokens",), ("corpus",), ("batches",))

# Replaced by jax.jit, jax.set_mesh, jax.shard_map and rules over parameter paths.
DEPRECATED = (
    "jax.experimental.pjit", "jax.experimental.maps", "jax.experimental.shard_map", "jax.pmap",
    "jax.sharding.use_mesh", "flax.training", "flax.linen.Partitioned",
    "flax.linen.LogicallyPartitioned", "flax.linen.with_partitioning",
    "flax.linen.with_logical_partitioning", "flax.linen.with_logical_constraint",
)

# Packages that data/ and config/ must not import.
JAX = ("jax", "flax", "optax", "orbax")
WITHOUT_JAX = ("bertgpt.data", "bertgpt.config")


def name_of(path: pathlib.Path) -> str:
  """Returns the dotted name of a module, such as 'bertgpt.data.corpus.corpus'."""
  parts = path.relative_to(REPOSITORY).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports_of(tree: ast.AST) -> set[str]:
  """Returns the absolute dotted names that a file imports, at the top or in functions.

  `from a import b` gives 'a.b', whether b is a module or a name in a module.
  """
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise AssertionError(f"line {node.lineno}: write the import as `from bertgpt...`")
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def module_in(name: str, modules) -> str | None:
  """Returns the module with the longest name that contains a dotted name."""
  while name and name not in modules:
    name = name.rpartition(".")[0]
  return name or None


@functools.cache  # Two tests read those of every module.
def references_of(tree: ast.AST) -> set[str]:
  """Returns the dotted names that a file imports or reads, without aliases: 'flax.linen.Module'."""
  aliases = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
    elif isinstance(node, ast.ImportFrom):
      aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}"
                  for alias in node.names}
  names = imports_of(tree)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      first, *rest = ast.unparse(node).split(".")
      names.add(".".join([aliases.get(first, first), *rest]))
  return names


def is_within(name: str, package: str) -> bool:
  return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> tuple[int, int]:
  """Returns (layer of the folder, layer inside data/, or 0)."""
  _, folder, *inner = module.split(".")
  layer = next((i for i, folders in enumerate(LAYERS) if folder in folders), None)
  assert layer is not None, f"{module}: add {folder} to LAYERS in {__name__}"
  if folder != "data" or not inner:
    return layer, 0
  return layer, next(i for i, folders in enumerate(DATA_LAYERS) if inner[0] in folders)


def upward_edges(module: str, tree: ast.AST, modules) -> list[str]:
  """Returns the imports of a module from layers above its own."""
  targets = {module_in(name, modules) for name in imports_of(tree)} - {None, "bertgpt"}
  return sorted(f"{module} imports {target}" for target in targets
                if layer_of(target) > layer_of(module))


def uses_mesh_as_context(tree: ast.AST) -> list[int]:
  """Returns the lines with the old `with mesh:`."""
  return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.With)
          for item in node.items if ast.unparse(item.context_expr).split(".")[-1] == "mesh"]


def violations(check: Callable[[str], Any], but: Iterable[str] = ()) -> dict[str, Any]:
  """Returns {module: what a check finds in it}, without modules in which it finds nothing.

  One test for all modules: a test for each of them would take longer to collect than to run.

  Args:
    check: name of a module -> what is wrong with it, empty if it is right.
    but: modules and packages that may be otherwise.
  """
  return {module: found for module in MODULES
          if not any(is_within(module, package) for package in but) and (found := check(module))}


# ----------------------------------------------------------------- imports


def test_imports_point_down():
  assert violations(lambda module: module != "bertgpt"
                    and upward_edges(module, TREES[module], MODULES)) == {}


def test_the_package_itself_imports_nothing():
  """Every module of the package would load such imports."""
  assert imports_of(TREES["bertgpt"]) == set()
  assert imports_of(TREES["bertgpt.data"]) == {"importlib", "typing.Any"}


def test_lines_on_stderr_go_through_the_console():
  """A terminal that was closed must not end the work. A progress bar may be given the stream."""
  def prints(module):
    return [node.lineno for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("print", "sys.stderr.write")
            and "sys.stderr" in ast.unparse(node)]

  assert violations(prints, but=["bertgpt.console"]) == {}, "write console.say(line)"


def test_imports_have_no_cycle():
  graph = {module: {module_in(name, MODULES) for name in imports_of(tree)} - {None, module}
           for module, tree in TREES.items()}
  graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError, which names the cycle.


@pytest.mark.parametrize("text", [
    "from bertgpt.training.loop import train",
    "from bertgpt import config, runs",
    "import bertgpt.models.bert as b",
    "def f():\n  from bertgpt.models import bert",
])
def test_an_upward_import_is_seen_in_every_form(text):
  modules = ("bertgpt", "bertgpt.config", "bertgpt.runs", "bertgpt.training.loop",
             "bertgpt.models.bert", "bertgpt.data.corpus.corpus", "bertgpt.data.batches.loader")
  (edge,) = upward_edges("bertgpt.data.corpus.corpus", ast.parse(text), modules)
  assert edge.startswith("bertgpt.data.corpus.corpus imports bertgpt.")


# ------------------------------------------------------------ JAX and Flax


def test_data_and_config_work_without_jax():
  """So reader processes start quickly. The test hides JAX, because Grain imports it if it can."""
  script = ("import importlib, sys\n"
            f"sys.modules.update(dict.fromkeys({JAX}))  # import raises ImportError\n"
            "for module in sys.argv[1:]:\n"
            "  print(module, file=sys.stderr)\n"
            "  importlib.import_module(module)")
  modules = [m for m in MODULES if any(is_within(m, folder) for folder in WITHOUT_JAX)]
  result = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True,
                          check=False, cwd=REPOSITORY)
  assert len(modules) > 50 and result.returncode == 0, result.stderr


def test_only_models_know_flax():
  assert violations(lambda module: [name for name in references_of(TREES[module])
                                    if is_within(name, "flax")], but=["bertgpt.models"]) == {}


def test_no_deprecated_api():
  assert violations(lambda module: [name for name in references_of(TREES[module])
                                    if any(is_within(name, old) for old in DEPRECATED)]) == {}
  assert violations(lambda module: uses_mesh_as_context(TREES[module])) == {}


@pytest.mark.parametrize("text, name", [
    ("from jax.experimental import pjit", "jax.experimental.pjit"),
    ("from jax.experimental.shard_map import shard_map", "jax.experimental.shard_map.shard_map"),
    ("import jax\nf = jax.pmap(g)", "jax.pmap"),
    ("from flax import linen as nn\nnn.with_partitioning(f, None)",
     "flax.linen.with_partitioning"),
    ("import flax.linen as nn\nx: nn.Partitioned", "flax.linen.Partitioned"),
    ("from flax.training import train_state", "flax.training.train_state"),
])
def test_a_deprecated_name_is_seen_in_every_form(text, name):
  assert name in references_of(ast.parse(text))
  assert any(is_within(name, old) for old in DEPRECATED)


def test_the_old_mesh_context_is_told_from_the_new():
  assert uses_mesh_as_context(ast.parse("with mesh:\n  pass")) == [1]
  assert uses_mesh_as_context(ast.parse("with run.mesh:\n  pass")) == [1]
  assert uses_mesh_as_context(ast.parse("with jax.set_mesh(mesh):\n  pass")) == []


# ----------------------------------------------------------------- buckets

# Modules that open files of this machine themselves: local text, and folders that are written
# locally and then published. All others ask `files`, so that gs:// is as good as a disk.
OPENS_LOCAL_FILES = {f"bertgpt.{name}" for name in (
    "data.corpus.machines", "data.corpus.remote", "data.corpus.writer", "data.text.digests",
    "data.text.intake", "data.text.pydocs", "devices.guard")}


def builtin_opens(tree: ast.AST) -> list[int]:
  """Returns the lines that call the built-in open or os.open for a named file."""
  return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call)
          and ast.unparse(node.func) in ("open", "io.open", "io.FileIO", "os.open")
          and ast.unparse(node.args[0]) != "os.devnull"]


def test_files_are_opened_through_one_room():
  assert violations(lambda module: builtin_opens(TREES[module]),
                    but=["bertgpt.files", *OPENS_LOCAL_FILES]) == {}


# ------------------------------------------------------------------- names

# Tables that list the names of families and objectives, and files with such names.
TABLES = ("bertgpt.config.choices", "bertgpt.config.families")
NAMES = {*families.FAMILIES, *choices.OBJECTIVES}


def compared_names(tree: ast.AST) -> list[int]:
  """Returns the lines that compare something with the name of a family or an objective."""
  lines = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Compare):
      operands = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
      operands = [node.value]
    else:
      continue
    for operand in operands:
      constants = operand.elts if isinstance(operand, (ast.Tuple, ast.List, ast.Set)) else [operand]
      if any(isinstance(c, ast.Constant) and c.value in NAMES for c in constants):
        lines.append(node.lineno)
  return lines


def test_no_family_or_objective_is_told_by_its_name():
  """Code looks up how they differ in their records."""
  assert violations(lambda module: compared_names(TREES[module]), but=TABLES) == {}


@pytest.mark.parametrize("text", [
    "if config.model.family == 'gpt':\n  pass", "x = 'causal' != name",
    "y = family in ('bert', 'gpt')", "match name:\n  case 'mlm':\n    pass"])
def test_a_compared_name_is_seen_in_every_form(text):
  assert len(compared_names(ast.parse(text))) == 1


# ------------------------------------------------------------------- files


# Modules that are tested together with others of their folder: module -> test file.
TESTED_TOGETHER = {
    **dict.fromkeys(("models.bert", "models.cache", "models.gpt", "models.heads",
                     "models.initializers", "models.layers", "models.masked_lm"),
                    "models/test_models.py"),
    **dict.fromkeys(("files.locking", "files.parsing", "files.writing"), "test_files.py"),
    **dict.fromkeys(("files.gcs", "files.growing", "files.paths"), "files/test_bucket.py"),
    "hub.document_bounds": "hub/test_folder_tokenizer.py",
    "hub.sentence_encoders": "hub/test_importing.py",
    "hub.submodels": "hub/test_electra.py",
    "models.layer_groups": "models/test_albert.py",
    **dict.fromkeys(("models.flash_gpu", "models.flash_tiles", "models.flash_tpu"),
                    "models/test_flash_attention.py"),
    "models.relative_attention": "models/test_xlnet.py",
    **dict.fromkeys(("training.objectives.spans", "training.objectives.plm_memory"),
                    "training/test_plm.py"),
    **dict.fromkeys(("data.batches.pairs_then_cls", "data.batches.rows"),
                    "data/batches/test_loader.py"),
    "models.modernbert_decoder": "models/test_modernbert.py",
    "inference.draws": "inference/test_generate.py",
    **dict.fromkeys(("inference.scorers.left_to_right", "inference.scorers.masked",
                     "inference.scorers.scorer"), "inference/test_scorers.py"),
    **dict.fromkeys(("finetuning.evaluation", "finetuning.initial_state", "finetuning.train_run",
                     "finetuning.tuning"),
                    "finetuning/test_finetune.py"),
    **dict.fromkeys(("finetuning.inputs.form", "finetuning.inputs.questions",
                     "finetuning.inputs.texts", "finetuning.inputs.words"),
                    "finetuning/test_predict.py"),
    **dict.fromkeys(("finetuning.tasks.files", "finetuning.tasks.rows"),
                    "finetuning/tasks/test_tasks.py"),
    "finetuning.tasks.spans": "finetuning/tasks/test_squad.py",
    "config.pretraining": "config/test_checks.py",
    "training.objectives.objective": "training/test_objectives.py",
    **dict.fromkeys(("training.mapped_fields", "training.per_run", "training.stacked_runs"),
                    "training/test_mapped.py"),
    "training.sweep_processes": "training/test_sweep.py",
    **dict.fromkeys(("training.finished", "training.open_run", "training.run_files"),
                    "training/test_loop.py"),
    "training.evaluate_run": "training/test_evaluate.py",
    "training.progress_line": "training/test_writer.py",
    "training.schedules": "training/test_optimizers.py",
    **dict.fromkeys(("hub.architecture", "hub.family_tables"), "hub/test_conversion.py"),
    "hub.precompiled": "hub/test_same_ids.py",
    "devices.coordinator": "devices/test_agreement.py",
    **dict.fromkeys(("devices.data_parallel", "models.lookup", "models.parameters"),
                    "devices/test_sharding.py"),
    "models.inputs": "models/test_models.py",
    **dict.fromkeys(("data.batches.blocks", "data.batches.ordered_pairs", "data.batches.pairs",
                     "data.batches.parts", "data.batches.sentences"),
                    "data/batches/test_formats.py"),
    **dict.fromkeys(("report.baselines", "report.picture", "report.samples"),
                    "report/test_end_of_run.py"),
    **dict.fromkeys(("report.curves", "commands.compare"), "report/test_compare.py"),
    "commands.goodput": "report/test_goodput.py",
    **dict.fromkeys(("commands.rollback", "commands.verify"), "runs/test_upkeep.py"),
    **dict.fromkeys(("runs.manifest", "runs.orbax_setup", "runs.shares"),
                    "runs/test_checkpoint.py"),
    "runs.step_folders": "test_buckets.py",
    "data.text.datasets": "data/text/test_sources.py",
    "data.corpus.file_checks": "data/corpus/test_corpus.py",
    "data.corpus.encode": "data/corpus/test_prepare.py",
    **dict.fromkeys(("data.tokens.batching", "data.tokens.tokenizer", "data.tokens.training"),
                    "data/tokens/test_tokenizers.py"),
    "runs.word_tables": "training/test_bilm.py",
    "data.tokens.following": "inference/test_fill.py",
    **dict.fromkeys(("data.tokens.hf_files", "data.tokens.pipelines", "data.tokens.reach"),
                    "data/tokens/test_reading.py"),
    **dict.fromkeys(("runs.corpora", "runs.trained", "data.tokens.vocabulary"),
                    "runs/test_workdir.py"),
    # Modules that are tested through the command line.
    **dict.fromkeys(("__main__", "commands.fill", "commands.parser", "commands.prepare"),
                    "test_cli.py"),
    "commands.export": "hub/test_export.py",
    "commands.import_": "hub/test_importing.py",
    "commands.finetune": "finetuning/test_finetune.py",
    "commands.predict": "finetuning/test_predict.py",
    "commands.plan": "planning/test_plan.py",
    "commands.sweep": "training/test_sweep.py",
}

# Folders whose modules are found by name; tests are parametrized by the tables of names.
TESTED_BY_TABLE = {
    "config.families": "config/test_families.py",
    "training.objectives": "training/test_objectives.py",
    "training.optimizers": "training/test_optimizers.py",
    "training.trackers": "training/test_trackers.py",
}


def test_every_module_has_its_tests():
  """The test file has the same name, and is in the folder of the same name."""
  def missing(module):
    if MODULES[module].name == "__init__.py":
      return ""
    *folders, name = module.split(".")[1:]
    file = (TESTED_BY_TABLE.get(".".join(folders))
            or TESTED_TOGETHER.get(".".join([*folders, name]))
            or "/".join([*folders, f"test_{name}.py"]))
    if folders == ["hub"] and name in families.FAMILIES:
      file = "hub/test_parity.py"
    return "" if (REPOSITORY / "tests" / file).is_file() else file

  assert violations(missing) == {}


def test_the_table_of_modules_tested_together_is_no_longer_than_needed():
  assert {f"bertgpt.{name}" for name in TESTED_TOGETHER} <= MODULES.keys()


MAX_LINES_OF_A_FILE = 450
MAX_LINES_OF_A_FUNCTION = 60
# Tables of config fields, with one line or more per field.
TABLES_OF_FIELDS = {"bertgpt.config.pretraining": "base", "bertgpt.config.finetuning": "base"}


def long_functions(tree: ast.AST) -> list[str]:
  """Returns the functions and methods with too many lines, without decorators."""
  return [node.name for node in ast.walk(tree)
          if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
          and node.end_lineno - node.lineno >= MAX_LINES_OF_A_FUNCTION]


def test_no_file_is_too_long():
  sizes = {module: path.read_text().count("\n") for module, path in MODULES.items()}
  assert violations(lambda module: max(0, sizes[module] - MAX_LINES_OF_A_FILE)) == {}


def test_no_function_is_too_long():
  assert violations(lambda module: set(long_functions(TREES[module]))
                    - {TABLES_OF_FIELDS.get(module)}) == {}


@pytest.mark.parametrize("text", ["def f():\n{}", "async def f():\n{}", "def g():\n  def f():\n{}",
                                  "class C:\n  def f(self):\n{}"])
def test_a_long_function_is_seen_in_every_form(text):
  most = MAX_LINES_OF_A_FUNCTION - 1  # `def` is the first line.
  outer = ["g"] if text.startswith("def g") else []
  assert long_functions(ast.parse(text.format("    x = 1\n" * (most - bool(outer))))) == []
  assert long_functions(ast.parse(text.format("    x = 1\n" * (most + 1)))) == [*outer, "f"]


def test_no_module_is_for_miscellaneous_things():
  names = {path.stem for path in MODULES.values()}
  assert names.isdisjoint({"utils", "util", "helpers", "helper", "misc", "common", "manager"})
