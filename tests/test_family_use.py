"""A small model of each family, from text to predictions, through the command line."""

import json

import numpy as np
import pytest
import small_runs

from bertgpt import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=small_runs.FAMILIES)
def trained(request, recipe, tmp_path_factory):
  """Returns the workdir of a finished run of 20 steps."""
  objective, *fields = small_runs.FAMILIES[request.param]
  path = tmp_path_factory.mktemp(request.param) / "run"
  assert cli.main(["train", f"--config={recipe}:{objective}", f"--workdir={path}", *fields]) == 0
  return path


def run(capsys, *argv):
  capsys.readouterr()
  assert cli.main([str(a) for a in argv]) == 0
  return capsys.readouterr().out


def test_it_reports_and_is_evaluated(capsys, trained):
  assert "perplexity" in (trained / "report.md").read_text()
  lines = map(str.split, run(capsys, "evaluate", f"--workdir={trained}").splitlines())
  scores = dict(words for words in lines if len(words) == 2)
  assert any("loss" in name for name in scores)
  assert all(np.isfinite(float(value)) for value in scores.values())


def test_it_fills_in_masks(capsys, trained):
  out = run(capsys, "fill", f"--workdir={trained}", "The [MASK] sees the dog.")
  assert out.startswith("[MASK] 1: ") and out.count("%") == 5


def test_it_embeds_texts(capsys, trained, tmp_path):
  (tmp_path / "texts.txt").write_text("The cat sees the dog.\nA bird.\n")
  out = tmp_path / "texts.npy"
  run(capsys, "embed", f"--workdir={trained}", f"--input={tmp_path / 'texts.txt'}", f"--out={out}")
  features = np.load(out)
  assert features.shape == (2, 16) and np.isfinite(features).all()
  assert np.abs(features[0] - features[1]).max() > 1e-3


def test_it_is_fine_tuned_and_predicts(capsys, trained, tuning, tmp_path):
  """Fine-tuning learns 16 sentences by heart, even with smaller rates in lower layers."""
  path = tmp_path / "tuned"
  run(capsys, "finetune", f"--config={tuning}", f"--init={trained}", f"--workdir={path}",
      "--config.optimizer.layer_decay=0.8")
  (result,) = json.loads((path / "results.json").read_text())["runs"]
  assert result["dev"]["accuracy"] > 0.9, result
  (tmp_path / "new.txt").write_text("The cat sees the dog near a tree.\n")
  out = run(capsys, "predict", f"--workdir={path}", f"--input={tmp_path / 'new.txt'}",
            "--format=jsonl")
  assert json.loads(out)["label"] in ("positive", "negative")


def test_it_is_exported(capsys, trained, tmp_path):
  run(capsys, "export", f"--workdir={trained}", f"--out={tmp_path / 'exported'}")
  assert (tmp_path / "exported" / "model.safetensors").is_file()


@pytest.mark.libtpu
@pytest.mark.parametrize("name", small_runs.FAMILIES)
def test_its_training_is_planned(capsys, recipe, name):
  objective, *fields = small_runs.FAMILIES[name]
  answer = json.loads(run(capsys, "plan", f"--config={recipe}:{objective}", *fields,
                          "--topology=v5e:2x2", "--json"))
  assert answer["fits"] and answer["hours"] > 0
