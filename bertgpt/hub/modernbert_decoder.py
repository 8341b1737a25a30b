"""ModernBERT as a decoder, as in Ettin: `ModernBertDecoderForCausalLM`.

The class of a fine-tuned model has an output bias only if the dense layer of its head has a bias
too, which is then written as zeros.
"""

import functools

from bertgpt.hub.architecture import CAUSAL, Architecture, Rule, tune
from bertgpt.hub.family_tables import FamilyTable
from bertgpt.hub.modernbert import (
  ACTIVATIONS,
  FIELDS,
  FIXED,
  OURS,
  make_head,
  make_rules,
  read_layers,
  write_layers,
)

_FIXED = FIXED | CAUSAL
_TASK = [*make_head("lm", "head"), Rule("head/kernel", "classifier.weight", "DC", "linear"),
         Rule("head/bias", "classifier.bias", "C")]

CAUSAL_LM = tune(Architecture(
    name="ModernBertDecoderForCausalLM", model_type="modernbert-decoder",
    ours=OURS | {"model.family": "modernbert_decoder", "objective.name": "causal"},
    fields=FIELDS, fixed=_FIXED,
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"}, activations=ACTIVATIONS,
    rules=make_rules("decoder", "lm", "lm_head", ("q_proj", "k_proj", "v_proj")),
    pipeline="text-generation", auto="AutoModelForCausalLM", prefix="model.",
    find_problem=lambda model: None,
    read=functools.partial(read_layers, own_key=1),
    write=functools.partial(write_layers, own_key=1),
    signs={"lm": "decoder.bias"},
    copied_ids={"cls_token_id": "bos_token_id", "sep_token_id": "eos_token_id"}),
    "ModernBertDecoder", dict.fromkeys(("classes", "values"), _TASK), left_out=("lm/bias",))
CAUSAL_LM = CAUSAL_LM._replace(tuned={
    kind: tuned._replace(fixed=_FIXED | {"classifier_bias": True}, zeros={"head.dense.bias": "D"})
    for kind, tuned in CAUSAL_LM.tuned.items()})

TABLE = FamilyTable((CAUSAL_LM,))
