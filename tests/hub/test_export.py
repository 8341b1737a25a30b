"""bertgpt.hub.export: a run returns from transformers' files unchanged, and errors name files."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_runs
import tiny
import tokenizers as fast_tokenizers
from program import ROOT
from safetensors.numpy import load_file
from tokenizers import processors
from written_tokenizers import to_fast

from bertgpt import cli
from bertgpt.config import base, recipes
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import to_json
from bertgpt.data.tokens import hf_files, marks, tokenizers, training
from bertgpt.errors import ConfigError, DataError, StorageError
from bertgpt.finetuning import predict
from bertgpt.finetuning.tasks.rows import make_text_format
from bertgpt.hub import (
    conversion,
    export,
    folder_tokenizer,
    importing,
    model_card,
    tokenizer_files,
    weights,
)
from bertgpt.models import Inputs
from bertgpt.runs import trained as trained_lib
from bertgpt.runs import workdir

ENCODER_FILES = {"README.md", "config.json", "model.safetensors", "special_tokens_map.json",
                 "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


def run(capsys, *argv) -> tuple[int, list[str]]:
  """Returns (exit code, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  return code, capsys.readouterr().err.splitlines()


def without_padding(trained):
  """Returns the leaves by path, with the rows that pad the vocabulary set to 0."""
  leaves = {jax.tree_util.keystr(path): np.array(x)
            for path, x in jax.tree_util.tree_leaves_with_path(trained.params)}
  size = trained.config.model.vocab_size
  for name, x in leaves.items():
    if "['token']" in name or name == "['mlm']['bias']":
      x[size:] = 0
  return leaves


# ---------------------------------------------------------------- there and back


def test_the_files(exported_bert, exported_gpt):
  assert {path.name for path in exported_bert.iterdir()} == ENCODER_FILES
  assert {path.name for path in exported_gpt.iterdir()} == ENCODER_FILES | {
      "generation_config.json"}
  assert {path.name for path in exported_bert.parent.iterdir()} == {"model"}
  assert len({path.stat().st_mode for path in exported_bert.iterdir()}) == 1


def test_an_export_imports_to_the_same_weights(both, tmp_path):
  finished, exported = both
  found = importing.import_model(exported, tmp_path / "again")
  assert "--config continued:" in found
  before, after = trained_lib.load_trained(finished), trained_lib.load_trained(tmp_path / "again")
  expected = without_padding(before)
  for name, x in without_padding(after).items():
    assert np.array_equal(x, expected.pop(name)), name
  assert not expected and after.step == 0
  assert after.tokenizer.pieces == before.tokenizer.pieces

  export.export(tmp_path / "again", tmp_path / "out")
  assert (tmp_path / "out/model.safetensors").read_bytes() == (
      exported / "model.safetensors").read_bytes()
  for name in ("config.json", "tokenizer_config.json"):
    assert (tmp_path / "out" / name).read_text() == (exported / name).read_text()


def test_a_large_model_is_exported_in_several_files(both, tmp_path, monkeypatch):
  finished, exported = both
  monkeypatch.setattr(weights, "FILE_BYTES", 4_000)
  several = tmp_path / "several"
  export.export(finished, several)
  assert (several / weights.INDEX).is_file() and not (several / weights.WEIGHTS).exists()
  importing.import_model(several, tmp_path / "again")
  expected = without_padding(trained_lib.load_trained(finished))
  for name, x in without_padding(trained_lib.load_trained(tmp_path / "again")).items():
    assert np.array_equal(x, expected.pop(name)), name
  assert not expected

  monkeypatch.setattr(weights, "FILE_BYTES", 10**9)
  export.export(tmp_path / "again", tmp_path / "one")
  assert (tmp_path / "one" / weights.WEIGHTS).read_bytes() == (
      exported / weights.WEIGHTS).read_bytes()


def test_an_imported_model_scores_as_the_one_it_comes_from(both, tmp_path, capsys):
  finished, exported = both
  assert cli.main(["import", f"--from={exported}", f"--workdir={tmp_path / 'w'}"]) == 0
  config = workdir.read_config(finished)
  fields = ("data.source", "data.cache_dir", "data.prepare_workers", "data.validation_fraction",
            "eval.batch_size", "phases[0].seq_len")
  values = dict(recipes.leaves(config))
  scores = []
  for path in (finished, tmp_path / "w"):
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={path}",
                     *(f"--config.{name}={values[name]}" for name in fields)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # Preparing prints lines too.
    scores.append(dict(line for line in lines if len(line) == 2 and "_" in line[0]))
  assert scores[0].keys() == scores[1].keys() and len(scores[0]) > 2
  for name, value in scores[0].items():
    assert float(scores[1][name]) == pytest.approx(float(value), abs=1e-5), name


@pytest.mark.slow
def test_training_goes_on_from_an_imported_model(recipe, exported_gpt, tmp_path, capsys):
  assert cli.main(["import", f"--from={exported_gpt}", f"--workdir={tmp_path / 'w'}"]) == 0
  capsys.readouterr()
  code = cli.main(["train", f"--config={recipe}:causal", f"--workdir={tmp_path / 'run'}",
                   f"--config.init_from={tmp_path / 'w'}", "--config.phases[0].steps=1",
                   "--config.phases[0].learning_rate=0",
                   f"--config.tokenizer.path={tmp_path / 'w'}/tokenizer"])
  assert code == 0
  assert "with a fresh optimizer" in capsys.readouterr().err
  start, end = trained_lib.load_trained(tmp_path / "w"), trained_lib.load_trained(tmp_path / "run")
  assert jax.tree.all(jax.tree.map(np.array_equal, start.params, end.params))


# --------------------------------------------------------- what was fine-tuned


@pytest.fixture(scope="module")
def exported_tuned(tuned, tmp_path_factory):
  """Exported folder of the best fine-tuning run on SST-2."""
  out = tmp_path_factory.mktemp("exported") / "model"
  assert cli.main(["export", f"--workdir={tuned / 'lr0.01-seed0'}", f"--out={out}"]) == 0
  return out


def test_a_fine_tuned_encoder_is_a_classifier(exported_tuned):
  assert {path.name for path in exported_tuned.iterdir()} == ENCODER_FILES
  settings = json.loads((exported_tuned / "config.json").read_text())
  assert settings["architectures"] == ["BertForSequenceClassification"]
  assert settings["id2label"] == {"0": "negative", "1": "positive"}
  tensors = load_file(exported_tuned / "model.safetensors")
  assert tensors["classifier.weight"].shape == (2, 16)
  assert not any(name.startswith("cls.") for name in tensors)


def test_of_a_whole_fine_tuning_the_best_run_is_exported(tuned, exported_tuned, tmp_path, capsys):
  assert json.loads((tuned / "results.json").read_text())["best_run"] == "lr0.01-seed0"
  assert cli.main(["export", f"--workdir={tuned}", f"--out={tmp_path / 'out'}"]) == 0
  assert f"of {tuned / 'lr0.01-seed0'}" in capsys.readouterr().out
  for name in ENCODER_FILES - {"README.md"}:
    assert (tmp_path / "out" / name).read_bytes() == (exported_tuned / name).read_bytes()


@pytest.mark.parametrize("mode", ["head", "tail", "head_tail"])
def test_the_exported_tokenizer_cuts_where_fine_tuning_did(tuned, tmp_path, capsys, monkeypatch,
                                                           mode):
  trained = trained_lib.load_any(tuned / "lr0.01-seed0")
  config = model_card.read_tuning(trained.task)
  config.task.truncation = mode
  trained = trained._replace(task=trained.task | {"config": to_json(config)})
  monkeypatch.setattr(trained_lib, "load_any", lambda path: trained)
  code, said = run(capsys, "export", f"--workdir={tuned / 'lr0.01-seed0'}",
                   f"--out={tmp_path / 'out'}")
  assert code == 0 and any("keep their head and tail" in line for line in said) == (
      mode == "head_tail")
  settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert settings.get("truncation_side") == {"tail": "left"}.get(mode)


def test_a_classifier_comes_back_without_its_head(exported_tuned, tuned, tmp_path):
  said = importing.import_model(exported_tuned, tmp_path / "run")
  assert "left out, because BertForPreTraining has no such head: classifier" in said
  before = trained_lib.load_any(tuned / "lr0.01-seed0").params["body"]
  after = trained_lib.load_trained(tmp_path / "run")
  assert after.fresh == ("mlm", "nsp")
  for part in ("encoder", "pooler"):
    assert jax.tree.all(jax.tree.map(np.array_equal, before[part], after.params[part]))


def test_two_texts_are_put_as_in_the_template_of_the_tokenizer(tmp_path):
  """RoBERTa has two separators between them, before and after fine-tuning."""
  config = base().tokenizer
  config.update(kind="bpe", vocab_size=300)
  tokenizer = training.train_tokenizer(config, [small_runs.make_text(30)])
  own = fast_tokenizers.Tokenizer.from_buffer(tokenizer.data)
  pieces = tokenizer.pieces
  own.post_processor = processors.RobertaProcessing(
      (pieces[tokenizer.sep_id], tokenizer.sep_id), (pieces[tokenizer.cls_id], tokenizer.cls_id))
  tokenizer = tokenizers.ByteBPE(own.to_str().encode())
  model, task = base().model, finetune_config.base().task
  row = make_text_format(tokenizer, model, task).make_row(*tokenizer.encode(["The cat", "sees it"]))
  assert row[0].tolist().count(tokenizer.sep_id) == 3
  found = to_fast(tokenizer).encode("The cat", "sees it")
  assert found.ids == row[0].tolist() and found.type_ids == row[1].tolist()
  assert found.offsets[2][0] == 4, "the space before a word is no part of it"


@pytest.fixture(scope="module")
def tuned_gpt(tuning, finished_gpt, tmp_path_factory):
  """Folder of a GPT fine-tuned on SST-2."""
  out = tmp_path_factory.mktemp("tuned_gpt") / "out"
  assert cli.main(["finetune", f"--config={tuning}", f"--init={finished_gpt}", f"--workdir={out}",
                   "--config.epochs=5"]) == 0
  return out / "lr0.01-seed0"


@pytest.fixture(scope="module")
def exported_tuned_gpt(tuned_gpt, tmp_path_factory):
  out = tmp_path_factory.mktemp("exported_tuned_gpt") / "model"
  assert cli.main(["export", f"--workdir={tuned_gpt}", f"--out={out}"]) == 0
  return out


@pytest.mark.slow
def test_a_fine_tuned_gpt_is_a_classifier(exported_tuned_gpt, tuned_gpt):
  """The exported tokenizer makes the same rows as fine-tuning, from one text or two."""
  assert {path.name for path in exported_tuned_gpt.iterdir()} == ENCODER_FILES
  settings = json.loads((exported_tuned_gpt / "config.json").read_text())
  assert settings["architectures"] == ["GPT2ForSequenceClassification"]
  trained = trained_lib.load_any(tuned_gpt)
  fast = fast_tokenizers.Tokenizer.from_file(str(exported_tuned_gpt / "tokenizer.json"))
  text_format = make_text_format(trained.tokenizer, trained.config.model,
                                 finetune_config.base().task)
  texts = ["The cat sees", "a dog near it."]
  encoded = trained.tokenizer.encode(texts)
  assert fast.encode(*texts).ids == text_format.make_row(*encoded)[0].tolist()
  assert fast.encode(texts[0]).ids == text_format.make_row(encoded[0])[0].tolist()
  assert settings["vocab_size"] == fast.get_vocab_size() == trained.tokenizer.vocab_size + 3


@pytest.mark.parametrize("name", ["<|start|>", "<|extract|>"])
def test_marks_have_names_that_the_tokenizer_has_not(name):
  config = base().tokenizer
  config.update(kind="bpe", vocab_size=300)
  tokenizer = training.train_tokenizer(config, [small_runs.make_text(30)])
  own = fast_tokenizers.Tokenizer.from_buffer(tokenizer.data)
  own.add_tokens([name])
  tokenizer = tokenizers.ByteBPE(own.to_str().encode())
  size = tokenizer.vocab_size
  fast = to_fast(tokenizer, is_encoder=False, around=marks.of_tuned_decoder(size))
  found = fast.encode("a", "b").ids
  assert [found[0], found[2], found[4]] == [size, size + 1, size + 2]
  assert size == 301 and fast.get_vocab_size() == 304


@pytest.mark.hf
def test_transformers_has_the_probabilities_that_predict_has(exported_tuned_gpt, tuned_gpt, glue):
  """In transformers, the batch has sentences of different lengths, with padding."""
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  sentences = [line.split("\t")[0] for line in
               (glue / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
  sentences += ["", "The cat", " ".join(sentences[:2])]
  _, info = transformers.AutoModelForSequenceClassification.from_pretrained(
      exported_tuned_gpt, output_loading_info=True)
  assert not any(info.values()), info
  classify = transformers.pipeline("text-classification", model=str(exported_tuned_gpt), top_k=None)
  predictor = predict.open_predictor(tuned_gpt)
  expected = predict.predict_records(predictor, [{"sentence": s} for s in sentences])
  for found, one in zip(classify(sentences, batch_size=5), expected, strict=True):
    assert {x["label"]: x["score"] for x in found} == pytest.approx(one["probabilities"], abs=1e-4)


@pytest.mark.hf
def test_transformers_predicts_what_fine_tuning_has_predicted(exported_tuned, tuned, glue):
  """Both programs read the sentences as text, each with its own tokenizer."""
  pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  _, info = transformers.AutoModelForSequenceClassification.from_pretrained(
      exported_tuned, output_loading_info=True)
  assert not any(info.values()), info
  classify = transformers.pipeline("text-classification", model=str(exported_tuned))
  lines = (glue / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
  written = (tuned / "lr0.01-seed0" / "predictions" / "SST-2.dev.tsv").read_text().splitlines()[1:]
  found = classify([line.split("\t")[0] for line in lines])
  names = {"negative": "0", "positive": "1"}
  assert [names[answer["label"]] for answer in found] == [line.split("\t")[1] for line in written]


# ------------------------------------------------------------------ refusals of export


def test_export_refuses_a_folder_that_exists(capsys, finished_bert, exported_bert):
  before = sorted(exported_bert.iterdir())
  code, lines = run(capsys, "export", f"--workdir={finished_bert}", f"--out={exported_bert}")
  assert (code, len(lines)) == (2, 1) and "exists already" in lines[0]
  assert sorted(exported_bert.iterdir()) == before


def test_export_refuses_a_name_that_is_not_utf8(finished_bert, tmp_path):
  with pytest.raises(ConfigError, match="is not valid UTF-8, so nothing can be written there"):
    export.export(finished_bert, tmp_path / os.fsdecode(b"m\xff"))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("written", ["model.safetensors", "tokenizer.json"])
def test_a_disk_that_is_full_at_the_tokenizer_is_one_line(
    capsys, finished_bert, tmp_path, monkeypatch, written):
  """After a file, no other can be longer than 64 bytes: tokenizer.json or vocab.txt is the next."""
  module, name = {"model.safetensors": (weights, "_write_file"),
                  "tokenizer.json": (tokenizer_files.files, "write_atomically")}[written]
  write, (soft, hard) = getattr(module, name), resource.getrlimit(resource.RLIMIT_FSIZE)

  def write_last(path, content):
    write(path, content)
    if path.name == written:
      resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))

  monkeypatch.setattr(module, name, write_last)
  try:
    code, lines = run(capsys, "export", f"--workdir={finished_bert}", f"--out={tmp_path / 'out'}")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert (code, len(lines)) == (74, 1), lines
  assert {"model.safetensors": "tokenizer.json",
          "tokenizer.json": "the vocabulary cannot be written"}[written] in lines[0]
  assert not list(tmp_path.iterdir())


def test_export_refuses_weights_that_are_not_finite(finished_bert, tmp_path, monkeypatch):
  trained = trained_lib.load_trained(finished_bert)
  trained.params["encoder"]["layers"]["mlp"]["up"]["kernel"][0, 3, 1] = np.nan
  monkeypatch.setattr(trained_lib, "load_any", lambda path: trained)
  with pytest.raises(DataError, match="encoder/layers/mlp/up/kernel at step 20 is not finite"):
    export.export(finished_bert, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_export_refuses_a_model_that_transformers_has_not(finished_gpt, tmp_path, monkeypatch):
  trained = trained_lib.load_trained(finished_gpt)
  trained.config.model.norm = "post"  # GPT-1, whose MLP is four times as wide as the model.
  monkeypatch.setattr(trained_lib, "load_any", lambda path: trained)
  with pytest.raises(ConfigError, match="model.mlp_dim=32"):
    export.export(finished_gpt, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_nothing(finished_gpt, tmp_path, monkeypatch):
  monkeypatch.setattr(export, "check_written", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    export.export(finished_gpt, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_a_killed_export_leaves_nothing_to_the_next(finished_gpt, tmp_path):
  """The export is killed after the check of its files, just before the folder is renamed."""
  code = ("import os, pathlib, signal, sys\nfrom bertgpt.hub import export\n"
          "export.check_written = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
          "export.export(*map(pathlib.Path, sys.argv[1:]))")
  out = tmp_path / "model"
  result = subprocess.run([sys.executable, "-c", code, finished_gpt, out], cwd=ROOT)
  assert result.returncode == -signal.SIGKILL
  assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["model.unfinished"]
  export.export(finished_gpt, out)
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_that_changed_on_its_way_is_found(exported_gpt, tmp_path):
  folder = shutil.copytree(exported_gpt, tmp_path / "out")
  tensors = load_file(folder / "model.safetensors")
  settings = json.loads((folder / "config.json").read_text())
  tokenizer = folder_tokenizer.load_tokenizer(hf_files.read_hf_files(folder),
                                              settings["vocab_size"])
  around = marks.of_decoder()
  export.check_written(folder, settings, tensors, tokenizer, around)
  changed = dict(tensors)
  changed["transformer.ln_f.bias"] = changed["transformer.ln_f.bias"] + 1
  with pytest.raises(StorageError, match="model.safetensors: does not hold"):
    export.check_written(folder, settings, changed, tokenizer, around)


# ------------------------------------------------------------------ with transformers


@pytest.mark.hf
def test_transformers_reads_what_was_exported(both):
  """In transformers, model and tokenizer give the same logits for a text."""
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  finished, exported = both
  trained = trained_lib.load_trained(finished)
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  is_bert = trained.config.model.family == "bert"
  cls = transformers.AutoModelForPreTraining if is_bert else transformers.AutoModelForCausalLM
  model, info = cls.from_pretrained(exported, output_loading_info=True)
  assert not any(info.values()), info
  assert type(model).__name__ == ("BertForPreTraining" if is_bert else "GPT2LMHeadModel")

  text = "The cat sees the dog near a tree."
  ids = trained.tokenizer.encode([text])[0].tolist()
  encoded = tokenizer(text, return_tensors="pt")
  if is_bert:
    ids = [trained.tokenizer.cls_id, *ids, trained.tokenizer.sep_id]
    assert tokenizer.mask_token_id == trained.tokenizer.mask_id
  else:
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == (
        trained.tokenizer.eod_id)
  assert encoded["input_ids"][0].tolist() == ids

  with torch.no_grad():
    output = model(**encoded)
  inputs = Inputs.of_texts(np.array([ids]), np.array([len(ids)]))
  if is_bert:
    expected, nsp = tiny.apply(trained.model, trained.params, inputs._replace(
        pair_positions_BP=np.zeros((1, 1), int)))
    found = output.prediction_logits
    np.testing.assert_allclose(output.seq_relationship_logits.numpy(), nsp[:, 0], rtol=0,
                               atol=1e-4)
  else:
    expected = tiny.apply(trained.model, trained.params, inputs)
    found = output.logits
  np.testing.assert_allclose(found.numpy(), expected[..., :found.shape[-1]], rtol=0, atol=1e-4)


@pytest.mark.hf
def test_transformers_reads_several_files_as_one(both, tmp_path, monkeypatch):
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  finished, exported = both
  monkeypatch.setattr(weights, "FILE_BYTES", 4_000)
  export.export(finished, tmp_path / "several")
  assert len(list(tmp_path.glob("several/model-*.safetensors"))) > 2
  cls = getattr(transformers, json.loads((exported / "config.json").read_text())[
      "architectures"][0])
  one, several = (cls.from_pretrained(folder, output_loading_info=True)
                  for folder in (exported, tmp_path / "several"))
  assert not any(several[1].values()), several[1]
  expected = one[0].state_dict()
  assert all(torch.equal(x, expected.pop(name)) for name, x in several[0].state_dict().items())
  assert not expected


@pytest.mark.parametrize("objective, fields, expected", [
    ("plm", {"family": "xlnet", "attention_dropout": 0.2},
     ["model.attention_dropout is 0.1, not 0.2"]),
    ("mlm", {"family": "modernbert", "dropout_at": "attention", "attention_dropout": 0.2},
     ["model.dropout is 0.2, not 0.1"]),
    ("mlm", {"family": "modernbert", "attention_dropout": 0.1},
     ["model.dropout_at is 'attention', not 'all'"]),
    ("mlm", {"family": "modernbert", "dropout": 0.0}, []),
    ("mlm", {"attention_dropout": 0.2}, []),
    ("causal", {"attention_dropout": 0.2}, []),
])
def test_dropout_that_config_json_cannot_express_is_named(objective, fields, expected):
  config = tiny.make_config(objective, **({"dropout": 0.1} | fields))
  if config.model.family == "modernbert":
    config.model.update(norm="pre", skip_first_norm=True, norm_bias=False, use_bias=False,
                        mlp="gated", position="rope", num_segments=0, activation="gelu_erf")
  architecture = conversion.find_architecture(config)
  settings = conversion.to_hugging_face_config(config)
  assert export.describe_dropout(config.model, architecture, settings) == expected
