"""bertgpt.runs.trained: a trained model computes in float32, unless another dtype is given."""

import numpy as np
import pytest

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.commands import flags
from bertgpt.config.stored import from_json
from bertgpt.errors import ConfigError
from bertgpt.inference.score import score
from bertgpt.runs import metrics_file
from bertgpt.runs import trained as trained_lib
from bertgpt.training import evaluate_run


@pytest.fixture(scope="module")
def narrow(recipe, tmp_path_factory):
  """The workdir of a GPT that was trained in bfloat16."""
  path = tmp_path_factory.mktemp("narrow") / "run"
  assert cli.main(["train", f"--config={recipe}:causal", f"--workdir={path}",
                   "--config.model.dtype=bfloat16"]) == 0
  return path


def test_the_flag_names_the_dtypes_of_the_config():
  assert set(flags.DTYPES) == set(config_lib.CHOICES["model.dtype"])
  assert flags.DTYPES[0] == trained_lib.SCORING_DTYPE == "float32"


def test_scores_of_a_run_in_bfloat16_are_those_of_its_weights_in_float32(narrow):
  """The oracle is the same run with float32 in its config."""
  texts = ["The cat sees the dog near a tree.", "A bird."]
  found = trained_lib.load_trained(narrow)
  config = found.config.copy_and_resolve_references()
  config.model.dtype = "float32"
  exact = trained_lib.make_trained(config, found.params, found.tokenizer, found.step,
                                   found.corpus_identity, dtype="")
  asked = trained_lib.load_trained(narrow, dtype="bfloat16")
  as_trained = trained_lib.load_trained(narrow, dtype="")
  for a, b, c, d in zip(*(score(x, texts) for x in (found, exact, asked, as_trained)), strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, d)
    assert 1e-5 < abs(a - c).max() < 0.5


def test_an_unknown_dtype_is_refused(narrow):
  with pytest.raises(ConfigError, match="--dtype float16: no such dtype. Choose among bfloat16, f"):
    trained_lib.load_trained(narrow, dtype="float16")


def test_evaluate_gives_the_numbers_of_the_training_in_its_dtype(narrow, capsys):
  logged = {tag.rsplit("/", 1)[1]: points[-1][1]
            for tag, points in metrics_file.read_curves(narrow).items() if tag.startswith("eval/")}
  assert evaluate_run.evaluate_workdir(narrow, dtype="") == logged
  capsys.readouterr()
  exact = evaluate_run.evaluate_workdir(narrow)
  assert ", computed in float32\n" in capsys.readouterr().err
  assert exact["lm_loss"] != logged["lm_loss"]
  assert exact["lm_loss"] == pytest.approx(logged["lm_loss"], rel=1e-2)
  assert evaluate_run.evaluate_workdir(narrow, ["--config.model.dtype=bfloat16"]) == logged


@pytest.mark.parametrize("arguments, place", [
    (["generate", "--prompt=The cat", "--max_tokens=2"], "err"),
    (["evaluate"], "err"), (["evaluate", "--suite=pairs={folder}/pairs.tsv"], "out")])
@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_commands_print_the_dtype(narrow, capsys, tmp_path, arguments, place, dtype):
  (tmp_path / "pairs.tsv").write_text("good\tbad\nThe cat sees.\tCat the sees.\n")
  name, *rest = (argument.format(folder=tmp_path) for argument in arguments)
  capsys.readouterr()
  assert cli.main([name, f"--workdir={narrow}", *rest,
                   *([f"--dtype={dtype}"] if dtype else [])]) == 0
  assert (dtype or "float32") in getattr(capsys.readouterr(), place)


def test_two_names_for_the_dtype_are_refused(narrow, capsys):
  capsys.readouterr()
  assert cli.main(["evaluate", f"--workdir={narrow}", "--dtype=float32",
                   "--config.model.dtype=bfloat16"]) == 2
  assert "name the dtype twice" in capsys.readouterr().err


def test_the_stored_config_keeps_the_dtype_of_the_training(narrow):
  assert from_json((narrow / "config.json").read_bytes()).model.dtype == "bfloat16"
