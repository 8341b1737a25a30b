"""ModernBERT, and Ettin's encoders: `ModernBertForMaskedLM`."""

from collections.abc import Mapping
from typing import Any

from bertgpt.config import ConfigDict
from bertgpt.errors import DataError
from bertgpt.hub.architecture import GELU, TIED, Architecture, Rule, tune
from bertgpt.hub.family_tables import FamilyTable

_LAYER = "model.layers.{}"
# Key of `rope_parameters` -> (field of ours, key of older files, its default).
_THETAS = {"full_attention": ("rope_theta", "global_rope_theta", 160_000.0),
           "sliding_attention": ("rope_theta_local", "local_rope_theta", 10_000.0)}


def make_rules(stack: str, head: str, theirs_head: str, queries: tuple[str, str, str]
               ) -> list[Rule]:
  """Returns the rules of the model with its head.

  Args:
    stack: our name of the layers.
    head: our name of the head.
    theirs_head: their name of its dense layer and norm.
    queries: their names of the matrices of queries, keys and values; three equal names are one
      tensor.
  """
  layers = f"{stack}/layers"
  return [
      Rule("embeddings/token/embedding", "model.embeddings.tok_embeddings.weight", "VD",
           "vocabulary"),
      Rule("embeddings/norm/scale", "model.embeddings.norm.weight", "D"),
      Rule(f"{layers}/attention_norm/scale", f"{_LAYER}.attn_norm.weight", "D", first=1),
      *(Rule(f"{layers}/attention/{ours}/kernel", f"{_LAYER}.attn.{theirs}.weight", "DD", "linear")
        for ours, theirs in zip(("query", "key", "value"), queries, strict=True)),
      Rule(f"{layers}/attention/out/kernel", f"{_LAYER}.attn.Wo.weight", "DD", "linear"),
      Rule(f"{layers}/mlp_norm/scale", f"{_LAYER}.mlp_norm.weight", "D"),
      Rule(f"{layers}/mlp/gate/kernel", f"{_LAYER}.mlp.Wi.weight", "DF", "linear"),
      Rule(f"{layers}/mlp/up/kernel", f"{_LAYER}.mlp.Wi.weight", "DF", "linear"),
      Rule(f"{layers}/mlp/down/kernel", f"{_LAYER}.mlp.Wo.weight", "FD", "linear"),
      Rule("final_norm/scale", "model.final_norm.weight", "D"),
      *make_head(head, theirs_head),
      Rule(f"{head}/bias", "decoder.bias", "V", "vocabulary"),
  ]


def make_head(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of the dense layer and the norm of a head.

  Args:
    ours, theirs: names of the head.
  """
  return [Rule(f"{ours}/dense/kernel", f"{theirs}.dense.weight", "DD", "linear"),
          Rule(f"{ours}/norm/scale", f"{theirs}.norm.weight", "D")]


FIELDS = (
    ("vocab_size", "vocab_size", 50368), ("hidden_size", "width", 768),
    ("num_hidden_layers", "num_layers", 22), ("num_attention_heads", "num_heads", 12),
    ("intermediate_size", "mlp_dim", 1152), ("max_position_embeddings", "max_positions", 8192),
    ("hidden_activation", "activation", "gelu"), ("norm_eps", "layer_norm_epsilon", 1e-5),
    # Their `attention_dropout` applies to weights and to outputs.
    ("attention_dropout", "dropout", 0.0), ("attention_dropout", "attention_dropout", 0.0),
    ("initializer_range", "init_std", 0.02),
)
OURS = {"model.norm": "pre", "model.skip_first_norm": True, "model.norm_kind": "layer",
        "model.norm_bias": False, "model.use_bias": False, "model.mlp": "gated",
        "model.position": "rope"}
ACTIVATIONS = GELU | {"silu": ("silu", "swish")}
FIXED = TIED | {"norm_bias": False, "attention_bias": False, "mlp_bias": False,
                "decoder_bias": True, "classifier_bias": False, "embedding_dropout": 0.0,
                "mlp_dropout": 0.0}


def read_layers(hf_config: Mapping[str, Any], own_key: int) -> dict[str, Any]:
  """Returns the fields of our model that describe positions, and local and global layers.

  Args:
    hf_config: content of config.json, in the form of transformers 5 or in the older one.
    own_key: 0 if the window has `local_attention // 2` keys on each side of a query; 1 if the
      query's own key is one of them.
  Raises:
    DataError: a value is not supported.
  """
  fields: dict[str, Any] = {"dropout_at": "attention", "truncated_init": True,
                            "scale_residual_init": True}
  ropes = hf_config.get("rope_parameters") or {}
  if not (isinstance(ropes, dict) and ropes.keys() <= _THETAS.keys()
          and all(isinstance(rope or {}, dict) for rope in ropes.values())):
    raise DataError(f"rope_parameters={ropes!r} in config.json: expected an object with "
                    f"no other keys than {' and '.join(_THETAS)}. Restore the file")
  if hf_config.get("rope_scaling"):  # In older files.
    raise DataError(f"rope_scaling={hf_config['rope_scaling']!r} in config.json: only positions "
                    "without scaling are supported. Choose another model")
  for kind, (ours, former, default) in _THETAS.items():
    rope = ropes.get(kind) or {}
    theta = rope.get("rope_theta", hf_config.get(former, default))
    # In older files, null stands for the base of the global layers.
    theta = fields.get("rope_theta", default) if theta is None else theta
    is_scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    if is_scaled or type(theta) not in (int, float) or not theta >= 1:
      is_former = not is_scaled and "rope_theta" not in rope
      named = f"{former}={theta!r}" if is_former else f"rope_parameters.{kind}={rope!r}"
      raise DataError(f"{named} in config.json: only a rope_theta of at least 1 without scaling is "
                      "supported. Choose another model")
    fields[ours] = float(theta)
  every = _read_pattern(hf_config)
  if every == 1 or (every and hf_config.get("num_hidden_layers", 22) == 1):  # No layer is local.
    fields |= {"window": 0, "global_every": 3, "rope_theta_local": 10_000.0}  # The defaults.
  else:
    fields |= {"window": _read_window(hf_config, own_key), "global_every": every}
    if not every:  # No layer is global.
      fields["rope_theta"] = 10_000.0
  of_layers, of_head = (hf_config.get(f"{part}_activation", "gelu")
                        for part in ("hidden", "classifier"))
  if of_layers != of_head:
    raise DataError(f"hidden_activation={of_layers!r} and classifier_activation={of_head!r} in "
                    "config.json: only equal values are supported. Choose another model")
  return fields


def _read_window(hf_config, own_key):
  """Returns the keys that a query of a local layer sees on each side, without its own."""
  # In transformers, sliding_window replaces half of local_attention.
  key = "sliding_window" if "sliding_window" in hf_config else "local_attention"
  width, parts = hf_config.get(key, 128), 1 if key == "sliding_window" else 2
  if type(width) is not int or width < 1:
    raise DataError(f"{key}={width!r} in config.json: expected a whole number. Restore the file")
  if width // parts - own_key < 1:
    raise DataError(f"{key}={width} in config.json: only numbers of at least "
                    f"{parts * (1 + own_key)} are supported. Choose another model")
  return width // parts - own_key


def _read_pattern(hf_config):
  """Returns N if the layers 0, N, 2 N, ... are global and the others are not; 0: none is."""
  every = hf_config.get("global_attn_every_n_layers", 3)
  kinds = hf_config.get("layer_types")
  if kinds is None:
    if type(every) is not int or every < 1:
      raise DataError(f"global_attn_every_n_layers={every!r} in config.json: expected a whole "
                      "number of at least 1. Restore the file")
    return every
  num_layers = hf_config.get("num_hidden_layers", 22)
  if isinstance(kinds, list) and len(kinds) == num_layers:
    for n in (every, *range(num_layers + 1)):
      if type(n) is int and n >= 0 and kinds == _name_kinds(num_layers, n):
        return n
  raise DataError("layer_types in config.json: only a full_attention in every N-th layer, "
                  "beginning with the first, or in none, and sliding_attention in the others is "
                  "supported. Choose another model")


def _name_kinds(num_layers, every):
  """Returns the value of `layer_types`; `every` is the result of `_read_pattern`."""
  return ["full_attention" if every and i % every == 0 else "sliding_attention"
          for i in range(num_layers)]


def write_layers(model: ConfigDict, own_key: int) -> dict[str, Any]:
  """Returns the keys of config.json that `read_layers` reads, and the dropout of classifiers.

  The keys have the form of transformers 5, and the older one, in which not all layers can be local.

  Args:
    model: `config.model`.
    own_key: see `read_layers`.
  """
  every = model.global_every if model.window else 1
  kinds = _name_kinds(model.num_layers, every)
  width = 2 * (model.window + own_key) if model.window else 128
  return {
      "layer_types": kinds, "local_attention": width,
      "rope_parameters": {kind: {"rope_type": "default", "rope_theta": float(model[ours])}
                          for kind, (ours, *_) in _THETAS.items()},
      **{former: float(model[ours]) for ours, former, _ in _THETAS.values()},
      **({"global_attn_every_n_layers": every} if every else {}),
      "initializer_cutoff_factor": 2.0, "classifier_dropout": model.dropout,
      "classifier_activation": ACTIVATIONS[model.activation][0],
  }


def _read(hf_config):
  pooling = hf_config.get("classifier_pooling", "cls")
  if pooling not in ("cls", "mean"):
    raise DataError(f"classifier_pooling={pooling!r} in config.json: expected 'cls' or 'mean'. "
                    "Restore the file")
  return read_layers(hf_config, own_key=0) | {"pooling": pooling}


def _write(model):
  return write_layers(model, own_key=0) | {"classifier_pooling": model.pooling}


_TASK = [*make_head("mlm", "head"), Rule("head/kernel", "classifier.weight", "DC", "linear"),
         Rule("head/bias", "classifier.bias", "C")]

MASKED_LM = tune(Architecture(
    name="ModernBertForMaskedLM", model_type="modernbert",
    ours=OURS | {"model.family": "modernbert", "objective.name": "mlm"},
    fields=FIELDS, fixed=FIXED,
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"}, activations=ACTIVATIONS,
    rules=make_rules("encoder", "mlm", "head", ("Wqkv", "Wqkv", "Wqkv")),
    pipeline="fill-mask", auto="AutoModelForMaskedLM", prefix="model.",
    find_problem=lambda model: None, read=_read, write=_write, signs={"mlm": "decoder.bias"},
    pools_by_config=True,
    copied_ids={"cls_token_id": "bos_token_id", "sep_token_id": "eos_token_id"}),
    "ModernBert", dict.fromkeys(("classes", "values", "tokens", "spans"), _TASK),
    left_out=("mlm/bias",))
# Here, nothing is dropped before the outputs for answers.
MASKED_LM = MASKED_LM._replace(tuned={
    **MASKED_LM.tuned, "spans": MASKED_LM.tuned["spans"]._replace(
        write=lambda model: _write(model) | {"classifier_dropout": 0.0})})

TABLE = FamilyTable((MASKED_LM,))
