"""Models of `transformers` and ours, by one table for each family that is read both ways.

| architecture           | what it is here                                                     |
|------------------------|---------------------------------------------------------------------|
| `BertForPreTraining`   | bert, objective mlm_nsp                                             |
| `BertForMaskedLM`      | bert, objective mlm                                                 |
| `RobertaForMaskedLM`   | the same with at most one segment and the exact GELU, its only one  |
| `GPT2LMHeadModel`      | gpt, norm pre                                                       |
| `OpenAIGPTLMHeadModel` | gpt, norm post (GPT-1)                                              |

A fine-tuned encoder is one of `TUNED`, which are only written.

Letters for the size of an axis: V vocabulary, P positions, S segments, D width, F width of the
MLP. Ours are [in, out] matrices with the layers stacked on a leading axis.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertgpt import trees
from bertgpt.config import ConfigDict, padded_vocab_size
from bertgpt.errors import ConfigError, DataError

Sizes = dict[str, int]  # By letter; "skip": rows that come before position 0.


class Layout(NamedTuple):
  """How an array of ours is stored there: both directions, and the shape there."""

  write: Callable[[np.ndarray, Sizes], np.ndarray]
  read: Callable[[np.ndarray, Sizes], np.ndarray]
  shape: Callable[[tuple[int, ...], Sizes], tuple[int, ...]]


def _pad_vocabulary(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  rows = padded_vocab_size(sizes["V"]) - sizes["V"]
  return np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1))


LAYOUTS = {
    "same": Layout(lambda x, sizes: x, lambda x, sizes: x, lambda shape, sizes: shape),
    "linear": Layout(lambda x, sizes: x.T, lambda x, sizes: x.T, lambda shape, sizes: shape[::-1]),
    # The rows that pad our vocabulary stay here.
    "vocabulary": Layout(lambda x, sizes: x[:sizes["V"]], _pad_vocabulary,
                         lambda shape, sizes: shape),
    # RoBERTa's positions begin after the id of its padding.
    "positions": Layout(lambda x, sizes: np.pad(x, [(sizes["skip"], 0), (0, 0)]),
                        lambda x, sizes: x[sizes["skip"]:],
                        lambda shape, sizes: (shape[0] + sizes["skip"], shape[1])),
}


class Rule(NamedTuple):
  """One line of a table.

  Attributes:
    ours: path of a parameter; one with a slice for each layer has `layers` in it.
    theirs: name of a tensor, `{}` standing for the layer. Rules in a row with the same name
      share the tensor, side by side on its last axis.
    axes: letters of a layer's shape, as it is here.
    layout: in `LAYOUTS`.
  """

  ours: str
  theirs: str
  axes: str
  layout: str = "same"


def _linear(ours, theirs, axes, layout="linear"):
  return [Rule(f"{ours}/kernel", f"{theirs}.weight", axes, layout),
          Rule(f"{ours}/bias", f"{theirs}.bias", axes[1:])]


def _conv1d(ours, theirs, axes):
  """GPT's `Conv1D` is a linear map stored as ours are."""
  return _linear(ours, theirs, axes, "same")


def _norm(ours, theirs):
  return [Rule(f"{ours}/scale", f"{theirs}.weight", "D"),
          Rule(f"{ours}/bias", f"{theirs}.bias", "D")]


def _encoder(theirs, position_layout):
  embeddings, layer = f"{theirs}.embeddings", f"{theirs}.encoder.layer.{{}}"
  return [
      Rule("embeddings/token/embedding", f"{embeddings}.word_embeddings.weight", "VD",
           "vocabulary"),
      Rule("embeddings/position/embedding", f"{embeddings}.position_embeddings.weight", "PD",
           position_layout),
      Rule("embeddings/segment/embedding", f"{embeddings}.token_type_embeddings.weight", "SD"),
      *_norm("embeddings/norm", f"{embeddings}.LayerNorm"),
      *_linear("encoder/layers/attention/query", f"{layer}.attention.self.query", "DD"),
      *_linear("encoder/layers/attention/key", f"{layer}.attention.self.key", "DD"),
      *_linear("encoder/layers/attention/value", f"{layer}.attention.self.value", "DD"),
      *_linear("encoder/layers/attention/out", f"{layer}.attention.output.dense", "DD"),
      *_norm("encoder/layers/attention_norm", f"{layer}.attention.output.LayerNorm"),
      *_linear("encoder/layers/mlp/up", f"{layer}.intermediate.dense", "DF"),
      *_linear("encoder/layers/mlp/down", f"{layer}.output.dense", "FD"),
      *_norm("encoder/layers/mlp_norm", f"{layer}.output.LayerNorm"),
  ]


def _masked_lm(transform, norm, bias):
  return [*_linear("mlm/dense", f"{transform}.dense", "DD"),
          *_norm("mlm/norm", f"{transform}.{norm}"),
          Rule("mlm/bias", bias, "V", "vocabulary")]


def _decoder(tokens, positions):
  layer = "transformer.h.{}"
  return [
      Rule("embeddings/token/embedding", f"transformer.{tokens}.weight", "VD", "vocabulary"),
      Rule("embeddings/position/embedding", f"transformer.{positions}.weight", "PD"),
      *_norm("decoder/layers/attention_norm", f"{layer}.ln_1"),
      *_conv1d("decoder/layers/attention/query", f"{layer}.attn.c_attn", "DD"),
      *_conv1d("decoder/layers/attention/key", f"{layer}.attn.c_attn", "DD"),
      *_conv1d("decoder/layers/attention/value", f"{layer}.attn.c_attn", "DD"),
      *_conv1d("decoder/layers/attention/out", f"{layer}.attn.c_proj", "DD"),
      *_norm("decoder/layers/mlp_norm", f"{layer}.ln_2"),
      *_conv1d("decoder/layers/mlp/up", f"{layer}.mlp.c_fc", "DF"),
      *_conv1d("decoder/layers/mlp/down", f"{layer}.mlp.c_proj", "FD"),
  ]


BERT_ENCODER = _encoder("bert", "same")
BERT_MASKED_LM = _masked_lm("cls.predictions.transform", "LayerNorm", "cls.predictions.bias")
NEXT_SENTENCE = [*_linear("pooler", "bert.pooler.dense", "DD"),
                 *_linear("nsp", "cls.seq_relationship", "D2")]

# (key of config.json there, field of `config.model`, value there where the key is absent)
ENCODER_FIELDS = (
    ("vocab_size", "vocab_size", 30522), ("hidden_size", "width", 768),
    ("num_hidden_layers", "num_layers", 12), ("num_attention_heads", "num_heads", 12),
    ("intermediate_size", "mlp_dim", 3072), ("max_position_embeddings", "max_positions", 512),
    ("type_vocab_size", "num_segments", 2), ("hidden_act", "activation", "gelu"),
    ("layer_norm_eps", "layer_norm_epsilon", 1e-12), ("hidden_dropout_prob", "dropout", 0.1),
    ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    ("initializer_range", "init_std", 0.02),
)
DECODER_FIELDS = (
    ("vocab_size", "vocab_size", 50257), ("n_embd", "width", 768), ("n_layer", "num_layers", 12),
    ("n_head", "num_heads", 12), ("n_positions", "max_positions", 1024),
    ("layer_norm_epsilon", "layer_norm_epsilon", 1e-5), ("embd_pdrop", "dropout", 0.1),
    ("resid_pdrop", "dropout", 0.1), ("attn_pdrop", "attention_dropout", 0.1),
    ("initializer_range", "init_std", 0.02),
)

TIED = {"tie_word_embeddings": True}
ENCODER_FIXED = TIED | {"is_decoder": False, "add_cross_attention": False,
                        "position_embedding_type": "absolute"}


class Family(NamedTuple):
  """An architecture of `transformers`.

  Attributes:
    model: fields of our config that are so by its nature.
    fields: see `ENCODER_FIELDS`.
    fixed: keys of its config.json that cannot be otherwise here.
    tied: names of tensors that repeat another, which is named too.
    activations: our name -> names there, of which the first is written.
    rules: the parameters.
  """

  model_type: str
  model: dict[str, Any]
  fields: tuple[tuple[str, str, Any], ...]
  fixed: dict[str, Any]
  tied: dict[str, str]
  activations: dict[str, tuple[str, ...]]
  rules: list[Rule]


EXACT_GELU = {"gelu_erf": ("gelu", "gelu_python")}
GELU = EXACT_GELU | {"gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")}

_BERT = Family(
    "bert", {"model.family": "bert", "model.norm": "post", "objective.name": "mlm"},
    ENCODER_FIELDS, ENCODER_FIXED,
    {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
     "cls.predictions.decoder.bias": "cls.predictions.bias"},
    GELU, BERT_ENCODER + BERT_MASKED_LM)

FAMILIES = {
    "BertForPreTraining": _BERT._replace(
        model=_BERT.model | {"objective.name": "mlm_nsp"}, rules=_BERT.rules + NEXT_SENTENCE),
    "BertForMaskedLM": _BERT,
    "RobertaForMaskedLM": _BERT._replace(
        model_type="roberta", activations=EXACT_GELU,
        tied={"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
              "lm_head.decoder.bias": "lm_head.bias"},
        rules=_encoder("roberta", "positions") + _masked_lm("lm_head", "layer_norm",
                                                            "lm_head.bias")),
    "GPT2LMHeadModel": Family(
        "gpt2", {"model.family": "gpt", "model.norm": "pre", "objective.name": "causal",
                 "model.num_segments": 0},
        (*DECODER_FIELDS, ("n_inner", "mlp_dim", None),
         ("activation_function", "activation", "gelu_new")),
        TIED | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False},
        {"lm_head.weight": "transformer.wte.weight"}, GELU,
        _decoder("wte", "wpe") + _norm("final_norm", "transformer.ln_f")),
    "OpenAIGPTLMHeadModel": Family(
        "openai-gpt", {"model.family": "gpt", "model.norm": "post", "objective.name": "causal",
                       "model.num_segments": 0},
        (*DECODER_FIELDS, ("afn", "activation", "gelu")), TIED,
        {"lm_head.weight": "transformer.tokens_embed.weight"},
        # What it calls gelu is the approximation; it has no other.
        {"gelu_tanh": ("gelu", "gelu_new")}, _decoder("tokens_embed", "positions_embed")),
}


# Kinds of tasks whose outputs have names there -> what it calls them, which tells the loss.
PROBLEM_TYPES = {"classes": "single_label_classification", "values": "regression", "tokens": None}


def _tuned(base, *rules):
  return FAMILIES[base]._replace(tied={}, rules=[
      *(rule for rule in FAMILIES[base].rules if rule.ours.startswith(("embeddings", "encoder"))),
      *rules])


def _sequence(base, pooler, head):
  return _tuned(base, *_linear("pooler", pooler, "DD"), *_linear("head", head, "DC"))


# (model_type, kind of the task) -> architecture. C: outputs of the task.
TUNED = {
    (FAMILIES[base].model_type, kind): (f"{prefix}For{name}", family)
    for base, prefix, pooler, head in (
        ("BertForMaskedLM", "Bert", "bert.pooler.dense", "classifier"),
        ("RobertaForMaskedLM", "Roberta", "classifier.dense", "classifier.out_proj"))
    for kind, name, family in (
        ("classes", "SequenceClassification", _sequence(base, pooler, head)),
        ("values", "SequenceClassification", _sequence(base, pooler, head)),
        ("tokens", "TokenClassification", _tuned(base, *_linear("head", "classifier", "DC"))),
        ("spans", "QuestionAnswering", _tuned(base, *_linear("head", "qa_outputs", "DC"))))
}


# ------------------------------------------------------------- there, from here


def architecture_of(config: ConfigDict, kind: str = "") -> str:
  """The architecture that computes just what the model of a config computes.

  Args:
    kind: of the task it was fine-tuned on, as in `tasks.rows.Task`; empty: it was not.
  Raises:
    ConfigError: `transformers` has none; names the field.
  """
  return _find_family(config, kind)[0]


def _find_family(config: ConfigDict, kind: str) -> tuple[str, Family]:
  model, objective = config.model, config.objective.name
  if model.family == "bert" and objective == "mlm":
    is_roberta = model.num_segments < 2 and model.activation == "gelu_erf"
    name = "RobertaForMaskedLM" if is_roberta else "BertForMaskedLM"
  elif model.family == "bert":
    name = "BertForPreTraining"
  else:
    name = "GPT2LMHeadModel" if model.norm == "pre" else "OpenAIGPTLMHeadModel"
  family = FAMILIES[name]
  for field, value in family.model.items():
    group, field = field.split(".")
    if config[group][field] != value:
      raise ConfigError(f"{group}.{field}={config[group][field]!r}: transformers' {name} is "
                        f"{value!r}; this model cannot be exported")
  if model.activation not in family.activations:
    raise ConfigError(f"model.activation={model.activation!r}: transformers' {name} has only "
                      f"{', '.join(family.activations)}; this model cannot be exported")
  if name == "OpenAIGPTLMHeadModel" and model.mlp_dim != 4 * model.width:
    raise ConfigError(f"model.mlp_dim={model.mlp_dim}: transformers' {name} has an MLP of 4 x "
                      f"model.width = {4 * model.width}; this model cannot be exported")
  if not kind:
    return name, family
  if (family.model_type, kind) not in TUNED:
    raise ConfigError(f"a {name} that was fine-tuned reads tokens of its own, which transformers "
                      "has not; this model cannot be exported, its predictions are in its folder")
  return TUNED[family.model_type, kind]


def to_hugging_face(params: Mapping[str, Any], config: ConfigDict, pad_id: int = 1,
                    kind: str = "") -> dict[str, np.ndarray]:
  """Tensors as `transformers` names and stores them, without the rows that pad the vocabulary.

  Args:
    params: nested dicts of arrays, as in `TrainState.params`.
    config: of the run, with `model.vocab_size` set.
    pad_id: RoBERTa only: its positions begin at `pad_id` + 1. 1 is that of the published ones.
    kind: see `architecture_of`.
  Returns:
    float32, contiguous.
  Raises:
    ConfigError: see `architecture_of`; or a parameter that the architecture does not have.
  """
  architecture, family = _find_family(config, kind)
  sizes = _sizes(config.model, pad_id)
  leaves = {name.removeprefix("body/"): np.asarray(x, np.float32)
            for name, x in trees.named_leaves(params).items()}
  if config.model.family == "bert" and config.model.num_segments == 0:
    leaves["embeddings/segment/embedding"] = np.zeros((1, sizes["D"]), np.float32)
  parts = collections.defaultdict(list)
  for rule in family.rules:
    if rule.ours not in leaves:
      raise ConfigError(f"the parameter {rule.ours} is missing; {architecture} has it")
    array = leaves.pop(rule.ours)
    for i, x in enumerate(array if _is_stacked(rule) else [array]):
      parts[rule.theirs.format(i)].append(LAYOUTS[rule.layout].write(x, sizes))
  if leaves:
    raise ConfigError(f"{architecture} has no place for the parameter {min(leaves)}")
  # ascontiguousarray: the writer of safetensors takes the memory as it lies.
  return {name: np.ascontiguousarray(np.concatenate(x, axis=-1) if len(x) > 1 else x[0])
          for name, x in parts.items()}


def to_hugging_face_config(config: ConfigDict, pad_id: int = 1, kind: str = "",
                           labels: Sequence[str] = ()) -> dict[str, Any]:
  """What config.json says of the architecture. See `to_hugging_face`.

  Args:
    labels: of a fine-tuned model: what its outputs stand for.
  """
  name, family = _find_family(config, kind)
  model = config.model
  values = {theirs: model[ours] for theirs, ours, _ in family.fields}
  for key, ours, _ in family.fields:
    if ours == "activation":
      values[key] = family.activations[model.activation][0]
    if ours == "num_segments":
      values[key] = max(1, model.num_segments)
    if ours == "max_positions" and _skips(family):
      values[key] += pad_id + 1
  if kind in PROBLEM_TYPES:
    values |= {"id2label": {str(i): label for i, label in enumerate(labels)},
               "label2id": {label: i for i, label in enumerate(labels)},
               "problem_type": PROBLEM_TYPES[kind]}
  return {"architectures": [name], "model_type": family.model_type, "dtype": "float32",
          **values, **family.fixed}


# ------------------------------------------------------------- here, from there


def from_hugging_face(tensors: Mapping[str, np.ndarray], hf_config: Mapping[str, Any]
                      ) -> tuple[dict[str, Any], dict[str, Any]]:
  """Parameters and config fields of ours for a model of `transformers`.

  Args:
    tensors: by name. Names without the prefix of the base model, the old names of LayerNorm,
      and copies of tied tensors are understood.
    hf_config: content of config.json.
  Returns:
    Nested dicts of float32 arrays, and values of config fields, as {"model.width": 768}.
  Raises:
    DataError: names the tensor or key that is missing, unknown, of another shape or value.
  """
  tensors = _rename(tensors, hf_config)
  name = _find_architecture(tensors, hf_config)
  family = FAMILIES[name]
  fields = _read_fields(name, hf_config)
  skip = _read_number(hf_config, "pad_token_id", 1) + 1 if _skips(family) else 0
  fields["model.max_positions"] -= skip
  sizes = _sizes({field.removeprefix("model."): x for field, x in fields.items()}, skip - 1)
  tensors = _drop_repeated(tensors, family)
  leaves: dict[str, np.ndarray] = {}
  for theirs, rules in _by_tensor(family.rules).items():
    count = fields["model.num_layers"] if _is_stacked(rules[0]) else 1
    layers = [_take(tensors, theirs.format(i), rules, sizes) for i in range(count)]
    for rule, *parts in zip(rules, *layers, strict=True):
      leaves[rule.ours] = np.stack(parts) if _is_stacked(rule) else parts[0]
  if tensors:
    raise DataError(f"the tensor {min(tensors)} has no place in a {name} of "
                    f"{fields['model.num_layers']} layers")
  return trees.nest(leaves), fields


def _rename(tensors, hf_config):
  """Names as the tables have them."""
  prefix = "transformer." if hf_config.get("model_type") in ("gpt2", "openai-gpt") else None
  renamed = {}
  for name, x in tensors.items():
    if prefix and not name.startswith((prefix, "lm_head.")):
      name = prefix + name  # As in the published GPT-2.
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # As in the published BERT.
      name = name.removesuffix(old) + new if name.endswith(old) else name
    renamed[name] = x
  return renamed


def _find_architecture(tensors, hf_config) -> str:
  kinds = {family.model_type: name for name, family in FAMILIES.items()}
  kind = str(hf_config.get("model_type"))
  if kind not in kinds:
    raise DataError(f"model_type={kind!r} in config.json: choose a model of "
                    f"{', '.join(sorted(kinds))}")
  if kind == "bert" and "cls.seq_relationship.weight" in tensors:
    return "BertForPreTraining"  # The published ones call themselves BertForMaskedLM.
  return kinds[kind]


def _read_fields(name, hf_config) -> dict[str, Any]:
  family = FAMILIES[name]
  for key, value in family.fixed.items():
    if hf_config.get(key, value) != value:
      raise DataError(f"{key}={hf_config[key]!r} in config.json: only {value!r} is supported")
  fields = dict(family.model)
  for key, ours, default in family.fields:
    value = hf_config.get(key, default)
    if ours == "activation":
      names = {theirs: here for here, all_names in family.activations.items()
               for theirs in all_names}
      if str(value) not in names:
        raise DataError(f"{key}={value!r} in config.json: only {', '.join(names)} are supported")
      value = names[value]
    elif isinstance(default, float):
      value = _read_number(hf_config, key, default, float)
    elif value is not None or default is not None:
      value = _read_number(hf_config, key, default, least=1)
    fields[f"model.{ours}"] = value
  if fields.get("model.mlp_dim") is None:
    fields["model.mlp_dim"] = 4 * fields["model.width"]
  return fields


def _read_number(hf_config, key, default, kind=int, least=0):
  value = hf_config.get(key, default)
  if type(value) not in (int, kind) or not value >= least:
    raise DataError(f"{key}={value!r} in config.json: expected "
                    f"{'a whole number' if kind is int else 'a number'} of at least {least}")
  return kind(value)


def _drop_repeated(tensors, family):
  """Without the copies of tied tensors, the buffers of old versions, and a pooler of no use."""
  kept = {}
  has_pooler = any(rule.ours.startswith("pooler") for rule in family.rules)
  for name, x in tensors.items():
    if name in family.tied:
      original = tensors.get(family.tied[name])
      if original is not None and not np.array_equal(original, x):
        raise DataError(f"the tensor {name} differs from {family.tied[name]}: only models that "
                        "tie them are supported")
    elif not (name.endswith((".position_ids", ".attn.bias", ".attn.masked_bias"))
              or (".pooler.dense." in name and not has_pooler)):
      kept[name] = x
  return kept


def _take(tensors, name, rules, sizes):
  """Removes a tensor of theirs from `tensors`. Returns its parts, one for each rule."""
  if name not in tensors:
    raise DataError(f"the tensor {name} is missing")
  x, layout = tensors.pop(name), LAYOUTS[rules[0].layout]
  shape = layout.shape(tuple(sizes[letter] for letter in rules[0].axes), sizes)
  shape = (*shape[:-1], shape[-1] * len(rules))
  if x.shape != shape:
    raise DataError(f"the tensor {name} has the shape {list(x.shape)}; by config.json it is "
                    f"{list(shape)}")
  if x.dtype.kind not in "fV" or x.dtype.names:  # V: bfloat16.
    raise DataError(f"the tensor {name} is of type {x.dtype}; expected floating-point numbers")
  x = np.asarray(x, np.float32)
  return [np.ascontiguousarray(layout.read(part, sizes))
          for part in np.split(x, len(rules), axis=-1)]


def _by_tensor(rules: list[Rule]) -> dict[str, list[Rule]]:
  groups = collections.defaultdict(list)
  for rule in rules:
    groups[rule.theirs].append(rule)
  return groups


def _is_stacked(rule: Rule) -> bool:
  return "{}" in rule.theirs


def _skips(family: Family) -> bool:
  return any(rule.layout == "positions" for rule in family.rules)


def _sizes(model: Mapping[str, Any], pad_id: int) -> Sizes:
  return {"V": model["vocab_size"], "P": model["max_positions"], "D": model["width"],
          "F": model["mlp_dim"], "S": max(1, model["num_segments"]), "2": 2, "skip": pad_id + 1}
