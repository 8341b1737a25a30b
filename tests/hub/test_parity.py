"""The same weights in `transformers` and here: logits, losses, gradients, and 50 steps of training.

Needs the extra `hf` (`make test-hf`); without PyTorch these tests are skipped.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from differences import check_close, check_gradients
from ml_collections import FrozenConfigDict

from bertgpt import models, trees
from bertgpt.config import families
from bertgpt.config.overrides import set_field
from bertgpt.data.batches import formats
from bertgpt.errors import DataError
from bertgpt.finetuning import objectives as task_objectives
from bertgpt.hub import conversion, family_tables
from bertgpt.models import Inputs
from bertgpt.training import objectives, optimizers, schedules, steps

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
pytestmark = pytest.mark.hf
torch.set_num_threads(1)  # The models are tiny.

ROWS, STEPS = 8, 50
ENCODER = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 34,
           "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {"vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32,
           "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
           "bos_token_id": 0, "eos_token_id": 0}
SHARED = ENCODER | {"embedding_size": 16, "num_hidden_layers": 4, "classifier_dropout_prob": 0.0,
                    "hidden_act": "gelu_new", "type_vocab_size": 2}
# Rows are longer than the window, and the layers are of both kinds.
MODERN = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 4,
          "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 32,
          "local_attention": 10, "attn_implementation": "eager", "bos_token_id": 2,
          "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 1}
CASES = {
    "bert": ("BertForPreTraining", ENCODER),
    "bert, tanh": ("BertForPreTraining", ENCODER | {"hidden_act": "gelu_new"}),
    "bert, masked LM": ("BertForMaskedLM", ENCODER | {"hidden_act": "gelu_pytorch_tanh"}),
    "roberta": ("RobertaForMaskedLM", ENCODER | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "albert": ("AlbertForPreTraining", SHARED | {"num_hidden_groups": 1}),
    "albert, two groups": ("AlbertForPreTraining", SHARED | {"num_hidden_groups": 2}),
    "albert, masked LM": ("AlbertForMaskedLM", SHARED | {"num_hidden_groups": 2}),
    "modernbert": ("ModernBertForMaskedLM", MODERN),
    "modernbert, old form": ("ModernBertForMaskedLM", MODERN | {
        "global_attn_every_n_layers": 2, "global_rope_theta": 900.0, "local_rope_theta": 50.0}),
    "modernbert decoder": ("ModernBertDecoderForCausalLM", MODERN),
    "modernbert decoder, old form": ("ModernBertDecoderForCausalLM", MODERN | {
        "global_attn_every_n_layers": 4, "global_rope_theta": 900.0, "hidden_activation": "silu",
        "classifier_activation": "silu"}),
    "gpt2": ("GPT2LMHeadModel", DECODER | {"n_inner": 96}),
    "gpt2, erf": ("GPT2LMHeadModel", DECODER | {"activation_function": "gelu"}),
    "gpt1": ("OpenAIGPTLMHeadModel", DECODER),
}


SMALL = {"num_layers": 4, "width": 32, "num_heads": 4, "mlp_dim": 48, "max_positions": 32}
TINY_ENCODER = families.FAMILIES["modernbert"].presets["base"] | SMALL | {"window": 5}
TINY_DECODER = families.FAMILIES["modernbert_decoder"].presets["base"] | SMALL | {"window": 5}


def make_theirs(architecture, sizes):
  """Returns a model of transformers without parameters of 0 or 1, which could hide an error."""
  torch.manual_seed(0)
  cls = getattr(transformers, architecture)
  model = cls(cls.config_class(**sizes, architectures=[architecture])).eval()
  with torch.no_grad():
    for p in model.parameters():
      p += 0.1 * torch.randn_like(p)
  return model


def to_ours(theirs):
  """Returns (config, parameters, tensors) of the same model in this package."""
  tensors = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
  params, fields = conversion.convert(tensors, theirs.config.to_dict())[:2]
  config = tiny.make_config(fields["objective.name"])
  for field, value in fields.items():
    set_field(config, field, value)
  config.phases[0].batch_size = ROWS
  return config, params, tensors


def make_batch(config, seed=0):
  """Returns masked rows of one sequence each, with padding after it."""
  rng = np.random.default_rng(seed)
  length = rng.integers(16, tiny.LENGTH + 1, (ROWS, 1))
  at = np.arange(tiny.LENGTH)
  is_text = at < length
  pad_id = 1  # RoBERTa counts positions from it.
  batch = {"tokens": np.where(is_text, rng.integers(5, tiny.VOCAB, is_text.shape), pad_id),
           "sequence_ids": is_text, "positions": np.where(is_text, at, 0)}
  if config.objective.name == "causal":
    batch |= {"targets": np.roll(batch["tokens"], -1, 1)}
    weights = {"loss_weights": at + 1 < length}
  else:
    slots = rng.permuted(np.repeat(np.arange(1, 16)[None], ROWS, 0), axis=1)[:, :8]
    batch |= {"segment_ids": (is_text & (at > 9)) * (config.model.num_segments > 1),
              "predict_positions": slots,
              "predict_targets": rng.integers(5, tiny.VOCAB, slots.shape)}
    weights = {"predict_weights": rng.random(slots.shape) < 0.8}
    if name := formats.find(config).pair_name:
      batch |= {f"{name}_positions": np.zeros((ROWS, 1)),
                f"{name}_labels": rng.integers(0, 2, (ROWS, 1))}
      weights |= {f"{name}_weights": np.ones((ROWS, 1))}
  return ({name: np.asarray(x, np.int32) for name, x in batch.items()}
          | {name: np.asarray(x, np.float32) for name, x in weights.items()})


def run_theirs(theirs, config, batch):
  """Returns (outputs, loss) of transformers, which needs labels in its own format."""
  tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)
  inputs = {"input_ids": tensor(batch["tokens"]), "attention_mask": tensor(batch["sequence_ids"])}
  if config.objective.name == "causal":
    inputs["labels"] = tensor(np.where(batch["sequence_ids"] > 0, batch["tokens"], -100))
  else:
    labels = np.full((ROWS, tiny.LENGTH), -100)
    for row, position, target, weight in zip(
        np.arange(ROWS)[:, None].repeat(batch["predict_positions"].shape[1], 1).flat,
        np.ravel(batch["predict_positions"]), np.ravel(batch["predict_targets"]),
        np.ravel(batch["predict_weights"]), strict=True):
      if weight:
        labels[row, position] = target
    inputs |= {"labels": tensor(labels)}
    if "num_segments" in families.find(config).reads:
      inputs["token_type_ids"] = tensor(batch["segment_ids"])
    if name := formats.find(config).pair_name:
      label = {"nsp": "next_sentence_label", "sop": "sentence_order_label"}[name]
      inputs[label] = tensor(batch[f"{name}_labels"][:, 0])
  output = theirs(**inputs)
  return output, output.loss


def total_loss(config, params, batch):
  objective = objectives.make_objective(config, tiny.make_vocabulary())
  sums, _ = objective.compute_sums(objectives.BoundModel(models.make_model(config), params), batch)
  return objectives.total_loss(sums, objective.weights(batch))


def our_logits(config, params, batch):
  """Returns the logits of every position, and those of pairs or None."""
  model, every = models.make_model(config), jnp.tile(jnp.arange(tiny.LENGTH), (ROWS, 1))
  inputs = Inputs.of(batch)._replace(predict_positions_BK=every)
  if name := formats.find(config).pair_name:
    inputs = inputs._replace(pair_positions_BP=batch[f"{name}_positions"])
    return tiny.apply(model, params, inputs)
  return tiny.apply(model, params, inputs, method="predict").logits(), None


def assert_same_function(theirs, config, params):
  """Compares the logits of all tokens, the loss, and the gradients of one batch."""
  batch = make_batch(config)
  output, their_loss = run_theirs(theirs, config, batch)
  their_loss.backward()

  logits, pair_logits = jax.jit(lambda p: our_logits(config, p, batch))(params)
  expected = output.prediction_logits if pair_logits is not None else output.logits
  is_text = batch["sequence_ids"] > 0
  check_close("logits", logits[..., :tiny.VOCAB][is_text], expected.detach().numpy()[is_text])
  if pair_logits is not None:
    is_sop = formats.find(config).pair_name == "sop"
    expected = output.sop_logits if is_sop else output.seq_relationship_logits
    check_close("logits of pairs", pair_logits[:, 0], expected.detach().numpy())

  loss, grads = jax.jit(jax.value_and_grad(lambda p: total_loss(config, p, batch)))(params)
  check_close("loss", loss, their_loss.item())
  ours = conversion.to_hugging_face(grads, config)  # Linear, so it converts gradients too.
  skip = lambda name: 2 if "roberta.embeddings.position" in name else 0
  check_gradients({name: x[skip(name):] for name, x in ours.items()},
                  {name: p.grad.numpy()[skip(name):] for name, p in theirs.named_parameters()})


@pytest.mark.parametrize("case", CASES)
def test_an_imported_model_computes_the_same(case):
  theirs = make_theirs(*CASES[case])
  config, params, tensors = to_ours(theirs)
  assert_same_function(theirs, config, params)

  again = conversion.to_hugging_face(params, config)
  assert again.keys() == tensors.keys()
  for name, x in tensors.items():
    skipped = 2 if "roberta.embeddings.position" in name else 0  # Rows that RoBERTa never reads.
    assert np.array_equal(again[name][skipped:], x[skipped:]), name


XLNET = {"vocab_size": tiny.VOCAB, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
CLASSES = {
    "BertForPreTraining": ENCODER, "RobertaForMaskedLM": ENCODER, "AlbertForPreTraining": SHARED,
    "ElectraForPreTraining": ENCODER | {"embedding_size": 16}, "ModernBertForMaskedLM": MODERN,
    "ModernBertDecoderForCausalLM": MODERN, "GPT2LMHeadModel": DECODER,
    "OpenAIGPTLMHeadModel": DECODER, "XLNetLMHeadModel": XLNET}
# Keys that are read, but are not attributes of the class of the config.
OTHER_KEYS = {"sliding_window": 3, "global_attn_every_n_layers": 2, "global_rope_theta": 90.0,
              "local_rope_theta": 90.0, "is_causal": False}
# Keys that select what a class returns.
OF_RESULT = {"return_dict", "output_hidden_states", "output_attentions"}


def other_values(key, value):
  """Returns values of a key of config.json that differ from its value and may be legal."""
  if key in OTHER_KEYS:
    return [OTHER_KEYS[key]]
  if isinstance(value, bool):
    return [not value]
  if isinstance(value, int):
    return [value + 1, 2 * value]
  if isinstance(value, float):
    return [0.3]
  if key == "layer_types":
    return [value[::-1], ["full_attention"] * len(value)]
  if key == "rope_parameters":
    return [value | {kind: {"rope_type": "default", "rope_theta": 90.0}} for kind in value]
  return ["relu", "silu", "gelu_new", "gelu", "mean", 8]


@pytest.mark.parametrize("name", CLASSES)
def test_a_key_that_changes_the_outputs_is_read_or_refused(name):
  """Changes every key of config.json; new keys of the library are found, too."""
  tokens = torch.tensor(np.random.default_rng(0).integers(5, tiny.VOCAB, (2, 24)))
  weights = {}

  def run(sizes):
    theirs = make_theirs(name, sizes)
    if not weights:
      weights.update(theirs.state_dict())
    if {n: x.shape for n, x in theirs.state_dict().items()} == {
        n: x.shape for n, x in weights.items()}:
      theirs.load_state_dict(weights)
    with torch.no_grad():
      output = theirs(input_ids=tokens)
    return theirs, next(iter(output.values())).numpy()

  def read(theirs, sizes):
    tensors = {tensor: p.detach().numpy() for tensor, p in theirs.named_parameters()}
    return conversion.convert(tensors, sizes | {"model_type": theirs.config.model_type})[1]

  theirs, expected = run(CLASSES[name])
  fields, config_class = read(theirs, CLASSES[name]), type(theirs.config)
  aliases = {alias: CLASSES[name].get(key) for alias, key in config_class.attribute_map.items()}
  values = OTHER_KEYS | theirs.config.to_dict() | CLASSES[name] | aliases
  changed = set()
  for key in values.keys() - OF_RESULT - {"attn_implementation"}:
    for value in other_values(key, values[key]):
      sizes = {k: x for k, x in CLASSES[name].items() if config_class.attribute_map.get(key) != k}
      sizes[key] = value
      try:
        theirs, found = run(sizes)
      except Exception:  # noqa: S112 (the library's refusals have many types)
        continue
      if found.shape == expected.shape and np.allclose(found, expected, atol=1e-5):
        continue
      changed.add(key)
      try:
        ours = read(theirs, sizes)
        assert ours != fields, f"{key}={value!r} changes nothing here"
        assert ours == read(theirs, theirs.config.to_dict()), f"{key}={value!r} has another meaning"
      except DataError as e:
        assert key in str(e), f"{key}={value!r}: {e}"
  assert len(changed) > 7  # Otherwise the library refused too much.


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_a_config_comes_in(name):
  config = getattr(transformers, name).config_class(**CLASSES[name])
  prefix = config.__class__.__name__.removesuffix("Config")
  classes = [x for x in dir(transformers)
             if re.fullmatch(f"{prefix}(Model|(LM|Double)Head(s?)Model|For[A-Z].*)", x)]
  assert len(classes) > 2
  for architecture in classes:
    theirs = getattr(transformers, architecture)(config)
    tensors = {n: p.detach().numpy() for n, p in theirs.named_parameters()}
    found = conversion.convert(tensors, config.to_dict() | {"architectures": [architecture]})
    taken = trees.named_leaves(found.params)["embeddings/token/embedding"][:tiny.VOCAB]
    assert np.array_equal(taken, theirs.get_input_embeddings().weight.detach()), architecture


@pytest.mark.parametrize("name", CLASSES)
def test_a_missing_key_has_the_default_of_its_class(name):
  config = getattr(transformers, name).config_class()
  (architecture,) = [a for a in family_tables.find_candidates({"model_type": config.model_type})
                     if a.name == name]
  assert (conversion._read_fields(architecture, {}, ())
          == conversion._read_fields(architecture, config.to_dict(), ()))


@pytest.mark.parametrize("objective, model", [
    ("mlm_nsp", {}), ("mlm", {}), ("mlm", {"num_segments": 1, "activation": "gelu_erf"}),
    ("mlm_sop", {"embedding_width": 16, "layer_groups": 1}),
    ("mlm", {"family": "albert", "embedding_width": 16, "num_layers": 4, "layer_groups": 2}),
    ("mlm", TINY_ENCODER), ("mlm", TINY_ENCODER | {"window": 0}),
    ("mlm", TINY_ENCODER | {"global_every": 0}), ("causal", TINY_DECODER),
    ("causal", {}), ("causal", {"norm": "post", "mlp_dim": 128})])
def test_an_exported_model_computes_the_same(objective, model):
  config = tiny.make_config(objective, **model)
  with tiny.Setup(config) as setup:
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
                          setup.init().params)
  hf_config = conversion.to_hugging_face_config(config)
  cls = getattr(transformers, hf_config["architectures"][0])
  theirs = cls(cls.config_class(**hf_config, pad_token_id=1, attn_implementation="eager")).eval()
  tensors = conversion.to_hugging_face(params, config)
  missing, unknown = theirs.load_state_dict(
      {name: torch.tensor(x) for name, x in tensors.items()}, strict=False)
  assert not unknown and set(missing) <= {name for name in theirs.state_dict() if "decoder" in name
                                          or name == "lm_head.weight"}
  theirs.tie_weights()
  assert_same_function(theirs, config, params)


@pytest.mark.parametrize("kind, labels", [
    ("classes", "abc"), ("values", "s"), ("tokens", "abcd"), ("spans", "se")])
@pytest.mark.parametrize("objective, changes", [
    ("mlm_nsp", {}), ("mlm", {}), ("mlm", {"num_segments": 1, "activation": "gelu_erf"}),
    ("mlm_sop", {"embedding_width": 16, "layer_groups": 1}),
    ("mlm", TINY_ENCODER), ("mlm", TINY_ENCODER | {"pooling": "mean"})])
def test_a_fine_tuned_model_computes_the_same(objective, changes, kind, labels):
  config = tiny.make_config(objective, **changes)
  head = task_objectives.TASK_HEADS["encoder", kind]
  model = head.make_model(FrozenConfigDict(config.model), len(labels))
  batch = make_batch(config)
  inputs = Inputs.of(batch)
  params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
  params = jax.tree.map(
      lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)

  hf_config = conversion.to_hugging_face_config(config, kind=kind, labels=labels)
  cls = getattr(transformers, hf_config["architectures"][0])
  theirs = cls(cls.config_class(**hf_config, pad_token_id=1, attn_implementation="eager")).eval()
  theirs.load_state_dict({name: torch.tensor(x) for name, x in
                          conversion.to_hugging_face(params, config, kind=kind).items()})
  tensor = lambda name: torch.tensor(np.asarray(batch[name]), dtype=torch.long)
  segments = ({"token_type_ids": tensor("segment_ids")}
              if "num_segments" in families.find(config).reads else {})
  with torch.no_grad():
    output = theirs(input_ids=tensor("tokens"), attention_mask=tensor("sequence_ids"), **segments)
  expected = (torch.stack([output.start_logits, output.end_logits], -1) if kind == "spans"
              else output.logits).numpy()
  found = np.asarray(tiny.apply(model, params, inputs))
  assert found.shape == expected.shape
  if kind in ("tokens", "spans"):
    is_text = np.asarray(batch["sequence_ids"]) > 0
    found, expected = found[is_text], expected[is_text]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  if kind in conversion.PROBLEM_TYPES:
    assert list(theirs.config.id2label.values()) == list(labels)


@pytest.mark.parametrize("kind, labels", [("classes", "abc"), ("classes", "ab"), ("values", "s")])
@pytest.mark.parametrize("changes", [
    {}, {"activation": "gelu_erf", "mlp_dim": 96},
    {"norm": "post", "activation": "gelu_tanh", "mlp_dim": 128}, TINY_DECODER])
def test_a_fine_tuned_gpt_computes_the_same(changes, kind, labels):
  """Rows of several lengths in one batch; the outputs of transformers have no bias."""
  config = tiny.make_config("causal", **changes)
  head = task_objectives.TASK_HEADS["decoder", kind]
  model = head.make_model(FrozenConfigDict(config.model), len(labels))
  batch = make_batch(config)
  inputs = Inputs.of(batch)
  params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
  params = jax.tree.map(
      lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
  params["head"]["bias"] = jnp.linspace(-2.0, 3.0, len(labels))

  hf_config = conversion.to_hugging_face_config(config, kind=kind, labels=labels)
  cls = getattr(transformers, hf_config["architectures"][0])
  kind_of_model = ("ModernBertDecoder" if "family" in changes
                   else "OpenAIGPT" if "norm" in changes else "GPT2")
  assert cls.__name__ == f"{kind_of_model}ForSequenceClassification"
  theirs = cls(cls.config_class(**hf_config, pad_token_id=1)).eval()
  missing = theirs.load_state_dict({
      name: torch.tensor(x) for name, x in conversion.to_hugging_face(
          params, config, kind=kind).items()}, strict=False)
  assert not missing.unexpected_keys and all(".attn." in n for n in missing.missing_keys), missing
  tensor = lambda name: torch.tensor(np.asarray(batch[name]), dtype=torch.long)
  with torch.no_grad():
    expected = theirs(input_ids=tensor("tokens"), attention_mask=tensor("sequence_ids")).logits
  found = np.asarray(tiny.apply(model, params, inputs)[0])
  np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)


# -------------------------------------------------------------------- training


@pytest.mark.parametrize("case, decay_rule", [
    ("bert, tanh", "weights"), ("roberta", "all"), ("albert, two groups", "weights"),
    ("gpt2", "weights")])
def test_training_follows_pytorch(case, decay_rule):
  """Losses of 50 steps of AdamW, with clipping, warm-up and our rules for weight decay."""
  theirs = make_theirs(*CASES[case])
  config, params, _ = to_ours(theirs)
  config.optimizer.update(name="adamw", b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=0.1,
                          decay_rule=decay_rule)
  config.phases[0].update(steps=STEPS, learning_rate=3e-3, warmup_steps=10)
  decays = [p for name, p in theirs.named_parameters() if p.ndim == 2]
  others = [p for name, p in theirs.named_parameters() if p.ndim == 1]
  adamw = torch.optim.AdamW([{"params": decays, "weight_decay": 0.1},
                             {"params": others, "weight_decay": 0.1 * (decay_rule == "all")}],
                            betas=(0.9, 0.98), eps=1e-6)
  schedule = schedules.make_schedule(config)
  # The masks are part of the batches: as in the other tests, they are not drawn in the step.
  given = lambda setup: setup.objective._replace(corrupt=lambda batch, key, row_ids: batch)
  found, expected = [], []
  with tiny.Setup(config) as setup:
    state = steps.TrainState(jnp.int32(0), params,
                             optimizers.make_optimizer(config).init(params), jnp.int32(0))
    step = jax.jit(steps.make_train_step(setup.training._replace(objective=given(setup))))
    for i in range(STEPS):
      batch = make_batch(config, seed=i % 5)  # Seen many times, so that the model learns.
      state, metrics = step(state, setup.put(batch))
      found.append(float(metrics["loss"][0]))

      for group in adamw.param_groups:
        group["lr"] = float(schedule(i))
      _, loss = run_theirs(theirs, config, batch)
      adamw.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(theirs.parameters(), config.optimizer.clip_norm)
      adamw.step()
      expected.append(loss.item())
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=0)
  assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])  # The model has learned something.
