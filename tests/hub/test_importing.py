"""bertgpt.hub.importing: what is wrong with a folder is named, and nothing is left behind.

That what comes in computes the same is shown with `transformers` in test_opening.py.
"""

import json
import pathlib
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from bertgpt import cli
from bertgpt.hub import importing
from bertgpt.runs import checkpoint


def run(capsys, *argv) -> tuple[int, list[str]]:
  """Returns (exit code, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  return code, capsys.readouterr().err.splitlines()


def change_json(name, **changes):
  def change(folder):
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(content))
  return change


def change_tensors(make):
  def change(folder):
    save_file(make(load_file(folder / "model.safetensors")), folder / "model.safetensors")
  return change


def cut(folder: pathlib.Path):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: pathlib.Path):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_tokenizer(folder: pathlib.Path):
  (folder / "tokenizer.json").unlink()
  with (folder / "vocab.txt").open("a") as f:
    f.write("another\n")


NORM = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize("damage, message", [
    (cut, "model.safetensors: is not a complete safetensors file"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 1000), "not a complete"),
    (pickle_only, "pytorch_model.bin is a pickle"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
     "index.json: is not valid JSON"),
    (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read (No such file"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not valid JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json: holds JSON of type"),
    (change_json("config.json", model_type="t5"), "model_type='t5'"),
    (change_json("config.json", hidden_size=24), "the shape [90, 16]; according to config.json"),
    (change_json("config.json", num_attention_heads=3), "model.num_heads=3 does not divide"),
    (change_tensors(lambda t: {name: x for name, x in t.items() if name != NORM}),
     f"the tensor {NORM} is missing"),
    (change_tensors(lambda t: t | {"extra": t[NORM]}), "extra has no place"),
    (change_tensors(lambda t: t | {NORM: t[NORM][1:]}), f"the tensor {NORM} has the shape [15]"),
    (other_tokenizer, "its tokenizer has 91 tokens, but config.json says vocab_size=90"),
    (lambda folder: [path.unlink() for path in folder.iterdir() if "vocab" in path.name
                     or path.name == "tokenizer.json"], "no tokenizer there"),
])
def test_import_names_what_is_wrong(capsys, exported_bert, tmp_path, damage, message):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  damage(folder)
  code, lines = run(capsys, "import", f"--from={folder}", f"--workdir={tmp_path / 'w'}")
  assert (code, len(lines)) == (65, 1)
  assert message in lines[0]
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_import_refuses_a_workdir_that_exists_and_a_source_that_does_not(
    capsys, exported_bert, finished_bert, tmp_path):
  code, lines = run(capsys, "import", f"--from={exported_bert}", f"--workdir={finished_bert}")
  assert (code, len(lines)) == (2, 1) and "exists already" in lines[0]
  code, lines = run(capsys, "import", f"--from={tmp_path / 'no'}", f"--workdir={tmp_path / 'w'}")
  assert (code, len(lines)) == (2, 1) and "no such folder" in lines[0]
  code, lines = run(capsys, "import", f"--from={exported_bert}", f"--workdir={tmp_path / 'w'}",
                    "--config.seed=1")
  assert (code, len(lines)) == (2, 1) and "takes no config fields" in lines[0]
  assert not list(tmp_path.iterdir())


def test_import_that_fails_late_leaves_nothing(exported_bert, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda *_, **__: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    importing.import_model(exported_bert, tmp_path / "w")
  assert not list(tmp_path.iterdir())


