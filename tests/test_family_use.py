"""A small model of each family, from text to predictions, through the command line.

A command refuses a model whose family lacks the ability for it.
"""

import json

import numpy as np
import pytest
import small_runs

from bertgpt import cli
from bertgpt.config import families
from bertgpt.hub import family_tables
from bertgpt.runs import trained as trained_lib

pytestmark = pytest.mark.slow

# Families that transformers lacks; docs/extending.md makes one.
WITHOUT_CLASSES = {name for name in families.FAMILIES
                   if not family_tables.find_table(name).architectures}
PARTS = {"electra": ("generator",)}  # Subfolders of an export that hold another model.


@pytest.fixture(scope="module", params=small_runs.FAMILIES)
def name(request):
  return request.param


@pytest.fixture(scope="module")
def training(recipe, name):
  """Returns the arguments of `bertgpt train`, without the workdir."""
  objective, *fields = small_runs.FAMILIES[name]
  return [f"--config={recipe}:{objective}", *fields]


@pytest.fixture(scope="module")
def trained(training, name, tmp_path_factory):
  """Returns the workdir of a finished run of 20 steps."""
  path = tmp_path_factory.mktemp(name) / "run"
  assert cli.main(["train", f"--workdir={path}", *training]) == 0
  return path


def run(capsys, *argv, exit_code=0):
  """Returns the output of a command, or its message if it fails."""
  capsys.readouterr()
  assert cli.main([str(a) for a in argv]) == exit_code
  return capsys.readouterr()[bool(exit_code)]


def can(trained, *abilities):
  model = trained_lib.load_trained(trained)
  return any(model.can(ability) for ability in abilities)


def test_it_reports_and_is_evaluated(capsys, trained):
  assert "perplexity" in (trained / "report.md").read_text()
  lines = map(str.split, run(capsys, "evaluate", f"--workdir={trained}").splitlines())
  scores = dict(words for words in lines if len(words) == 2)
  assert any("loss" in name for name in scores)
  assert all(np.isfinite(float(value)) for value in scores.values())


def test_it_fills_in_masks(capsys, trained):
  text = "The [MASK] sees the dog."
  if not can(trained, "fill"):
    assert "cannot" in run(capsys, "fill", f"--workdir={trained}", text, exit_code=2)
    return
  out = run(capsys, "fill", f"--workdir={trained}", text)
  assert out.startswith("[MASK] 1: ") and out.count("%") == 5


def test_it_embeds_texts(capsys, trained, tmp_path):
  (tmp_path / "texts.txt").write_text("The cat sees the dog.\nA bird.\n")
  out = tmp_path / "texts.npy"
  command = ("embed", f"--workdir={trained}", f"--input={tmp_path / 'texts.txt'}", f"--out={out}")
  if not can(trained, "embed"):
    assert "cannot" in run(capsys, *command, exit_code=2) and not out.exists()
    return
  run(capsys, *command)
  features = np.load(out)
  assert features.shape == (2, 16) and np.isfinite(features).all()
  assert np.abs(features[0] - features[1]).max() > 1e-3


def test_it_continues_a_text(capsys, trained):
  command = ("generate", f"--workdir={trained}", "--prompt=The cat", "--max_tokens=8")
  if not can(trained, "generate", "unmask"):
    assert "cannot" in run(capsys, *command, exit_code=2)
    return
  first, again = (run(capsys, *command) for _ in range(2))
  assert first == again and len(first) > len("The cat\n")


def test_it_is_fine_tuned_and_predicts(capsys, trained, tuning, tmp_path):
  """Fine-tuning learns 16 sentences by heart, even with smaller rates in lower layers."""
  path = tmp_path / "tuned"
  command = ("finetune", f"--config={tuning}", f"--init={trained}", f"--workdir={path}",
             "--config.optimizer.layer_decay=0.8")
  if not can(trained, "classes"):
    assert "sst2" in run(capsys, *command, exit_code=2) and not path.exists()
    return
  run(capsys, *command)
  (result,) = json.loads((path / "results.json").read_text())["runs"]
  assert result["dev"]["accuracy"] > 0.9, result
  (tmp_path / "new.txt").write_text("The cat sees the dog near a tree.\n")
  out = run(capsys, "predict", f"--workdir={path}", f"--input={tmp_path / 'new.txt'}",
            "--format=jsonl")
  assert json.loads(out)["label"] in ("positive", "negative")


def test_it_labels_words(capsys, trained, labeled, tmp_path):
  path = tmp_path / "tuned"
  command = ("finetune", f"--config={labeled}", f"--init={trained}", f"--workdir={path}")
  if not can(trained, "tokens"):
    assert "ner" in run(capsys, *command, exit_code=2) and not path.exists()
    return
  run(capsys, *command)
  (result,) = json.loads((path / "results.json").read_text())["runs"]
  assert result["dev"]["f1"] > 0.9, result


def test_it_is_exported(capsys, trained, name, tmp_path):
  if name == "elmo":
    pytest.importorskip("h5py", reason="ELMo's files need h5py: make test-hf")
  out = tmp_path / "exported"
  command = ("export", f"--workdir={trained}", f"--out={out}")
  if name in WITHOUT_CLASSES - {"elmo"}:
    assert "cannot be exported" in run(capsys, *command, exit_code=2)
    return
  run(capsys, *command)
  if name == "elmo":
    assert (out / "options.json").is_file()
    return
  for folder in (out, *(out / part for part in PARTS.get(name, ()))):
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()
    names = json.loads((folder / "config.json").read_text())["architectures"]
    assert len(names) == 1


@pytest.mark.hf
def test_transformers_reads_its_export(capsys, trained, name, tmp_path):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  if name in WITHOUT_CLASSES:
    pytest.skip("transformers has no such model")
  out = tmp_path / "exported"
  run(capsys, "export", f"--workdir={trained}", f"--out={out}")
  for folder in (out, *(out / part for part in PARTS.get(name, ()))):
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    _, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], (folder, info)


@pytest.mark.libtpu
def test_its_training_is_planned(capsys, training):
  answer = json.loads(run(capsys, "plan", *training, "--topology=v5e:2x2", "--json"))
  assert answer["fits"] and answer["hours"] > 0


def test_every_family_is_used():
  used = {field.partition("=")[2] for _, *fields in small_runs.FAMILIES.values()
          for field in fields if field.startswith("--config.model.family=")}
  assert used | {"bert", "gpt"} == set(families.FAMILIES)
