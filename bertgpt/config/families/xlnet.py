"""XLNet: a language model of tokens in any order, with relative positions."""

from bertgpt.config.families.family import CLASSIC, Family, four_times

_COMMON = CLASSIC | {
    "family": "xlnet", "norm": "post", "layer_norm_epsilon": 1e-12, "activation": "gelu_tanh",
    "position": "relative", "max_positions": 512, "num_segments": 2, "dropout": 0.1,
    "attention_dropout": 0.1, "init_std": 0.02, "truncated_init": False,
    "scale_residual_init": False, "pooling": "cls",
    "position_init": "normal", "position_init_std": 0.02,  # Not read; the defaults.
}

# Yang et al. 2019 (arXiv:1906.08237), table 7, and github.com/zihangdai/xlnet, README.
PRESETS = {
    "base": _COMMON | four_times(12, 768, 12),
    "large": _COMMON | four_times(24, 1024, 16),
}


def _flops_per_token(model, seq_len, predicted):
  """Returns the FLOPs of tokens and, for the share that is predicted, of targets.

  Every query takes part in three matmuls over the keys: scores by content, scores by position, and
  the sum of values. Targets need no keys and values of their own. The projection of the distances,
  which all rows share, and the keys of a memory are left out.
  """
  d, f = model.width, model.mlp_dim
  mlp = (3 if model.mlp == "gated" else 2) * d * f
  token = 4 * d * d + mlp + 3 * seq_len * d
  target = 2 * d * d + mlp + 3 * seq_len * d
  return 2 * (model.num_layers * (token + predicted * target) + predicted * d * model.vocab_size)


FAMILY = Family(
    title="an XLNet",
    kind="encoder",
    objectives=("plm", "plm_memory"),
    abilities=frozenset({"fill", "embed", "pseudo_score", "classes", "values", "tokens",
                         "spans"}),
    reads=frozenset({"num_segments", "pooling"}),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
    only={"position": ("relative",), "norm": ("post",), "window": (0,), "dropout_at": ("all",),
          "num_segments": (2,)},
    cls_last=True,
)
