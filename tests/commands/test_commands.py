"""bertgpt.commands: the table is complete, and no command slows down the others."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

from bertgpt.commands import COMMANDS

FOLDER = pathlib.Path(importlib.import_module("bertgpt.commands").__file__).parent
SHARED = {"__init__", "flags", "parser"}

def test_every_module_of_the_folder_is_a_command():
  assert sorted(COMMANDS.values()) == sorted(
      f"bertgpt.commands.{path.stem}" for path in FOLDER.glob("*.py") if path.stem not in SHARED)


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_waits_for_all_that_a_command_imports(name):
  """All modules that `run` imports are in USES, so that nothing slow is left to import."""
  module = importlib.import_module(COMMANDS[name])
  (function,) = (node for node in ast.parse(pathlib.Path(module.__file__).read_text()).body
                 if isinstance(node, ast.FunctionDef) and node.name == "run")
  imported = {f"{node.module}.{alias.name}" for node in ast.walk(function)
              if isinstance(node, ast.ImportFrom) for alias in node.names}
  assert imported == set(module.USES)


def test_modules_of_commands_open_no_device():
  """Modules are loaded before the processes of a run join; devices must be opened afterwards."""
  modules = sorted({used for path in COMMANDS.values()
                    for used in importlib.import_module(path).USES})
  script = ("import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)\n"
            "from jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())")
  out = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True,
                       check=True, cwd=FOLDER.parent.parent).stdout
  assert out.strip() == "False"


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]])
def test_help_waits_for_nothing(argv):
  script = ("import sys; from bertgpt import cli\n"
            "try: cli.main(sys.argv[1:])\n"
            "except SystemExit as e: print('exit', e.code)\n"
            "print('loaded', *{'jax', 'numpy', 'grain', 'ml_collections'} & set(sys.modules))")
  out = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True,
                       check=True, cwd=FOLDER.parent.parent).stdout
  assert out.startswith("usage: bertgpt")
  assert out.splitlines()[-2:] == ["exit 0", "loaded"]
