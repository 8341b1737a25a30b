"""GPT-1 and GPT-2.

| architecture           | models here       | fine-tuned on classes or values      |
|------------------------|-------------------|--------------------------------------|
| `GPT2LMHeadModel`      | norm pre          | `GPT2ForSequenceClassification`      |
| `OpenAIGPTLMHeadModel` | norm post (GPT-1) | `OpenAIGPTForSequenceClassification` |

The fine-tuned models read the tokens start, delimiter and extract, which the exported tokenizer
puts around texts, and their outputs have no bias: see `Architecture.bias_target`.
"""

from bertgpt.config import ConfigDict
from bertgpt.hub.architecture import (
  CAUSAL,
  GELU,
  TIED,
  Architecture,
  Rule,
  conv1d,
  find_modern_field,
  norm,
  tune,
)
from bertgpt.hub.family_tables import FamilyTable


def _decoder(tokens, positions):
  layer = "transformer.h.{}"
  return [
      Rule("embeddings/token/embedding", f"transformer.{tokens}.weight", "VD", "vocabulary"),
      Rule("embeddings/position/embedding", f"transformer.{positions}.weight", "PD"),
      *norm("decoder/layers/attention_norm", f"{layer}.ln_1"),
      *conv1d("decoder/layers/attention/query", f"{layer}.attn.c_attn", "DD"),
      *conv1d("decoder/layers/attention/key", f"{layer}.attn.c_attn", "DD"),
      *conv1d("decoder/layers/attention/value", f"{layer}.attn.c_attn", "DD"),
      *conv1d("decoder/layers/attention/out", f"{layer}.attn.c_proj", "DD"),
      *norm("decoder/layers/mlp_norm", f"{layer}.ln_2"),
      *conv1d("decoder/layers/mlp/up", f"{layer}.mlp.c_fc", "DF"),
      *conv1d("decoder/layers/mlp/down", f"{layer}.mlp.c_proj", "FD"),
  ]


def _find_mlp_problem(model):
  if model.mlp_dim == 4 * model.width:
    return find_modern_field(model)
  return (f"model.mlp_dim={model.mlp_dim}: transformers' OpenAIGPTLMHeadModel has an MLP of 4 x "
          f"model.width = {4 * model.width}")


_FIELDS = (
    ("vocab_size", "vocab_size", 50257), ("n_embd", "width", 768), ("n_layer", "num_layers", 12),
    ("n_head", "num_heads", 12), ("n_positions", "max_positions", 1024),
    ("layer_norm_epsilon", "layer_norm_epsilon", 1e-5), ("embd_pdrop", "dropout", 0.1),
    ("resid_pdrop", "dropout", 0.1), ("attn_pdrop", "attention_dropout", 0.1),
    ("initializer_range", "init_std", 0.02),
)
_DEFAULTS = {"vocab_size": 40478, "n_positions": 512}  # Where OpenAIGPTConfig is not GPT2Config.
_ALIASES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
_OURS = {"model.family": "gpt", "objective.name": "causal"}
# Heads of the `transformers` classes for tasks, and of those with two heads.
_TASK_HEADS = ("score.", "classifier.", "qa_outputs.", "multiple_choice_head.")
_HEADS = dict.fromkeys(("classes", "values"), [Rule("head/kernel", "score.weight", "DC", "linear")])

GPT2 = Architecture(
    name="GPT2LMHeadModel", model_type="gpt2", ours=_OURS | {"model.norm": "pre"},
    fields=(*_FIELDS, ("n_inner", "mlp_dim", lambda model: 4 * model["width"]),
            ("activation_function", "activation", "gelu_new")),
    fixed=TIED | CAUSAL | {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                           "add_cross_attention": False},
    tied={"lm_head.weight": "transformer.wte.weight"}, activations=GELU,
    rules=[*_decoder("wte", "wpe"), *norm("final_norm", "transformer.ln_f")],
    pipeline="text-generation", auto="AutoModelForCausalLM", prefix="transformer.",
    other_heads=_TASK_HEADS, aliases=_ALIASES)

GPT1 = Architecture(
    name="OpenAIGPTLMHeadModel", model_type="openai-gpt", ours=_OURS | {"model.norm": "post"},
    fields=(*((key, ours, _DEFAULTS.get(key, default)) for key, ours, default in _FIELDS),
            ("afn", "activation", "gelu")),
    fixed=TIED,
    tied={"lm_head.weight": "transformer.tokens_embed.weight"},
    # In this class, "gelu" is the approximation; there is no exact GELU.
    activations={"gelu_tanh": ("gelu", "gelu_new")},
    rules=_decoder("tokens_embed", "positions_embed"),
    pipeline="text-generation", auto="AutoModelForCausalLM", prefix="transformer.",
    other_heads=_TASK_HEADS, find_problem=_find_mlp_problem, aliases=_ALIASES,
    read=lambda hf_config: {"mlp_dim": 4 * hf_config.get("n_embd", 768)})

GPT2, GPT1 = (tune(base, name, _HEADS, target) for base, name, target in (
    (GPT2, "GPT2", "final_norm/bias"), (GPT1, "OpenAIGPT", "decoder/layers/mlp_norm/bias")))


def choose(config: ConfigDict) -> Architecture:
  """Returns GPT-2 for pre-norm models, and GPT-1 for post-norm models.

  Args:
    config: a whole config.
  """
  return GPT2 if config.model.norm == GPT2.ours["model.norm"] else GPT1


TABLE = FamilyTable((GPT2, GPT1), choose)
