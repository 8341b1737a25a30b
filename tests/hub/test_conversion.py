"""Conversion tables: weights return bit for bit, and errors name the tensor that does not fit.

test_parity.py checks with `transformers` that the models compute the same.
"""

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny

from bertgpt import config as config_lib
from bertgpt import trees
from bertgpt.config import choices, families
from bertgpt.config.overrides import set_field
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub import conversion, gpt
from bertgpt.hub.architecture import Rule

MODELS = {
    "BertForPreTraining": ("mlm_nsp", {}),
    "BertForMaskedLM": ("mlm", {}),
    "RobertaForMaskedLM": ("mlm", {"num_segments": 1, "activation": "gelu_erf"}),
    "XLNetLMHeadModel": ("plm", {**families.FAMILIES["xlnet"].presets["base"], **tiny.SIZE,
                                 "max_positions": 512}),
    "GPT2LMHeadModel": ("causal", {"mlp_dim": 96}),
    "OpenAIGPTLMHeadModel": ("causal", {"norm": "post", "mlp_dim": 128}),
    "ModernBertForMaskedLM": ("mlm", {
        **families.FAMILIES["modernbert"].presets["base"], **tiny.SIZE, "window": 5}),
    "ModernBertDecoderForCausalLM": ("causal", {
        **families.FAMILIES["modernbert_decoder"].presets["base"], **tiny.SIZE, "window": 5}),
}


def make(name):
  """Returns the config and parameters, all different, of a small model."""
  objective, model = MODELS[name]
  config = tiny.make_config(objective, **model)
  with tiny.Setup(config) as setup:
    shapes = setup.abstract.params
  rng = np.random.default_rng(0)
  return config, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(params=MODELS)
def model(request):
  return request.param, *make(request.param)


def there(config, params):
  return (conversion.to_hugging_face(params, config), conversion.to_hugging_face_config(config))


def test_there_and_back_is_the_same_bit_for_bit(model):
  name, config, params = model
  tensors, hf_config = there(config, params)
  assert hf_config["architectures"] == [name]
  back, fields = conversion.convert(tensors, hf_config)[:2]
  for field, value in fields.items():
    group, field = field.split(".")
    assert config[group][field] == value
  leaves = trees.named_leaves(params)
  for rule in conversion.find_architecture(config).rules:
    if rule.storage == "vocabulary":
      leaves[rule.ours][tiny.VOCAB:] = 0  # The padding is not written.
    if rule.first:
      leaves[rule.ours][:rule.first] = 1  # Nothing reads these layers, so they are not written.
  assert jax.tree.all(jax.tree.map(np.array_equal, back, params))

  for field, value in fields.items():
    set_field(config, field, value)
  again = conversion.to_hugging_face(back, config)
  assert again.keys() == tensors.keys()
  assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_tensors_are_float32_and_of_the_exact_vocabulary(model):
  _, config, params = model
  tensors, hf_config = there(config, params)
  assert all(x.dtype == np.float32 for x in tensors.values())
  assert hf_config["vocab_size"] == tiny.VOCAB
  rules = conversion.find_architecture(config).rules
  assert {tensors[rule.theirs].shape[0] for rule in rules
          if rule.storage == "vocabulary"} == {tiny.VOCAB}
  padded = config_lib.padded_vocab_size(tiny.VOCAB)
  assert not [name for name, x in tensors.items() if padded in x.shape]


def test_an_export_holds_the_parameters_once():
  """A BERT has no tensor that joins several parameters, so each is a view of one."""
  config, params = make("BertForPreTraining")
  tensors, _ = there(config, params)
  leaves = trees.named_leaves(params).values()
  assert all(any(np.shares_memory(x, leaf) for leaf in leaves) for x in tensors.values())


def test_projections_are_where_gpt2_reads_them():
  """openai/gpt-2, model.py (2019): c = conv1d(x); q, k, v = split(c, 3)."""
  config, params = make("GPT2LMHeadModel")
  tensors, _ = there(config, params)
  attention = params["decoder"]["layers"]["attention"]
  c_attn = tensors["transformer.h.1.attn.c_attn.weight"]
  x = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
  for name, part in zip(("query", "key", "value"), np.split(x @ c_attn, 3, axis=-1), strict=True):
    np.testing.assert_allclose(part, x @ attention[name]["kernel"][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad_id", [0, 1, 3])
def test_robertas_positions_begin_after_its_padding(pad_id):
  config, params = make("RobertaForMaskedLM")
  table = conversion.to_hugging_face(params, config, pad_id)[
      "roberta.embeddings.position_embeddings.weight"]
  assert np.array_equal(table[pad_id + 1:], params["embeddings"]["position"]["embedding"])
  assert conversion.to_hugging_face_config(config, pad_id)["max_position_embeddings"] == len(table)


@pytest.mark.parametrize("pad_id", [-1, 250])
def test_without_padding_among_the_first_ids_a_roberta_is_a_bert(pad_id):
  config, params = make("RobertaForMaskedLM")
  tensors = conversion.to_hugging_face(params, config, pad_id)
  settings = conversion.to_hugging_face_config(config, pad_id)
  assert settings["architectures"] == ["BertForMaskedLM"]
  assert settings["max_position_embeddings"] == config.model.max_positions
  table = tensors["bert.embeddings.position_embeddings.weight"]
  assert np.array_equal(table, params["embeddings"]["position"]["embedding"])
  tuned = conversion.find_architecture(config, "classes", pad_id=pad_id)
  assert tuned.name == "BertForSequenceClassification"


@pytest.mark.parametrize("name, key", [
    ("AlbertForPreTraining", "classifier_dropout_prob"),
    ("ModernBertForMaskedLM", "classifier_dropout"),
    ("ModernBertDecoderForCausalLM", "classifier_dropout")])
def test_a_classifier_has_the_dropout_of_the_run(name, key):
  """These classes have a default of their own; those of the other families have that of layers."""
  objective, model = (MODELS | {"AlbertForPreTraining": (
      "mlm_sop", {"embedding_width": 16, "layer_groups": 1})})[name]
  config = tiny.make_config(objective, **model | {"dropout": 0.2})
  assert conversion.to_hugging_face_config(config)[key] == 0.2
  assert conversion.to_hugging_face_config(config, kind="classes")[key] == 0.2
  if name == "ModernBertForMaskedLM":
    assert conversion.to_hugging_face_config(config, kind="spans")[key] == 0.0


def test_a_model_without_segments_gets_one_that_adds_nothing():
  config = tiny.make_config("mlm", num_segments=0)
  _, params = make("BertForMaskedLM")
  del params["embeddings"]["segment"]
  tensors, hf_config = there(config, params)
  assert hf_config["type_vocab_size"] == 1
  assert not tensors["bert.embeddings.token_type_embeddings.weight"].any()


def test_published_files_are_understood():
  """Covers old names of LayerNorm, tied tensors, buffers, names of a base model, bfloat16."""
  config, params = make("BertForPreTraining")
  tensors, hf_config = there(config, params)
  expected, _ = conversion.convert(tensors, hf_config)[:2]
  old = {name.replace("LayerNorm.weight", "LayerNorm.gamma")
         .replace("LayerNorm.bias", "LayerNorm.beta"): x for name, x in tensors.items()}
  old["bert.embeddings.position_ids"] = np.arange(32)[None]
  old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
  old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"]
  found, _ = conversion.convert(old, hf_config | {"architectures": ["BertForMaskedLM"]})[:2]
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))

  config, params = make("GPT2LMHeadModel")
  tensors, hf_config = there(config, params)
  halves = {name.removeprefix("transformer."): x.astype(ml_dtypes.bfloat16)
            for name, x in tensors.items()}
  halves["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), bool))
  found, _ = conversion.convert(halves, hf_config)[:2]
  expected, _ = conversion.convert(
      {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in tensors.items()},
      hf_config)[:2]
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_copies_of_a_table_may_have_nan_in_spare_rows():
  """Rows without a token hold anything, and NaN equals NaN there."""
  tensors, hf_config = there(*make("BertForPreTraining"))
  tensors[WORDS][-3:] = np.nan
  tensors["cls.predictions.decoder.weight"] = tensors[WORDS].copy()
  found = conversion.convert(tensors, hf_config).params["embeddings"]["token"]["embedding"]
  np.testing.assert_array_equal(found[:tiny.VOCAB], tensors[WORDS])
  tensors["cls.predictions.decoder.weight"][-1] = 0
  with pytest.raises(DataError, match="weight differs"):
    conversion.convert(tensors, hf_config)


def test_an_absent_key_may_depend_on_others(monkeypatch):
  """In LLaMA, the number of key and value heads is that of all heads if config.json has none."""
  config, params = make("GPT2LMHeadModel")
  tensors, hf_config = there(config, params)
  heads = ("num_key_value_heads", "window", lambda model: model["num_heads"])
  grouped = gpt.GPT2._replace(fields=(*gpt.GPT2.fields, heads))
  for others, expected in (({}, 4), ({heads[0]: None}, 4), ({heads[0]: 2}, 2)):
    found = conversion.convert(tensors, hf_config | others, [grouped]).fields
    assert found["model.window"] == expected
  monkeypatch.setattr(gpt, "GPT2", grouped)
  assert conversion.to_hugging_face_config(config)[heads[0]] == 4  # Ours is 0.


UNTIED = gpt.GPT2._replace(
    tied={}, fixed=gpt.GPT2.fixed | {"tie_word_embeddings": False},
    rules=[*gpt.GPT2.rules, Rule("lm/kernel", "lm_head.weight", "VD", "vocabulary")])


def test_an_output_layer_of_its_own_is_never_drawn_for_a_tied_model():
  """The folder of a tied model has no tensor of the output layer, as if the head were missing."""
  tensors, hf_config = there(*make("GPT2LMHeadModel"))
  with pytest.raises(DataError, match="tie_word_embeddings=True in config.json: only False"):
    conversion.convert(tensors, hf_config, [UNTIED])
  bare = conversion.convert(tensors, hf_config | {"tie_word_embeddings": False}, [UNTIED])
  assert bare.fresh == ("lm",)
  own = tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}
  whole = conversion.convert(own, hf_config | {"tie_word_embeddings": False}, [UNTIED])
  assert whole.fresh == ()
  assert np.array_equal(whole.params["lm"]["kernel"][:tiny.VOCAB], own["lm_head.weight"])


@pytest.mark.parametrize("objective, name", [
    ("mlm_sop", "AlbertForPreTraining"), ("mlm_nsp", "BertForPreTraining")])
def test_an_objective_is_exported_as_another(monkeypatch, objective, name):
  config = tiny.make_config(objective, embedding_width=16, layer_groups=1)
  monkeypatch.setitem(choices.OBJECTIVES, "invented",
                      choices.OBJECTIVES[objective]._replace(exported_as=objective))
  config.objective.name = "invented"
  assert conversion.find_architecture(config).name == name


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize("objective, model, message", [
    ("mlm_nsp", {"norm": "pre"}, "model.norm='pre'"),
    ("mlm", {"norm": "pre"}, "model.norm='pre'"),
    ("causal", {"norm": "post", "mlp_dim": 128, "activation": "gelu_erf"},
     "model.activation='gelu_erf'"),
    ("causal", {"norm": "post", "mlp_dim": 64}, "model.mlp_dim=64"),
])
def test_a_model_that_transformers_has_not_is_refused(objective, model, message):
  with pytest.raises(ConfigError, match=message):
    conversion.find_architecture(tiny.make_config(objective, **model))


def test_a_parameter_too_many_or_too_few_is_named():
  config, params = make("BertForPreTraining")
  with pytest.raises(ConfigError, match="no counterpart of the parameter extra"):
    conversion.to_hugging_face(params | {"extra": np.zeros(2)}, config)
  del params["nsp"]["bias"]
  with pytest.raises(ConfigError, match="nsp/bias of BertForPreTraining is missing"):
    conversion.to_hugging_face(params, config)


@pytest.mark.parametrize("kinds, message", [
    ((), "no class for a GPT2LMHeadModel that is fine-tuned on a task with classes"),
    (("classes",), "transformers' GPT2ForSequenceClassification has no output bias"),
])
def test_a_tuned_model_without_a_class_is_refused_with_what_remains(monkeypatch, kinds, message):
  config, params = make("GPT2LMHeadModel")
  tuned = {kind: gpt.GPT2.tuned[kind]._replace(bias_target="") for kind in kinds}
  monkeypatch.setattr(gpt, "GPT2", gpt.GPT2._replace(tuned=tuned))
  head = {"kernel": np.ones((32, 2), np.float32), "bias": np.ones(2, np.float32)}
  with pytest.raises(ConfigError, match=f"{message}.*`bertgpt predict`"):
    conversion.to_hugging_face(params | {"head": head}, config, kind="classes")


def replace(name, make_value):
  def change(tensors):
    tensors[name] = make_value(tensors[name])
  return change


WORDS = "bert.embeddings.word_embeddings.weight"
NORM = "bert.embeddings.LayerNorm"


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop(WORDS), f"{WORDS} is missing"),
    (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), "layer.1.output.dense.bias is mis"),
    (lambda t: t.update(surprise=np.zeros(3, np.float32)), "surprise has no place"),
    (lambda t: t.update({"bert.encoder.layer.2.output.dense.bias": np.zeros(32)}),
     "layer.2.output.dense.bias has no place"),
    (replace(WORDS, lambda x: x[:-1]), r"\[249, 32\]; according to config.json it is \[250, 32\]"),
    (replace("bert.encoder.layer.0.output.dense.weight", lambda x: x.T), r"\[64, 32\]; according"),
    (replace("cls.predictions.bias", lambda x: x.astype(np.int64)), "of type int64"),
    (lambda t: t.update({"cls.predictions.decoder.weight": t[WORDS] + 1}), "weight differs"),
    (lambda t: t.update({f"{NORM}.gamma": t[f"{NORM}.weight"] + 1}),
     f"the tensors {NORM}.weight and {NORM}.gamma are the same parameter"),
    (lambda t: t.update({f"{NORM}.beta": t[f"{NORM}.bias"]}),
     f"{NORM}.bias and {NORM}.beta are the same parameter"),
])
def test_tensors_that_do_not_fit_are_named(change, message):
  tensors, hf_config = there(*make("BertForPreTraining"))
  change(tensors)
  with pytest.raises(DataError, match=message):
    conversion.convert(tensors, hf_config)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "invented"}, "model_type='invented'"),
    ({"model_type": None}, "config.json has no model_type. Add it"),
    ({"architectures": ["GPT2LMHeadModel"]}, "model_type='bert' but architectures=GPT2LMHeadModel"),
    ({"architectures": ["AlbertModel"]}, "model_type='bert' but architectures=AlbertModel"),
    ({"model_type": ["bert"]}, "model_type="),
    ({"hidden_act": ["gelu"]}, "hidden_act="),
    ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ({"hidden_size": "32"}, "hidden_size='32'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ({"layer_norm_eps": None}, "layer_norm_eps=None"),
    ({"num_hidden_layers": 3}, "layer.2.attention.self.query.weight is missing"),
])
def test_a_config_that_does_not_fit_is_named(change, message):
  tensors, hf_config = there(*make("BertForPreTraining"))
  with pytest.raises(DataError, match=message):
    conversion.convert(tensors, hf_config | change)


@pytest.mark.parametrize("rates, message", [
    ({"embd_pdrop": 0.3, "resid_pdrop": 0.2}, "resid_pdrop=0.2 and embd_pdrop=0.3"),
    ({"embd_pdrop": 0.3}, "resid_pdrop=0.1 and embd_pdrop=0.3"),
])
def test_two_rates_that_are_one_here_must_be_equal(rates, message):
  tensors, hf_config = there(*make("GPT2LMHeadModel"))
  del hf_config["resid_pdrop"]
  with pytest.raises(DataError, match=message):
    conversion.convert(tensors, hf_config | rates)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "XLNetLMHeadModel"])
def test_keys_may_have_a_second_name(name):
  """The number of heads has no influence on shapes, so that nothing else would show an error."""
  tensors, hf_config = there(*make(name))
  heads = hf_config.pop("n_head")
  for others in ({}, {"n_head": 3 * heads}):  # In transformers, the second name has precedence.
    fields = conversion.convert(tensors, hf_config | others | {"num_attention_heads": heads})[1]
    assert fields["model.num_heads"] == heads
