"""XLNet: `XLNetLMHeadModel`."""

from typing import Any

from bertgpt.errors import DataError
from bertgpt.hub.architecture import GELU, TIED, Architecture, Rule, linear, norm, tune
from bertgpt.hub.family_tables import FamilyTable

_LAYER = "transformer.layer.{}"
_ATTENTION = f"{_LAYER}.rel_attn"
_OURS = "encoder/layers"
# Our name -> theirs, for the matrices of queries and keys and the vectors in the scores.
_MATRICES = {"query": "q", "key": "k", "value": "v", "position": "r"}
_VECTORS = {"content_bias": "r_w_bias", "position_bias": "r_r_bias", "segment_bias": "r_s_bias"}

_RULES = [
    Rule("embeddings/token/embedding", "transformer.word_embedding.weight", "VD", "vocabulary"),
    Rule("encoder/mask_embedding", "transformer.mask_emb", "11D"),
    *(Rule(f"{_OURS}/attention/{ours}/kernel", f"{_ATTENTION}.{theirs}", "DD", "heads")
      for ours, theirs in _MATRICES.items()),
    Rule(f"{_OURS}/attention/out/kernel", f"{_ATTENTION}.o", "DD", "heads_first"),
    *(Rule(f"{_OURS}/attention/{ours}", f"{_ATTENTION}.{theirs}", "D", "heads")
      for ours, theirs in _VECTORS.items()),
    Rule(f"{_OURS}/attention/segment_embedding", f"{_ATTENTION}.seg_embed", "2D", "heads"),
    *norm(f"{_OURS}/attention_norm", f"{_ATTENTION}.layer_norm"),
    *linear(f"{_OURS}/mlp/up", f"{_LAYER}.ff.layer_1", "DF"),
    *linear(f"{_OURS}/mlp/down", f"{_LAYER}.ff.layer_2", "FD"),
    *norm(f"{_OURS}/mlp_norm", f"{_LAYER}.ff.layer_norm"),
    Rule("mlm/bias", "lm_loss.bias", "V", "vocabulary"),
]

# Keys of which our models can compute only one value. In `transformers`, models without memory
# ignore mem_len and reuse_len.
_FIXED = TIED | {"attn_type": "bi", "bi_data": False, "clamp_len": -1, "same_length": False,
                 "untie_r": True}
# Keys of the heads of tasks.
_SUMMARY = {"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh"}
# Row length of the published models. config.json names none; `opening` takes that of the tokenizer.
_ROW_LENGTH = 512


def _find_problem(model):
  needs = {"norm_kind": "layer", "norm_bias": True, "use_bias": True, "mlp": "plain"}
  return next((f"model.{name}={model[name]!r}: transformers' XLNet has only {value!r}"
               for name, value in needs.items() if model[name] != value), None)


def _read(hf_config):
  width, heads = hf_config.get("d_model", 1024), hf_config.get("n_head", 16)
  head = hf_config.get("d_head") or width // heads
  if type(head) is not int or head * heads != width:
    raise DataError(f"d_head={head!r} in config.json: only d_model / n_head = {width // heads} is "
                    "supported. Choose another model")
  return {"position": "relative", "max_positions": _ROW_LENGTH, "num_segments": 2}


def _write(model) -> dict[str, Any]:
  return {"d_head": model.width // model.num_heads, "mem_len": None, "reuse_len": None,
          "summary_last_dropout": model.dropout}


_TEXT_HEAD = [*linear("pooler", "sequence_summary.summary", "DD"),
              *linear("head", "logits_proj", "DC")]

LM = tune(Architecture(
    name="XLNetLMHeadModel", model_type="xlnet",
    ours={"model.family": "xlnet", "objective.name": "plm"},
    fields=(
        ("vocab_size", "vocab_size", 32000), ("d_model", "width", 1024),
        ("n_layer", "num_layers", 24), ("n_head", "num_heads", 16), ("d_inner", "mlp_dim", 4096),
        ("ff_activation", "activation", "gelu"), ("layer_norm_eps", "layer_norm_epsilon", 1e-12),
        # Their `dropout` applies to features and to the weights of attention.
        ("dropout", "attention_dropout", 0.1), ("dropout", "dropout", 0.1),
        ("initializer_range", "init_std", 0.02)),
    fixed=_FIXED | _SUMMARY, of_unread_heads=frozenset(_SUMMARY),
    tied={"lm_loss.weight": "transformer.word_embedding.weight"}, activations=GELU,
    rules=_RULES, pipeline="text-generation", auto="AutoModelForCausalLM", prefix="transformer.",
    other_heads=("qa_outputs.", "start_logits.", "end_logits.", "answer_class."),
    find_problem=_find_problem, read=_read, write=_write,
    aliases={"n_token": "vocab_size", "hidden_size": "d_model", "num_attention_heads": "n_head",
             "num_hidden_layers": "n_layer"}),
    "XLNet", {"classes": _TEXT_HEAD, "values": _TEXT_HEAD,
              "tokens": linear("head", "classifier", "DC"),
              "spans": linear("head", "qa_outputs", "DC")},
    suffixes={"spans": "ForQuestionAnsweringSimple"})

TABLE = FamilyTable((LM,))
