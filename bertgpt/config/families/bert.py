"""BERT, and RoBERTa, which is a BERT without segments and next sentences."""

from bertgpt.config.families.family import CLASSIC, Family, flops_of_layers, four_times

_COMMON = CLASSIC | {
    "family": "bert", "norm": "post", "layer_norm_epsilon": 1e-12, "activation": "gelu_tanh",
    "max_positions": 512, "num_segments": 2, "dropout": 0.1, "attention_dropout": 0.1,
    "init_std": 0.02, "position_init": "normal", "position_init_std": 0.02,
    "truncated_init": True, "scale_residual_init": False, "pooling": "cls",
}

# fairseq models/roberta/model.py, 2019; the epsilon is that of the published models.
_ROBERTA = _COMMON | {"layer_norm_epsilon": 1e-5, "activation": "gelu_erf", "num_segments": 0,
                      "truncated_init": False}

# Base and large: Devlin et al. 2018 (arXiv:1810.04805). Other sizes: Turc et al. 2019
# (arXiv:1908.08962). RoBERTa: Liu et al. 2019 (arXiv:1907.11692).
PRESETS = {
    "tiny": _COMMON | four_times(2, 128, 2),
    "mini": _COMMON | four_times(4, 256, 4),
    "small": _COMMON | four_times(4, 512, 8),
    "medium": _COMMON | four_times(8, 512, 8),
    "base": _COMMON | four_times(12, 768, 12),
    "large": _COMMON | four_times(24, 1024, 16),
    "roberta_base": _ROBERTA | four_times(12, 768, 12),
    "roberta_large": _ROBERTA | four_times(24, 1024, 16),
}


def _flops_per_token(model, seq_len, predicted):
  d = model.width
  return flops_of_layers(model, seq_len) + 2 * predicted * (d * model.vocab_size + d * d)


FAMILY = Family(
    title="a BERT",
    kind="encoder",
    objectives=("mlm_nsp", "mlm", "diffusion"),
    abilities=frozenset({"fill", "embed", "pseudo_score", "classes", "values", "tokens", "spans"}),
    reads=frozenset({"num_segments", "pooling"}),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
)
