"""Export and import of XLNet: tokenizers, config.json, fine-tuned models, opened folders."""

import json

import jax
import numpy as np
import pytest
import sentencepiece
import small_runs
import tiny
from ml_collections import FrozenConfigDict

from bertgpt import cli, models
from bertgpt.config import families
from bertgpt.config import finetuning as finetune_config
from bertgpt.config.stored import to_json
from bertgpt.data.tokens import hf_files, marks, tokenizers
from bertgpt.errors import DataError
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.hub import conversion, export, opening, xlnet
from bertgpt.inference import embed
from bertgpt.models import Inputs
from bertgpt.runs.trained import Trained

# xlnet-base-cased, config.json.
PUBLISHED = {
    "architectures": ["XLNetLMHeadModel"], "attn_type": "bi", "bi_data": False, "clamp_len": -1,
    "d_head": 64, "d_inner": 3072, "d_model": 768, "dropout": 0.1, "end_n_top": 5,
    "ff_activation": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-12, "mem_len": None,
    "model_type": "xlnet", "n_head": 12, "n_layer": 12, "pad_token_id": 5, "reuse_len": None,
    "same_length": False, "start_n_top": 5, "summary_activation": "tanh",
    "summary_last_dropout": 0.1, "summary_type": "last", "summary_use_proj": True,
    "untie_r": True, "vocab_size": 32000}
NAMES = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]


def test_the_published_config_is_the_preset():
  fields = conversion._read_fields(xlnet.LM, PUBLISHED, ())
  preset = families.FAMILIES["xlnet"].presets["base"] | {"activation": "gelu_erf",
                                                         "vocab_size": 32_000, "num_segments": 2}
  found = {name.removeprefix("model."): value for name, value in fields.items()
           if name.startswith("model.")}
  assert found == {name: preset[name] for name in found}
  config = tiny.make_config("plm")
  config.model.update(found)
  written = conversion.to_hugging_face_config(config)
  assert {name: written[name] for name in PUBLISHED.keys() & written.keys()} == {
      name: value for name, value in PUBLISHED.items() if name in written}
  assert set(PUBLISHED) - set(written) == {"end_n_top", "start_n_top", "pad_token_id"}


@pytest.mark.parametrize("key, value", [
    ("d_head", 32), ("attn_type", "uni"), ("bi_data", True), ("clamp_len", 400),
    ("same_length", True), ("untie_r", False)])
def test_a_model_that_cannot_be_computed_is_refused_by_its_key(key, value):
  with pytest.raises(DataError, match=key):
    conversion._read_fields(xlnet.LM, PUBLISHED | {key: value}, ())


def test_without_its_bias_the_tied_head_has_the_bias_0():
  """It is no random head, so that `fill` can use it."""
  config = tiny.make_config("plm")
  with tiny.Setup(config) as setup:
    params = jax.device_get(setup.init().params)
  tensors = conversion.to_hugging_face(params, config)
  tensors = {name: x for name, x in tensors.items() if name != "lm_loss.bias"}
  found = conversion.convert(tensors, conversion.to_hugging_face_config(config))
  assert (found.fresh, found.zero) == ((), ("mlm",)) and not found.params["mlm"]["bias"].any()
  assert list(opening.describe(found, 0, 0)) == [
      "set to 0, because the folder has none: bias of the masked-LM head"]
  untied = conversion.to_hugging_face_config(config) | {"tie_word_embeddings": False}
  found = conversion.convert(tensors, untied)
  assert (found.fresh, found.zero) == (("mlm",), ())


@pytest.mark.parametrize("length, expected", [
    (8, 8), (64, 64), (1024, 1024), (7, 512), (int(1e30), 512), (None, 512), (True, 512),
    ("64", 512)])
def test_rows_are_as_long_as_the_tokenizer_says(length, expected, tmp_path):
  """An exported run may have shorter or longer rows than the published models."""
  fields = conversion._read_fields(xlnet.LM, PUBLISHED, ())
  found = conversion.Converted({}, fields, xlnet.LM, (), (), ())
  assert opening.take_row_length(found, hf_files.read_hf_files(tmp_path)) == found
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
  hf = hf_files.read_hf_files(tmp_path)
  assert opening.take_row_length(found, hf).fields["model.max_positions"] == expected
  table = found._replace(fields=fields | {"model.position": "learned"})
  assert opening.take_row_length(table, hf) == table


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
  """Returns a SentencePiece file in which XLNet's special pieces have their published ids."""
  folder = tmp_path_factory.mktemp("spiece")
  (folder / "text.txt").write_text(small_runs.make_text(200))
  sentencepiece.SentencePieceTrainer.train(
      input=str(folder / "text.txt"), model_prefix=str(folder / "spiece"), vocab_size=100,
      control_symbols=NAMES[3:], hard_vocab_limit=False, minloglevel=2)
  return folder / "spiece.model"


def test_special_pieces_of_xlnet_have_their_roles(spiece):
  tokenizer = tokenizers.load_tokenizer(spiece)
  found = {name: getattr(tokenizer, f"{name}_id") for name in tokenizer.roles}
  assert found == {"pad": 5, "unk": 0, "cls": 3, "sep": 4, "mask": 6, "eod": 7}


@pytest.mark.hf
def test_a_folder_of_transformers_is_opened(spiece, tmp_path):
  """Ids and features of a text are equal, with the [CLS] at the end."""
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  torch.manual_seed(0)
  cls = transformers.XLNetLMHeadModel
  size = tokenizers.load_tokenizer(spiece).vocab_size
  theirs = cls(cls.config_class(vocab_size=size, d_model=32, n_layer=2, n_head=4, d_inner=64,
                                architectures=["XLNetLMHeadModel"])).eval()
  theirs.save_pretrained(tmp_path)
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
  their_tokenizer = transformers.XLNetTokenizer(
      vocab=[(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(size)])
  their_tokenizer.save_pretrained(tmp_path)
  trained = opening.open_model(tmp_path)
  text = "The cat sees the dog near a tree."
  (found,) = embed.embed(trained, [text], "last")
  around = marks.of_encoder(trained.tokenizer, cls_last=True)
  ids = around.enclose(trained.tokenizer.encode([text])[0])
  assert ids.tolist() == their_tokenizer(text)["input_ids"] and ids[-2:].tolist() == [4, 3]
  with torch.no_grad():
    expected = theirs.transformer(
        input_ids=torch.tensor(ids[None]).long(),
        token_type_ids=torch.tensor([[0] * (len(ids) - 1) + [2]])).last_hidden_state[0].numpy()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind, name, side", [
    ("", "", "left"), ("classes", "sst2", "left"), ("spans", "squad", "right")])
def test_rows_are_padded_on_the_side_that_transformers_expects(kind, name, side, spiece, tmp_path):
  """Classifiers read the last position; the pipeline for questions asks for the right side."""
  tokenizer = tokenizers.load_tokenizer(spiece)
  config = tiny.make_config("plm", vocab_size=tokenizer.vocab_size)
  model = models.make_model(config)
  if kind:
    head = task_objectives.TASK_HEADS["encoder", kind]
    model = head.make_model(FrozenConfigDict(config.model), 2)
  inputs = Inputs.of_texts(np.zeros((1, 8), np.int32), np.array([8]), cls_last=True)
  params = jax.device_get(tiny.random_params(model, inputs))
  tuning = finetune_config.base()
  tuning.task.name = name
  task = {"name": name, "kind": kind, "labels": ["a", "b"], "seed": 0, "init": "run",
          "init_step": 1, "config": to_json(tuning)}
  trained = Trained(config, models.make_model(config), params, tokenizer, 1, "",
                    task if kind else None)
  export.write_model(tmp_path, trained, tmp_path, tmp_path)
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert settings.get("padding_side", "right") == side
  assert settings["model_max_length"] == tiny.LENGTH


@pytest.mark.hf
@pytest.mark.parametrize("kind, labels", [
    ("classes", "abc"), ("values", "s"), ("tokens", "abcd"), ("spans", "ab")])
def test_a_fine_tuned_model_computes_the_same(kind, labels):
  """Our rows are padded on the right, those of transformers on the left, except for questions."""
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  config = tiny.make_config("plm")
  head = task_objectives.TASK_HEADS["encoder", kind]
  model = head.make_model(FrozenConfigDict(config.model), len(labels))
  rng = np.random.default_rng(0)
  lengths = [16, 11, 7]
  tokens = rng.integers(5, tiny.VOCAB, (3, 16))
  segments = np.stack([np.where(np.arange(16) == n - 1, 2, np.arange(16) > 4) for n in lengths])
  is_text = np.arange(16) < np.array(lengths)[:, None]
  inputs = Inputs(tokens, is_text.astype(np.int32), np.tile(np.arange(16), (3, 1)), segments)
  params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
  params = jax.tree.map(
      lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
  found = np.asarray(tiny.apply(model, params, inputs))

  hf_config = conversion.to_hugging_face_config(config, kind=kind, labels=labels)
  cls = getattr(transformers, hf_config["architectures"][0])
  theirs = cls(cls.config_class(**hf_config)).eval()
  theirs.load_state_dict({name: torch.tensor(x) for name, x in
                          conversion.to_hugging_face(params, config, kind=kind).items()})
  moved = [0 if kind == "spans" else 16 - n for n in lengths]
  roll = lambda x: torch.tensor(np.stack([np.roll(row, n) for row, n in
                                          zip(x, moved, strict=True)])).long()
  with torch.no_grad():
    outputs = theirs(input_ids=roll(tokens), token_type_ids=roll(segments),
                     attention_mask=roll(is_text))
    expected = (torch.stack([outputs.start_logits, outputs.end_logits], -1) if kind == "spans"
                else outputs.logits).numpy()
  if kind in ("tokens", "spans"):
    found, expected = found[is_text], expected[roll(is_text).numpy() > 0]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize("objective", ["plm", "plm_memory"])
def test_a_run_from_text_to_transformers(objective, tmp_path, capsys):
  """Runs train, report, evaluate, fill and export; transformers reads the folder."""
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  (tmp_path / "text.txt").write_text(small_runs.make_text(60))
  recipe = small_runs.RECIPE.format(text=tmp_path / "text.txt", cache=tmp_path, steps=6)
  (tmp_path / "recipe.py").write_text(recipe.replace("  config.objective.name = objective\n", """
  config.model.update(family="xlnet", position="relative")
  config.objective.update(name="OBJECTIVE", whole_words=True, ngram=3, permutation_block=16)
  if "OBJECTIVE" == "plm_memory":
    config.objective.memory = 24
""".replace("OBJECTIVE", objective)))
  run, out = tmp_path / "run", tmp_path / "out"
  command = ["train", f"--config={tmp_path / 'recipe.py'}", f"--workdir={run}"]
  assert cli.main(command) == 0
  assert "PLM perplexity" in (run / "report.md").read_text()
  assert cli.main(["evaluate", f"--workdir={run}"]) == 0
  assert "plm_loss" in capsys.readouterr().out
  assert cli.main(["fill", f"--workdir={run}", "The [MASK] sees the dog near a tree."]) == 0
  assert cli.main(["export", f"--workdir={run}", f"--out={out}"]) == 0
  model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
  assert type(model).__name__ == "XLNetLMHeadModel"
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert opening.open_model(out).config.model.max_positions == 64 != xlnet._ROW_LENGTH
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  assert json.loads((out / "tokenizer_config.json").read_text())["padding_side"] == "left"
  ids = tokenizer("The cat.", "A dog.")
  names = tokenizer.convert_ids_to_tokens(ids["input_ids"])
  assert names[-2:] == ["[SEP]", "[CLS]"] and names.count("[SEP]") == 2
  assert ids["token_type_ids"][-1] == 2 and sorted(set(ids["token_type_ids"])) == [0, 1, 2]


def test_settings_of_heads_that_are_not_read_do_not_matter():
  """The head of pretraining has no summary."""
  changed = PUBLISHED | {"summary_type": "first", "summary_use_proj": False,
                         "summary_activation": None}
  read = lambda content: conversion._read_fields(xlnet.LM, content, ())
  assert read(changed) == read(PUBLISHED)
