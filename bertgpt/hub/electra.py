"""ELECTRA: the discriminator in a folder, and the generator in a subfolder of it.

| architecture            | folder      | models here   |
|-------------------------|-------------|---------------|
| `ElectraForPreTraining` |             | objective rtd |
| `ElectraForMaskedLM`    | `generator` | objective rtd |
"""

import numpy as np

from bertgpt.hub.architecture import (
  EXACT_GELU,
  GELU,
  Architecture,
  Rule,
  draw,
  find_sizes,
  linear,
  norm,
  tune,
)
from bertgpt.hub.bert import FIELDS, FIXED
from bertgpt.hub.family_tables import FamilyTable

_EMBEDDINGS, _LAYER = "electra.embeddings", "electra.encoder.layer.{}"
_TABLES = ("token/embedding", "position/embedding", "segment/embedding")
_SHARED = (*_TABLES, "norm/scale", "norm/bias")


def _encoder(embeddings, project, layers, d, f):
  """Returns the rules of an encoder. `d` and `f`: letters of its width and of its MLP's width."""
  words = f"{_EMBEDDINGS}.word_embeddings.weight"
  return [
      Rule(f"{embeddings}/token/embedding", words, "VE", "vocabulary"),
      Rule(f"{embeddings}/position/embedding", f"{_EMBEDDINGS}.position_embeddings.weight", "PE"),
      Rule(f"{embeddings}/segment/embedding", f"{_EMBEDDINGS}.token_type_embeddings.weight", "SE"),
      *norm(f"{embeddings}/norm", f"{_EMBEDDINGS}.LayerNorm", "E"),
      *(rule._replace(unless_equal=f"E{d}")
        for rule in linear(project, "electra.embeddings_project", f"E{d}")),
      *linear(f"{layers}/attention/query", f"{_LAYER}.attention.self.query", d + d),
      *linear(f"{layers}/attention/key", f"{_LAYER}.attention.self.key", d + d),
      *linear(f"{layers}/attention/value", f"{_LAYER}.attention.self.value", d + d),
      *linear(f"{layers}/attention/out", f"{_LAYER}.attention.output.dense", d + d),
      *norm(f"{layers}/attention_norm", f"{_LAYER}.attention.output.LayerNorm", d),
      *linear(f"{layers}/mlp/up", f"{_LAYER}.intermediate.dense", d + f),
      *linear(f"{layers}/mlp/down", f"{_LAYER}.output.dense", f + d),
      *norm(f"{layers}/mlp_norm", f"{_LAYER}.output.LayerNorm", d),
  ]


def _split(leaves, model):
  """Returns the leaves with complete embeddings of both models.

  A fine-tuned model with separate or shared embeddings has no generator.
  """
  leaves = dict(leaves)
  if model.embedding_sharing == "gdes":
    for name in _TABLES:
      leaves[f"embeddings/{name}"] = (leaves[f"embeddings/{name}"]
                                      + leaves[f"generator_embeddings/{name}"])
  elif model.embedding_sharing == "shared":
    leaves |= {f"generator_embeddings/{name}": leaves[f"embeddings/{name}"] for name in _SHARED
               if f"embeddings/{name}" in leaves}
  return leaves


def _join(leaves, fields):
  """Returns our leaves and fields, with a random generator if there is none."""
  fields = fields | {"model.embedding_sharing": "shared"}
  if "model.generator_width" not in fields:
    heads = max(1, fields["model.width"] // 256)  # A quarter of the width, in heads of 64.
    fields |= {"model.generator_width": 64 * heads, "model.generator_num_heads": heads,
               "model.generator_mlp_dim": 256 * heads}
    sizes = find_sizes(
        GENERATOR, {field.removeprefix("model."): x for field, x in fields.items()}, 0)
    leaves = leaves | {rule.ours: draw(rule, sizes, fields["model.init_std"],
                                       fields["model.num_layers"])
                       for rule in GENERATOR.rules
                       if rule.group != "generator_embeddings" and rule.applies(sizes)}
    return leaves, fields, ("generator", "mlm")
  pairs = {f"generator_embeddings/{name}": f"embeddings/{name}" for name in _SHARED}
  if all(np.array_equal(leaves[generator], leaves[own]) for generator, own in pairs.items()):
    return {name: x for name, x in leaves.items() if name not in pairs}, fields, ()
  return leaves, fields | {"model.embedding_sharing": "none"}, ()


_OURS = {"model.family": "electra", "model.norm": "post", "objective.name": "rtd"}
# Keys whose defaults differ between ElectraConfig and BertConfig.
_DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
_FIELDS = (*((key, ours, _DEFAULTS.get(key, default)) for key, ours, default in FIELDS),
           ("embedding_size", "embedding_width", 128))
_GENERATOR_FIELDS = {"width": "generator_width", "num_heads": "generator_num_heads",
                     "mlp_dim": "generator_mlp_dim"}

GENERATOR = Architecture(
    name="ElectraForMaskedLM", model_type="electra", ours=_OURS,
    fields=tuple((key, _GENERATOR_FIELDS.get(ours, ours), default)
                 for key, ours, default in _FIELDS),
    fixed=FIXED, tied={"generator_lm_head.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    activations=EXACT_GELU,  # Its output layer has the exact GELU, whatever hidden_act is.
    rules=[*_encoder("generator_embeddings", "generator_project", "generator/layers", "G", "H"),
           *linear("mlm/dense", "generator_predictions.dense", "GE"),
           *norm("mlm/norm", "generator_predictions.LayerNorm", "E"),
           Rule("mlm/bias", "generator_lm_head.bias", "V", "vocabulary")],
    pipeline="fill-mask", auto="AutoModelForMaskedLM", prefix="electra.", split=_split,
    find_own_sizes=lambda model: {"G": model["generator_width"], "H": model["generator_mlp_dim"]},
    limits=("This is the generator, which replaced tokens while the model in the folder above was "
            "trained.",))

_TEXT_HEAD = [*linear("pooler", "classifier.dense", "DD"),
              *linear("head", "classifier.out_proj", "DC")]

DISCRIMINATOR = tune(Architecture(
    name="ElectraForPreTraining", model_type="electra", ours=_OURS, fields=_FIELDS, fixed=FIXED,
    tied={}, activations=GELU,
    rules=[*_encoder("embeddings", "embeddings/project", "encoder/layers", "D", "F"),
           *linear("rtd/dense", "discriminator_predictions.dense", "DD"),
           *linear("rtd/output", "discriminator_predictions.dense_prediction", "D1")],
    pipeline="feature-extraction", auto="AutoModelForPreTraining", prefix="electra.",
    other_heads=("generator_predictions.", "generator_lm_head.", "sequence_summary."),
    parts={"generator": GENERATOR}, split=_split, join=_join,
    limits=("The generator, a masked LM, is in the folder `generator`.",)),
    "Electra", {"classes": _TEXT_HEAD, "values": _TEXT_HEAD,
                "tokens": linear("head", "classifier", "DC"),
                "spans": linear("head", "qa_outputs", "DC")})

TABLE = FamilyTable((DISCRIMINATOR,))
