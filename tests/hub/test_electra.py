"""ELECTRA's two folders: round trips, a missing folder, and a step as in PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from differences import check_close, check_gradients
from safetensors.numpy import save_file

from bertgpt import models
from bertgpt.errors import ConfigError, DataError
from bertgpt.hub import conversion, opening, submodels
from bertgpt.models import Inputs, sampling
from bertgpt.training import objectives
from bertgpt.training.objectives import rtd
from bertgpt.trees import named_leaves

ROWS = 8
SIZES = {"family": "electra", "embedding_width": 16, "generator_width": 24,
         "generator_num_heads": 2, "generator_mlp_dim": 40, "activation": "gelu_erf"}


def make(**model):
  """Returns the config and parameters, all different, of a small model."""
  config = tiny.make_config("rtd", **(SIZES | model))
  with tiny.Setup(config) as setup:
    shapes = setup.abstract.params
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  for path, x in named_leaves(params).items():  # The padding is not written.
    if path.endswith(("token/embedding", "mlm/bias")):
      x[tiny.VOCAB:] = 0
  return config, params


def there(config, params):
  """Returns the (tensors, config.json) of both folders: the discriminator's, the generator's."""
  return [(conversion.to_hugging_face(params, config, part=part),
           conversion.to_hugging_face_config(config, part=part)) for part in ("", "generator")]


@pytest.mark.parametrize("model", [
    {}, {"embedding_sharing": "none"}, {"embedding_width": 32}, {"embedding_width": 24},
    {"embedding_width": 0, "generator_width": 32}])
def test_there_and_back_is_the_same_bit_for_bit(model):
  """Models with and without dense layers after the embeddings return unchanged."""
  config, params = make(**model)
  whole, generator = there(config, params)
  assert [x[1]["architectures"] for x in (whole, generator)] == [["ElectraForPreTraining"],
                                                                 ["ElectraForMaskedLM"]]
  back = submodels.add(conversion.convert(*whole), {"generator": generator})
  assert back.fresh == () == back.dropped
  expected, found = named_leaves(params), named_leaves(back.params)
  assert found.keys() == expected.keys()
  assert all(np.array_equal(found[path], x) for path, x in expected.items())
  width = model.get("embedding_width", 16) or 32
  for field, value in back.fields.items():
    group, field = field.split(".")
    assert (width if field == "embedding_width" else config[group][field]) == value
  for part, expected in (("", whole), ("generator", generator)):
    again = conversion.to_hugging_face(back.params, config, part=part)
    assert again.keys() == expected[0].keys()
    assert all(np.array_equal(again[name], x) for name, x in expected[0].items())


def test_the_discriminators_tables_of_gdes_are_written_as_sums():
  config, params = make(embedding_sharing="gdes")
  whole, generator = there(config, params)
  name = "electra.embeddings.word_embeddings.weight"
  own, base = (params[part]["token"]["embedding"][:tiny.VOCAB]
               for part in ("embeddings", "generator_embeddings"))
  np.testing.assert_array_equal(whole[0][name], own + base)
  np.testing.assert_array_equal(generator[0][name], base)
  back = submodels.add(conversion.convert(*whole), {"generator": generator})
  assert back.fields["model.embedding_sharing"] == "none"


def test_a_discriminator_alone_gets_a_random_generator():
  config, params = make()
  whole, _ = there(config, params)
  back = submodels.add(conversion.convert(*whole), {})
  assert back.fresh == ("generator", "mlm")
  assert back.fields["model.generator_width"] == 64
  changed = tiny.make_config("rtd", **(SIZES | {
      field.removeprefix("model."): value for field, value in back.fields.items()
      if field.startswith("model.generator")}))
  with tiny.Setup(changed) as setup:
    expected = {path: x.shape for path, x in named_leaves(setup.abstract.params).items()}
  assert {path: x.shape for path, x in named_leaves(back.params).items()} == expected


def test_a_discriminator_has_no_output_table_that_could_be_untied():
  (tensors, settings), _ = there(*make())
  assert not conversion.convert(tensors, settings | {"tie_word_embeddings": False}).fresh


@pytest.mark.parametrize("name", [
    "generator", "generator/config.json", "generator/model.safetensors"])
def test_a_generator_that_was_not_copied_is_not_drawn_at_random(name, tmp_path):
  tensors, settings = there(*make())[0]
  save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(settings))
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).symlink_to("missing")
  with pytest.raises(DataError, match=f"{tmp_path / name}: is a folder, or a link to a missing"):
    opening.open_folder(tmp_path, "--workdir")


def test_the_random_generator_fits_any_width():
  whole, _ = there(*make(width=516))
  fields = submodels.add(conversion.convert(*whole), {}).fields
  assert fields["model.generator_width"] % fields["model.generator_num_heads"] == 0


@pytest.mark.parametrize("sharing", ["shared", "gdes", "none"])
def test_a_model_without_segments_gets_ones_that_add_nothing(sharing):
  for tensors, settings in there(*make(num_segments=0, embedding_sharing=sharing)):
    assert settings["type_vocab_size"] == 1
    assert not tensors["electra.embeddings.token_type_embeddings.weight"].any()


def test_models_that_do_not_belong_together_are_refused():
  config, params = make()
  whole, (tensors, settings) = there(config, params)
  with pytest.raises(DataError, match="generator: num_segments is 3, but 2"):
    submodels.add(conversion.convert(*whole), {"generator": (
        tensors | {"electra.embeddings.token_type_embeddings.weight":
                   np.zeros((3, 16), np.float32)},
        settings | {"type_vocab_size": 3})})


@pytest.mark.parametrize("change, problem", [
    ({"quantization_config": {"bits": 8}}, "config.json has quantization_config"),
    ({"auto_map": {"AutoModel": "x.X"}}, "config.json has auto_map"),
    ({"model_type": "bert", "architectures": None}, "model_type='bert' in config.json"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=False in config.json")])
def test_what_is_wrong_with_the_generator_is_said_of_it(change, problem):
  config, params = make()
  whole, (tensors, settings) = there(config, params)
  with pytest.raises(DataError, match=f"^generator: {problem}"):
    submodels.add(conversion.convert(*whole), {"generator": (tensors, settings | change)})


def test_a_generator_with_the_approximate_gelu_is_neither_written_nor_read():
  """The output layer of transformers' generator has the exact GELU, whatever hidden_act says."""
  config, params = make()
  whole, (tensors, settings) = there(config, params)
  with pytest.raises(DataError, match="^generator: hidden_act='gelu_new' in config.json: only"):
    submodels.add(conversion.convert(whole[0], whole[1] | {"hidden_act": "gelu_new"}),
                  {"generator": (tensors, settings | {"hidden_act": "gelu_new"})})
  config.model.activation = "gelu_tanh"
  for part in ("", "generator"):
    with pytest.raises(ConfigError, match="ElectraForMaskedLM has only gelu_erf"):
      conversion.find_architecture(config, part=part)
  # A fine-tuned model has no generator.
  assert conversion.find_architecture(config, "tokens").name == "ElectraForTokenClassification"
  params |= {"head": {"kernel": np.ones((tiny.SIZE["width"], 3)), "bias": np.ones(3)}}
  tensors = conversion.to_hugging_face(params, config, kind="tokens")
  assert tensors["classifier.weight"].shape == (3, tiny.SIZE["width"])


# ------------------------------------------------------------------ PyTorch


def make_theirs(embedding_size):
  """Returns a discriminator and a generator that share their embeddings."""
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  sizes = {"vocab_size": tiny.VOCAB, "embedding_size": embedding_size, "num_hidden_layers": 2,
           "max_position_embeddings": tiny.LENGTH, "hidden_dropout_prob": 0.0,
           "attention_probs_dropout_prob": 0.0}
  torch.manual_seed(0)
  whole = transformers.ElectraForPreTraining(transformers.ElectraConfig(
      **sizes, hidden_size=32, num_attention_heads=4, intermediate_size=64)).eval()
  generator = transformers.ElectraForMaskedLM(transformers.ElectraConfig(
      **sizes, hidden_size=24, num_attention_heads=2, intermediate_size=40)).eval()
  with torch.no_grad():
    for p in [*whole.parameters(), *generator.parameters()]:
      p += 0.1 * torch.randn_like(p)
  generator.electra.embeddings = whole.electra.embeddings
  generator.tie_weights()
  return whole, generator


def make_batch(seed=0):
  """Returns rows of one sequence each, with masks, their targets, and words of the samples."""
  rng = np.random.default_rng(seed)
  length, at = rng.integers(16, tiny.LENGTH + 1, (ROWS, 1)), np.arange(tiny.LENGTH)
  is_text = at < length
  slots = rng.permuted(np.repeat(np.arange(1, 16)[None], ROWS, 0), axis=1)[:, :6]
  tokens = np.where(is_text, rng.integers(5, tiny.VOCAB, is_text.shape), 0)
  targets = np.take_along_axis(tokens, slots, 1)
  np.put_along_axis(tokens, slots, tiny.MASK, 1)
  batch = {"tokens": tokens, "sequence_ids": is_text, "positions": np.where(is_text, at, 0),
           "segment_ids": is_text & (at > 9), "predict_positions": slots,
           "predict_targets": targets}
  return ({name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
          | {"predict_weights": jnp.ones(slots.shape),
             "sample_key_data": jnp.asarray(rng.integers(0, 2**32, (ROWS, 2)), jnp.uint32)})


@pytest.mark.hf
@pytest.mark.parametrize("embedding_size", [16, 32])
def test_a_step_is_that_of_pytorch(embedding_size):
  """Logits of both models, the loss weighted 1 : 50, and its gradients are equal."""
  whole, generator = make_theirs(embedding_size)
  torch = pytest.importorskip("torch")
  as_numpy = lambda model: {name: p.detach().numpy() for name, p in model.named_parameters()}
  found = [(as_numpy(m), m.config.to_dict() | {"architectures": [type(m).__name__]})
           for m in (whole, generator)]
  back = submodels.add(conversion.convert(*found[0]), {"generator": found[1]})
  assert back.fresh == () and back.fields["model.embedding_sharing"] == "shared"
  config = tiny.make_config("rtd", **{field.removeprefix("model."): value for field, value in
                                      back.fields.items() if field.startswith("model.")})
  model, batch = models.make_model(config), make_batch()
  objective = objectives.make_objective(config, tiny.make_vocabulary())

  def total(params):
    sums, _ = objective.compute_sums(objectives.BoundModel(model, params), batch)
    return objectives.total_loss(sums, objective.weights(batch))

  inputs = Inputs.of(batch)
  prediction = tiny.apply(model, back.params, inputs, method="predict")
  tokens, is_replaced = rtd.replace(batch, sampling.sample(prediction, batch["sample_key_data"]))
  assert 0 < is_replaced.sum() <= batch["predict_targets"].size

  tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)
  labels = np.full((ROWS, tiny.LENGTH), -100)
  np.put_along_axis(labels, np.asarray(batch["predict_positions"]),
                    np.asarray(batch["predict_targets"]), 1)
  same = {"attention_mask": tensor(batch["sequence_ids"]),
          "token_type_ids": tensor(batch["segment_ids"])}
  mlm = generator(input_ids=tensor(batch["tokens"]), labels=tensor(labels), **same)
  detected = whole(input_ids=tensor(tokens), labels=tensor(is_replaced).float(), **same)
  their_loss = mlm.loss + 50 * detected.loss
  their_loss.backward()

  slots = np.asarray(batch["predict_positions"])[..., None]
  check_close("the generator's logits", prediction.logits()[..., :tiny.VOCAB],
              np.take_along_axis(mlm.logits.detach().numpy(), slots, 1))
  logits = tiny.apply(model, back.params, inputs._replace(tokens_BL=tokens), method="detect")
  is_text = np.asarray(batch["sequence_ids"]) > 0
  check_close("the discriminator's logits", np.asarray(logits)[is_text],
              detected.logits.detach().numpy()[is_text])
  loss, grads = jax.jit(jax.value_and_grad(total))(back.params)
  check_close("loss", loss, their_loss.item(), atol=1e-5 * their_loss.item())
  # PyTorch does not train the row of the padding, even if a sample is that token.
  skip = lambda name: 1 if "word_embeddings" in name else 0
  for theirs, part in ((whole, ""), (generator, "generator")):
    ours = conversion.to_hugging_face(grads, config, part=part)
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    check_gradients({name: ours[name][skip(name):] for name in expected},
                    {name: x[skip(name):] for name, x in expected.items()})
