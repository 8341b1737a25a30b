"""BERT and RoBERTa.

| architecture         | models here                                                        |
|----------------------|--------------------------------------------------------------------|
| `BertForPreTraining` | objective mlm_nsp                                                  |
| `BertForMaskedLM`    | objective mlm                                                      |
| `RobertaForMaskedLM` | the same with at most one segment and the exact GELU, if the       |
|                      | tokenizer's padding is one of the first ids                        |
"""

from bertgpt.config import ConfigDict
from bertgpt.hub.architecture import (
  EXACT_GELU,
  GELU,
  TIED,
  Architecture,
  Rule,
  find_objective,
  linear,
  norm,
  tune,
)
from bertgpt.hub.family_tables import FamilyTable


def _encoder(theirs, position_storage):
  embeddings, layer = f"{theirs}.embeddings", f"{theirs}.encoder.layer.{{}}"
  return [
      Rule("embeddings/token/embedding", f"{embeddings}.word_embeddings.weight", "VD",
           "vocabulary"),
      Rule("embeddings/position/embedding", f"{embeddings}.position_embeddings.weight", "PD",
           position_storage),
      Rule("embeddings/segment/embedding", f"{embeddings}.token_type_embeddings.weight", "SD"),
      *norm("embeddings/norm", f"{embeddings}.LayerNorm"),
      *linear("encoder/layers/attention/query", f"{layer}.attention.self.query", "DD"),
      *linear("encoder/layers/attention/key", f"{layer}.attention.self.key", "DD"),
      *linear("encoder/layers/attention/value", f"{layer}.attention.self.value", "DD"),
      *linear("encoder/layers/attention/out", f"{layer}.attention.output.dense", "DD"),
      *norm("encoder/layers/attention_norm", f"{layer}.attention.output.LayerNorm"),
      *linear("encoder/layers/mlp/up", f"{layer}.intermediate.dense", "DF"),
      *linear("encoder/layers/mlp/down", f"{layer}.output.dense", "FD"),
      *norm("encoder/layers/mlp_norm", f"{layer}.output.LayerNorm"),
  ]


def _masked_lm(transform, norm_name, bias):
  return [*linear("mlm/dense", f"{transform}.dense", "DD"),
          *norm("mlm/norm", f"{transform}.{norm_name}"),
          Rule("mlm/bias", bias, "V", "vocabulary")]


def _heads(pooler, classifier, outputs):
  """Returns the rules of each kind of task.

  Args:
    pooler, classifier: dense layers of a model for whole texts.
    outputs: kind -> dense layer of a model for tokens.
  """
  text = [*linear("pooler", pooler, "DD"), *linear("head", classifier, "DC")]
  return {"classes": text, "values": text,
          **{kind: linear("head", name, "DC") for kind, name in outputs.items()}}


FIELDS = (
    ("vocab_size", "vocab_size", 30522), ("hidden_size", "width", 768),
    ("num_hidden_layers", "num_layers", 12), ("num_attention_heads", "num_heads", 12),
    ("intermediate_size", "mlp_dim", 3072), ("max_position_embeddings", "max_positions", 512),
    ("type_vocab_size", "num_segments", 2), ("hidden_act", "activation", "gelu"),
    ("layer_norm_eps", "layer_norm_epsilon", 1e-12), ("hidden_dropout_prob", "dropout", 0.1),
    ("attention_probs_dropout_prob", "attention_dropout", 0.1),
    ("initializer_range", "init_std", 0.02),
)
FIXED = TIED | {"is_decoder": False, "add_cross_attention": False,
                "position_embedding_type": "absolute"}
TOKEN_OUTPUTS = {"tokens": "classifier", "spans": "qa_outputs"}

_OURS = {"model.family": "bert", "model.norm": "post"}

MASKED_LM = tune(Architecture(
    name="BertForMaskedLM", model_type="bert", ours=_OURS | {"objective.name": "mlm"},
    fields=FIELDS, fixed=FIXED,
    tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
          "cls.predictions.decoder.bias": "cls.predictions.bias"},
    activations=GELU,
    rules=[*_encoder("bert", "same"),
           *_masked_lm("cls.predictions.transform", "LayerNorm", "cls.predictions.bias")],
    pipeline="fill-mask", auto="AutoModelForMaskedLM", prefix="bert."),
    "Bert", _heads("bert.pooler.dense", "classifier", TOKEN_OUTPUTS))

PRETRAINING = MASKED_LM._replace(
    name="BertForPreTraining", ours=_OURS | {"objective.name": "mlm_nsp"},
    rules=[*MASKED_LM.rules, *linear("pooler", "bert.pooler.dense", "DD"),
           *linear("nsp", "cls.seq_relationship", "D2")],
    limits=("`AutoModelForMaskedLM` leaves out the next-sentence head; `AutoModelForPreTraining` "
            "has it.",))

ROBERTA = tune(MASKED_LM._replace(
    name="RobertaForMaskedLM", model_type="roberta", activations=EXACT_GELU,
    fields=(("vocab_size", "vocab_size", 50265), *FIELDS[1:]),
    tied={"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
          "lm_head.decoder.bias": "lm_head.bias"},
    rules=[*_encoder("roberta", "positions"), *_masked_lm("lm_head", "layer_norm", "lm_head.bias")],
    prefix="roberta.", other_heads=("roberta.pooler.",), tokenizer_class="RobertaTokenizer",
    without_skips=MASKED_LM),
    "Roberta", _heads("classifier.dense", "classifier.out_proj", TOKEN_OUTPUTS))


def choose(config: ConfigDict) -> Architecture:
  """Returns the architecture that computes a model of this family.

  The objective determines it; without segments and with the exact GELU, it is RoBERTa.

  Args:
    config: a whole config.
  """
  if find_objective(config) == PRETRAINING.ours["objective.name"]:
    return PRETRAINING
  model = config.model
  is_roberta = model.num_segments < 2 and model.activation in ROBERTA.activations
  return ROBERTA if is_roberta else MASKED_LM


TABLE = FamilyTable((MASKED_LM, PRETRAINING, ROBERTA), choose)
