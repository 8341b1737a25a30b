"""Files of version 0.1.0 still work: runs, corpora, exports, fine-tuned models, recipes.

`legacy/make.py` made the artifacts with that version, and recorded what it computed from them. If a
check fails here, folders of users break: change the program, not the record.
"""

import hashlib
import json
import pathlib
import re
import shutil
import tarfile

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from bertgpt import cli

LEGACY = pathlib.Path(__file__).parent / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text("utf-8"))
OPTIMIZERS = tuple(name for name in EXPECTED["runs"] if name not in ("bert", "gpt"))
RUNS = ("bert", "gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS))
TUNE = ("finetune", "--config=tuning.py", "--init=bert", "--workdir=tuned")

# A recipe that loads another, like demo_gpt.py. It writes the fields of all recipes of 0.1.0.
PROBE = """
import json
import pathlib

from bertgpt import finetune_config, recipes
from bertgpt.config import base


def get_config():
  for path in sorted(pathlib.Path("configs").glob("*.py")):
    is_tuning = "finetune_config" in path.read_text()
    config = recipes.load(str(path), finetune_config.base if is_tuning else base)
    path.with_suffix(".found").write_text(config.to_json_best_effort())
  return recipes.load("bert.py")
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> pathlib.Path:
  """Unpacks the artifacts next to the recipes; tests must not change them."""
  folder = tmp_path_factory.mktemp("legacy")
  with tarfile.open(LEGACY / "artifacts.tar.xz") as tar:
    tar.extractall(folder, filter="data")
  for recipe in (LEGACY / "recipes").glob("*.txt"):
    shutil.copy(recipe, (folder / recipe.name).with_suffix(".py"))
  return folder


@pytest.fixture(autouse=True)
def folder(unpacked, tmp_path, monkeypatch) -> pathlib.Path:
  """Makes a copy of the artifacts the current directory, because configs have relative paths."""
  shutil.copytree(unpacked, tmp_path / "copy")
  monkeypatch.chdir(tmp_path / "copy")
  return tmp_path / "copy"


@pytest.fixture
def call(capsys):
  """Runs a command that must succeed, and returns what it printed on stdout."""
  def call(*arguments: str) -> str:
    capsys.readouterr()
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out

  return call


# ------------------------------------------------------------- comparison


def assert_close(found: dict[str, float], expected: dict[str, float], where: str) -> None:
  """Compares all recorded metrics, up to the rounding of another program or processor."""
  assert found.keys() >= expected.keys(), where
  for tag, value in expected.items():
    # A few dozen predictions may differ by one, and a norm adds up the rounding of all gradients.
    is_count, is_norm = tag.endswith("accuracy"), tag.endswith("grad_norm")
    atol, rtol = 0.03 if is_count else 1e-7, 1e-4 if is_norm else 1e-5
    np.testing.assert_allclose(found[tag], value, rtol, atol, err_msg=f"{where}: {tag}")


def read_lines(workdir: str) -> list[str]:
  return pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()


def read_scores(text: str) -> dict[str, float]:
  """Returns the lines 'name value' that `evaluate` prints, without descriptions of suites."""
  return {name: float(value) for name, value in re.findall(r"(?m)^(\S+) ([-+.\de]+)$", text)}


def read_guesses(text: str) -> list[tuple[str, float]]:
  """Returns (word, per cent) for all guesses that `fill` prints."""
  return [(word, float(share)) for word, share in re.findall(r"(\S+) ([\d.]+)%(?:,|$)", text,
                                                             re.MULTILINE)]


def describe_tensors(export: str) -> dict[str, str]:
  """Returns dtype, shape and SHA-256 of every tensor of an export."""
  tensors = safetensors_numpy.load_file(pathlib.Path(export, "model.safetensors"))
  return {name: f"{x.dtype} {list(x.shape)} {hashlib.sha256(x.tobytes()).hexdigest()}"
          for name, x in sorted(tensors.items())}


def cached_corpora() -> set[str]:
  return {path.name for path in pathlib.Path("cache").glob("corpus-*")}


# ---------------------------------------------------------- recipes and corpora


@pytest.mark.parametrize("name", EXPECTED["recipes"])
def test_the_record_is_as_it_was_made(name):
  """If a tool updated imports in these recipes, tests would not notice that old imports fail."""
  found = hashlib.sha256((LEGACY / "recipes" / name).read_bytes()).hexdigest()
  assert found == EXPECTED["recipes"][name], f"restore {name}: it is what users have"


def test_recipes_set_the_same_fields(call):
  pathlib.Path("probe.py").write_text(PROBE)
  call("data", "--config=probe.py", "--steps=0")
  assert len(EXPECTED["configs"]) > 15
  for name in EXPECTED["configs"]:
    path = pathlib.Path("configs", name)
    found = json.loads(path.with_suffix(".found").read_text())
    assert_has_fields(found, json.loads(path.with_suffix(".json").read_text()), name)


# Fields whose values in recipes have changed since (see the changelog): how layers are compiled,
# which a run may change when it resumes, and a source of Wikipedia that is still available.
CHANGED = {"model": {"scan_unroll", "remat"}, "data": {"source"}}


def assert_has_fields(found, expected, where: str) -> None:
  """Checks that all old fields have their old values; there may be new fields."""
  if isinstance(expected, dict):
    assert found.keys() >= expected.keys(), where
    for name, value in expected.items():
      if name not in CHANGED.get(where.rpartition(": ")[2], ()):
        assert_has_fields(found[name], value, f"{where}: {name}")
  elif isinstance(expected, list):
    assert len(found) == len(expected), where
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
      assert_has_fields(one, other, f"{where}[{i}]")
  else:
    assert found == expected, where


# A causal objective ignores mask_prob. A run that set it continues, but a preview is refused.
@pytest.mark.parametrize("name, overrides", [
    ("bert", []), ("gpt", ["--config.objective.mask_prob=0.15"]), ("adamw", [])])
def test_prepared_corpora_are_found_and_give_the_same_batches(call, name, overrides):
  """The corpora have tokenizers of all kinds: WordPiece, byte-level BPE, SentencePiece."""
  expected, corpora = EXPECTED["runs"][name], cached_corpora()
  out = call("data", f"--config={expected['recipe']}", f"--steps={','.join(expected['hashes'])}",
             *overrides)
  assert dict(re.findall(r"step (\d+): sha256 (\w+)", out)) == expected["hashes"]
  assert cached_corpora() == corpora, "it was prepared again, under another name"


# ------------------------------------------------------------------------ runs


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), *RUNS[1:]])
def test_a_run_continues_to_its_end(call, name):
  expected, before = EXPECTED["runs"][name], read_lines(name)
  stopped, last = expected["stopped"], expected["metrics"][-1]["step"]
  call("train", f"--config={expected['recipe']}", f"--workdir={name}")
  after = read_lines(name)
  # If the steps were repeated, these lines would have other times.
  assert after[:len(before)] == before
  assert json.loads(before[-1])["step"] == stopped
  kept = [line for line in map(json.loads, after) if line["step"] >= stopped]
  assert [line["step"] for line in kept] == [line["step"] for line in expected["metrics"]]
  for found, line in zip(kept, expected["metrics"], strict=True):
    if line["step"] <= stopped + 2:
      assert_close(found, line, f"{name}, step {line['step']}")
    else:  # At these learning rates, the rounding of another processor soon grows to a per cent.
      losses = {tag: value for tag, value in line.items() if tag.endswith("loss")}
      assert {tag: found[tag] for tag in losses} == pytest.approx(losses, rel=0.05)
  assert pathlib.Path(name, "checkpoints", str(last), "manifest.json").is_file()
  assert pathlib.Path(name, "report.md").is_file()


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_is_evaluated(call, name):
  expected = read_scores(EXPECTED["runs"][name]["evaluate"])
  assert len(expected) >= 3
  assert_close(read_scores(call("evaluate", f"--workdir={name}")), expected, name)


def test_a_changed_recipe_is_still_refused(folder, capsys):
  """Fields of an old config.json are compared, not only read."""
  before = read_lines("gpt")
  assert cli.main(["train", "--config=gpt.py", "--workdir=gpt", "--config.optimizer.b2=0.9"]) == 2
  assert "optimizer.b2: 0.95 -> 0.9" in capsys.readouterr().err
  assert read_lines("gpt") == before


# ------------------------------------------------------------------------- inference


def test_words_are_filled_in(call):
  expected = read_guesses(EXPECTED["fill"])
  assert len(expected) == 10
  assert_same_guesses(call("fill", "--workdir=bert", "The [MASK] sees the [MASK] near a house."),
                      expected)


def assert_same_guesses(text: str, expected: list[tuple[str, float]]) -> None:
  found = read_guesses(text)
  assert [word for word, _ in found] == [word for word, _ in expected]
  np.testing.assert_allclose([share for _, share in found], [share for _, share in expected],
                             rtol=0, atol=0.1001)  # Probabilities have one decimal.


def test_texts_have_the_same_features(call):
  pathlib.Path("lines.txt").write_text("The cat sees the\nA bird\n")
  call("embed", "--workdir=bert", "--input=lines.txt", "--out=features.npy")
  np.testing.assert_allclose(np.load("features.npy"), EXPECTED["embed"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, flags", [
    ("greedy", ["--temperature=0"]),
    ("sampled", ["--temperature=0.8", "--top_k=40", "--num_samples=2", "--seed=3"])])
def test_texts_are_continued(call, kind, flags):
  out = call("generate", "--workdir=gpt", "--prompt=The cat sees the", "--prompt=A bird",
             "--max_tokens=12", *flags)
  assert out == EXPECTED[kind]


@pytest.mark.parametrize("name, flags", [
    ("bert", ["--suite=pairs=pairs.tsv"]),
    ("gpt", ["--suite=text=story.txt,pairs=pairs.tsv", "--limit=20"])])
def test_zero_shot_scores(call, name, flags):
  expected = read_scores(EXPECTED["suites"][name])
  assert expected
  assert_close(read_scores(call("evaluate", f"--workdir={name}", *flags)), expected, name)


# --------------------------------------------------------------------- exports


@pytest.mark.parametrize("name, workdir", [
    ("bert", "bert"), ("gpt", "gpt"), ("tuned", f"tuned/{EXPECTED['tuned']['best_run']}")])
def test_weights_are_exported_bit_for_bit(call, name, workdir):
  expected, out = EXPECTED["exports"][name], pathlib.Path("out")
  call("export", f"--workdir={workdir}", f"--out={out}")
  assert describe_tensors("out") == expected["tensors"]
  assert json.loads((out / "config.json").read_text()) == expected["config"]
  files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
  assert files | expected["files"] == files  # There may be new files.


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_an_export_is_imported_bit_for_bit(call, name):
  assert describe_tensors(f"{name}-export") == EXPECTED["exports"][name]["tensors"]
  call("import", f"--from={name}-export", "--workdir=imported")
  call("export", "--workdir=imported", "--out=again")
  assert describe_tensors("again") == EXPECTED["exports"][name]["tensors"]
  if name == "bert":
    assert_same_guesses(call("fill", "--workdir=imported",
                             "The [MASK] sees the [MASK] near a house."),
                        read_guesses(EXPECTED["fill"]))


# ----------------------------------------------------------------- fine-tuning


def test_a_fine_tuning_that_is_done_is_kept(call):
  before = pathlib.Path("tuned/results.json").read_text()
  out = call(*TUNE)
  # If runs were repeated, their seconds would differ. `init` has its old path, though it moved.
  assert json.loads(pathlib.Path("tuned/results.json").read_text())["runs"] == (
      json.loads(before)["runs"])
  assert f"Best on dev: {EXPECTED['tuned']['best_run']}" in out
  assert not re.search("(?m)^learning rate .*, seed ", out)  # No run has begun.


def test_a_fine_tuned_model_predicts_what_it_has_predicted(call):
  best = pathlib.Path("tuned", EXPECTED["tuned"]["best_run"])
  written = (best / "predictions" / "SST-2.tsv").read_text().splitlines()[1:]
  header, *found = call("predict", "--workdir=tuned", "--input=glue/SST-2/test.tsv").splitlines()
  assert header.split("\t") == ["id", "prediction", "negative", "positive"]
  labels = {"negative": "0", "positive": "1"}
  assert [line.split("\t")[:2] for line in found] == [
      [id_, next(name for name, label in labels.items() if label == number)]
      for id_, number in (line.split("\t") for line in written)]


@pytest.mark.slow
def test_a_fine_tuning_is_extended_by_a_seed(call):
  expected = EXPECTED["tuned"]["third"]
  before = json.loads(pathlib.Path("tuned/results.json").read_text())["runs"]
  call(*TUNE, "--config.seeds=0,1,2")
  *kept, run = json.loads(pathlib.Path("tuned/results.json").read_text())["runs"]
  assert kept == before
  times = {"seconds": None}
  assert run | times == expected | times
  lines = [json.loads(line) for line in read_lines(f"tuned/{run['folder']}")]
  for found, line in zip(lines, EXPECTED["tuned"]["third_metrics"], strict=True):
    assert_close(found, line, f"step {line['step']}")
