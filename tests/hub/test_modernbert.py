"""config.json of ModernBERT in both forms: local layers, RoPE bases, and the window."""

import jax
import numpy as np
import pytest
import tiny

from bertgpt import models
from bertgpt.config import families, find_problems, unread
from bertgpt.config.overrides import override
from bertgpt.errors import DataError
from bertgpt.hub import conversion, modernbert, modernbert_decoder
from bertgpt.models import Inputs

# Of the published ModernBERT-base, written by transformers 4.48.
PUBLISHED = {
    "model_type": "modernbert", "num_hidden_layers": 22, "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "local_attention": 128,
    "hidden_activation": "gelu", "classifier_activation": "gelu", "classifier_pooling": "mean"}


def test_the_former_form_is_the_preset_of_the_published_model():
  for architecture, name in ((modernbert.MASKED_LM, "modernbert"),
                             (modernbert_decoder.CAUSAL_LM, "modernbert_decoder")):
    preset = families.FAMILIES[name].presets["base"]
    found = architecture.read(PUBLISHED)
    pooling = found.pop("pooling", "mean")
    assert pooling == "mean"
    assert found == {field: preset[field] for field in found}


@pytest.mark.parametrize("every", [0, 1, 2, 3, 22])
@pytest.mark.parametrize("architecture", [modernbert.MASKED_LM, modernbert_decoder.CAUSAL_LM])
def test_what_is_written_is_read(architecture, every):
  config = tiny.make_config(architecture.ours["objective.name"])
  config.model.update(families.FAMILIES[architecture.ours["model.family"]].presets["base"])
  config.model.update(global_every=every, rope_theta=777.0)
  written = architecture.write(config.model) | {"num_hidden_layers": 22,
                                                "hidden_activation": "gelu"}
  assert written["local_attention"] == 128  # 64 keys on each side, or 64 with the query's own.
  assert written["layer_types"].count("full_attention") == (-(-22 // every) if every else 0)
  found = architecture.read(written)
  if every == 1:  # No layer is local.
    assert found["window"] == 0 and found["rope_theta"] == 777.0
  else:
    if not every:  # No layer is global, so nothing reads this field.
      config.model.rope_theta = 10_000.0
    assert found == {field: config.model[field] for field in found}
  if every:
    former = {key: value for key, value in written.items()
              if key not in ("layer_types", "rope_parameters")}
    assert architecture.read(former) == found, "transformers 4 reads another model"


@pytest.mark.parametrize("key, value, words", [
    ("layer_types", ["sliding_attention", "full_attention"] * 11, "layer_types"),
    ("layer_types", ["chunked_attention"] * 22, "layer_types"),
    ("layer_types", ["full_attention", *["chunked_attention"] * 21], "layer_types"),
    ("layer_types", ["full_attention"] * 21, "layer_types"), ("layer_types", 3, "layer_types"),
    ("sliding_window", 0, "sliding_window"), ("rope_parameters", [1], "rope_parameters"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 5e2}, "no other keys than full_att"),
    ("rope_parameters", {"full_attention": {"type": "linear", "factor": 2.0}},
     "rope_parameters.full_attention"),
    ("global_attn_every_n_layers", "3", "global_attn_every_n_layers"),
    ("local_attention", "128", "local_attention"), ("local_attention", 1, "local_attention"),
    ("global_rope_theta", "x", "^global_rope_theta='x' in config.json"),
    ("local_rope_theta", 0.5, "^local_rope_theta=0.5 in config.json"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 2.0},
     "rope_scaling={.* in config.json: only positions without scaling"),
    ("rope_parameters", {"sliding_attention": {"rope_type": "linear", "rope_theta": 1e4}},
     "rope_parameters.sliding_attention"),
    ("classifier_activation", "relu", "classifier_activation"),
    ("classifier_pooling", "max", "classifier_pooling")])
def test_a_model_that_cannot_be_computed_is_refused_by_its_key(key, value, words):
  with pytest.raises(DataError, match=words):
    modernbert.MASKED_LM.read(PUBLISHED | {key: value})


def test_the_activation_of_the_head_has_a_default():
  with pytest.raises(DataError, match="hidden_activation='silu' and classifier_activation='gelu'"):
    modernbert.MASKED_LM.read({"hidden_activation": "silu"})


def test_sliding_window_replaces_half_of_local_attention():
  changed = PUBLISHED | {"sliding_window": 20}
  assert modernbert.MASKED_LM.read(changed)["window"] == 20
  assert modernbert_decoder.CAUSAL_LM.read(changed)["window"] == 19  # And the query's own key.


def test_null_is_the_base_of_the_global_layers():
  found = modernbert.MASKED_LM.read(PUBLISHED | {"local_rope_theta": None})
  assert found["rope_theta_local"] == found["rope_theta"] == 160_000.0


def make_folder(architecture, **model):
  """Returns the tensors and the config.json of a small model."""
  config = tiny.make_config(architecture.ours["objective.name"])
  config.model.update(families.FAMILIES[architecture.ours["model.family"]].presets["base"],
                      **tiny.SIZE, window=5, **model)
  shapes = jax.eval_shape(models.make_model(config).init, jax.random.key(0), Inputs.of_texts(
      np.zeros((1, 8), np.int32), np.array([8])))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  return config, params


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("architecture", [modernbert.MASKED_LM, modernbert_decoder.CAUSAL_LM])
def test_the_fields_of_an_import_are_a_config_that_a_training_accepts(architecture, every):
  """The published files have a base for global layers, even if there is none."""
  config, params = make_folder(architecture, global_every=every, rope_theta=160_000.0)
  fields = conversion.convert(conversion.to_hugging_face(params, config),
                              conversion.to_hugging_face_config(config)).fields
  config = override(tiny.make_config(architecture.ours["objective.name"]),
                    [f"--config.{field}={value}" for field, value in fields.items()])
  assert not find_problems(config)
  assert not fields.keys() & {line.partition("=")[0] for line in unread.find_problems(config)}


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_a_fine_tuned_decoder_opens_without_its_head(kind):
  """Its class has a bias in the head, which the model for text has not."""
  config, params = make_folder(modernbert_decoder.CAUSAL_LM)
  labels = ("a", "b", "c") if kind == "classes" else ("value",)
  head = {"kernel": np.ones((32, len(labels)), np.float32),
          "bias": np.ones(len(labels), np.float32)}
  tuned = {"body": params, "head": head}
  tensors = conversion.to_hugging_face(tuned, config, kind=kind)
  hf_config = conversion.to_hugging_face_config(config, kind=kind, labels=labels)
  assert hf_config["classifier_bias"] and "head.dense.bias" in tensors
  found = conversion.convert(tensors, hf_config)
  assert found.architecture.name == "ModernBertDecoderForCausalLM" and found.fresh == ("lm",)
  assert {"classifier.weight", "classifier.bias", "head.dense.bias"} <= set(found.dropped)
  for name in ("decoder", "final_norm"):
    layers = found.params[name]
    if name == "decoder":
      params[name]["layers"]["attention_norm"]["scale"][0] = 1  # Not used, and not written.
    jax.tree.map(np.testing.assert_array_equal, layers, params[name])


@pytest.mark.parametrize("kind", ["classes", ""])
@pytest.mark.parametrize("architecture", [modernbert.MASKED_LM, modernbert_decoder.CAUSAL_LM])
def test_only_a_head_that_is_there_needs_its_bias(architecture, kind):
  """Some tensors of this head have the names of those of a task's head."""
  config, params = make_folder(architecture)
  tuned = {"body": params, "head": {"kernel": np.ones((32, 2), np.float32),
                                    "bias": np.ones(2, np.float32)}}
  tensors = conversion.to_hugging_face(tuned if kind else params, config, kind=kind)
  hf_config = conversion.to_hugging_face_config(
      config, kind=kind, labels=("a", "b") if kind else ()) | {"decoder_bias": False}
  tensors.pop("decoder.bias", None)
  if kind:
    assert conversion.convert(tensors, hf_config).fresh
  else:
    with pytest.raises(DataError, match="decoder_bias"):
      conversion.convert(tensors, hf_config)
