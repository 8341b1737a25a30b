"""The installed package: all modules, and the recipes under their names."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from bertgpt.config import recipes

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
  """Returns a folder with the installed package, built from a copy, into which the build writes."""
  pytest.importorskip("pip")
  copy, target = tmp_path_factory.mktemp("copy") / "source", tmp_path_factory.mktemp("installed")
  copy.mkdir()
  for name in ("bertgpt", "configs"):
    shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, copy)
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
                  "--no-build-isolation", "--target", target, copy],
                 check=True, capture_output=True, text=True)
  return target


def run(installed, cwd, *argv) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, text=True, check=False,
                        capture_output=True, env=os.environ | {"PYTHONPATH": str(installed)})


def test_every_module_and_recipe_is_installed(installed):
  def modules(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
  expected = modules(ROOT / "bertgpt")
  expected |= {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  assert modules(installed / "bertgpt") == expected
  assert not (installed / "configs").exists()
  assert (installed / "bertgpt/report/page.html").is_file()
  assert (installed / "bertgpt/report/references/demo.json").is_file()


def test_recipes_are_found_by_name_from_any_folder(installed, tmp_path):
  script = ("import bertgpt; from bertgpt.config import recipes\n"
            "print(bertgpt.__file__)\nprint(*recipes.names())\n"
            "print(recipes.load('bert_large').model.width)")  # Loads bert_base too.
  result = run(installed, tmp_path, "-c", script)
  assert result.stdout.splitlines() == [
      str(installed / "bertgpt/__init__.py"), " ".join(recipes.names()), "1024"], result.stderr
  result = run(installed, tmp_path, "-m", "bertgpt", "data", "--config=bert_base", "--steps=first")
  assert result.stderr == "bertgpt data: --steps=first: give numbers, such as 0,1,2\n"
  assert result.returncode == 2
