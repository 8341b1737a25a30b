"""ALBERT.

| architecture           | models here       |
|------------------------|-------------------|
| `AlbertForPreTraining` | objective mlm_sop |
| `AlbertForMaskedLM`    | objective mlm     |
"""

from bertgpt.config import ConfigDict
from bertgpt.hub.architecture import (
  GELU,
  TIED,
  Architecture,
  Rule,
  find_modern_field,
  find_objective,
  linear,
  norm,
  tune,
)
from bertgpt.hub.bert import FIELDS
from bertgpt.hub.family_tables import FamilyTable

_EMBEDDINGS, _ENCODER = "albert.embeddings", "albert.encoder"
_LAYER = f"{_ENCODER}.albert_layer_groups.{{}}.albert_layers.0"

_RULES = [
    Rule("embeddings/token/embedding", f"{_EMBEDDINGS}.word_embeddings.weight", "VE", "vocabulary"),
    Rule("embeddings/position/embedding", f"{_EMBEDDINGS}.position_embeddings.weight", "PE"),
    Rule("embeddings/segment/embedding", f"{_EMBEDDINGS}.token_type_embeddings.weight", "SE"),
    *norm("embeddings/norm", f"{_EMBEDDINGS}.LayerNorm", "E"),
    *linear("embeddings/project", f"{_ENCODER}.embedding_hidden_mapping_in", "ED"),
    *linear("encoder/layers/attention/query", f"{_LAYER}.attention.query", "DD"),
    *linear("encoder/layers/attention/key", f"{_LAYER}.attention.key", "DD"),
    *linear("encoder/layers/attention/value", f"{_LAYER}.attention.value", "DD"),
    *linear("encoder/layers/attention/out", f"{_LAYER}.attention.dense", "DD"),
    *norm("encoder/layers/attention_norm", f"{_LAYER}.attention.LayerNorm"),
    *linear("encoder/layers/mlp/up", f"{_LAYER}.ffn", "DF"),
    *linear("encoder/layers/mlp/down", f"{_LAYER}.ffn_output", "FD"),
    *norm("encoder/layers/mlp_norm", f"{_LAYER}.full_layer_layer_norm"),
    *linear("mlm/dense", "predictions.dense", "DE"),
    *norm("mlm/norm", "predictions.LayerNorm", "E"),
    Rule("mlm/bias", "predictions.bias", "V", "vocabulary"),
]

_OURS = {"model.family": "albert", "model.norm": "post"}
_DEFAULTS = {  # Keys whose defaults differ between AlbertConfig and BertConfig.
    "vocab_size": 30000, "hidden_size": 4096, "num_attention_heads": 64,
    "intermediate_size": 16384, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_TEXT_HEAD = [*linear("pooler", "albert.pooler", "DD"), *linear("head", "classifier", "DC")]


def _find_problem(model):
  if problem := find_modern_field(model):
    return problem
  if (model.embedding_width or model.width) == model.width:
    return (f"model.embedding_width={model.embedding_width}: transformers' ALBERT has a dense "
            "layer after its embeddings even if they are as wide as the model")
  return None


MASKED_LM = tune(Architecture(
    name="AlbertForMaskedLM", model_type="albert", ours=_OURS | {"objective.name": "mlm"},
    fields=(*((key, ours, _DEFAULTS.get(key, default)) for key, ours, default in FIELDS),
            ("embedding_size", "embedding_width", 128), ("num_hidden_groups", "layer_groups", 1)),
    fixed=TIED | {"inner_group_num": 1, "position_embedding_type": "absolute"},
    tied={"predictions.decoder.weight": f"{_EMBEDDINGS}.word_embeddings.weight",
          "predictions.decoder.bias": "predictions.bias"},
    activations=GELU, rules=_RULES, pipeline="fill-mask", auto="AutoModelForMaskedLM",
    prefix="albert.", find_problem=_find_problem,
    write=lambda model: {"classifier_dropout_prob": model.dropout}),
    "Albert", {"classes": _TEXT_HEAD, "values": _TEXT_HEAD,
               "tokens": linear("head", "classifier", "DC"),
               "spans": linear("head", "qa_outputs", "DC")})

PRETRAINING = MASKED_LM._replace(
    name="AlbertForPreTraining", ours=_OURS | {"objective.name": "mlm_sop"},
    rules=[*_RULES, *linear("pooler", "albert.pooler", "DD"),
           *linear("sop", "sop_classifier.classifier", "D2")],
    limits=("`AutoModelForMaskedLM` leaves out the sentence-order head; `AutoModelForPreTraining` "
            "has it.",))


def choose(config: ConfigDict) -> Architecture:
  """Returns the architecture that computes a model of this family; the objective determines it.

  Args:
    config: a whole config.
  """
  has_pairs = find_objective(config) == PRETRAINING.ours["objective.name"]
  return PRETRAINING if has_pairs else MASKED_LM


TABLE = FamilyTable((MASKED_LM, PRETRAINING), choose)
