"""Sizes of the published models, for `config.model.update(presets.BERT["base"])`.

Sources: BERT base and large, Devlin et al. 2018 (arXiv:1810.04805); tiny to medium, Turc et
al. 2019 (arXiv:1908.08962); GPT-1, openai/finetune-transformer-lm (2018); GPT-2,
openai/gpt-2 (2019).
"""

from typing import Any


def _size(num_layers: int, width: int, num_heads: int) -> dict[str, int]:
  """In all of these papers the MLP is four times as wide as the model."""
  return {"num_layers": num_layers, "width": width, "num_heads": num_heads, "mlp_dim": 4 * width}


_BERT_FAMILY = {
    "family": "bert", "norm": "post", "layer_norm_epsilon": 1e-12, "activation": "gelu_tanh",
    "max_positions": 512, "num_segments": 2, "dropout": 0.1, "attention_dropout": 0.1,
    "init_std": 0.02, "position_init": "normal", "position_init_std": 0.02,
    "truncated_init": True, "scale_residual_init": False,
}

_GPT1_FAMILY = _BERT_FAMILY | {
    "family": "gpt", "layer_norm_epsilon": 1e-5, "num_segments": 0, "truncated_init": False,
}

_GPT2_FAMILY = _GPT1_FAMILY | {
    "norm": "pre", "max_positions": 1024, "position_init_std": 0.01, "scale_residual_init": True,
}

BERT: dict[str, dict[str, Any]] = {
    "tiny": _BERT_FAMILY | _size(2, 128, 2),
    "mini": _BERT_FAMILY | _size(4, 256, 4),
    "small": _BERT_FAMILY | _size(4, 512, 8),
    "medium": _BERT_FAMILY | _size(8, 512, 8),
    "base": _BERT_FAMILY | _size(12, 768, 12),
    "large": _BERT_FAMILY | _size(24, 1024, 16),
}

GPT1: dict[str, Any] = _GPT1_FAMILY | _size(12, 768, 12)

GPT2: dict[str, dict[str, Any]] = {
    "small": _GPT2_FAMILY | _size(12, 768, 12),
    "medium": _GPT2_FAMILY | _size(24, 1024, 16),
    "large": _GPT2_FAMILY | _size(36, 1280, 20),
    "xl": _GPT2_FAMILY | _size(48, 1600, 25),
}
