"""ALBERT: layers that share their parameters, and narrow embedding tables."""

from bertgpt.config.families.family import CLASSIC, Family, flops_of_layers

_COMMON = CLASSIC | {
    "family": "albert", "norm": "post", "layer_norm_epsilon": 1e-12, "activation": "gelu_tanh",
    "embedding_width": 128, "layer_groups": 1, "max_positions": 512, "num_segments": 2,
    "dropout": 0.1, "attention_dropout": 0.1, "init_std": 0.02, "position_init": "normal",
    "position_init_std": 0.02, "truncated_init": True, "scale_residual_init": False,
    "pooling": "cls",
}

# Lan et al. 2019 (arXiv:1909.11942), table 1, with the dropout of version 1 of the published models
# (google-research/albert, 2019). Version 2 has no dropout at any size.
PRESETS = {
    "base": _COMMON | {"num_layers": 12, "width": 768, "mlp_dim": 3072, "num_heads": 12},
    "large": _COMMON | {"num_layers": 24, "width": 1024, "mlp_dim": 4096, "num_heads": 16},
    "xlarge": _COMMON | {"num_layers": 24, "width": 2048, "mlp_dim": 8192, "num_heads": 16},
    "xxlarge": _COMMON | {"num_layers": 12, "width": 4096, "mlp_dim": 16384, "num_heads": 64,
                          "dropout": 0.0, "attention_dropout": 0.0},
}


def _flops_per_token(model, seq_len, predicted):
  """Returns the FLOPs of the forward pass, which sharing parameters does not reduce."""
  d, e = model.width, model.embedding_width or model.width
  return (flops_of_layers(model, seq_len) + 2 * d * e * (e != d)
          + 2 * predicted * (e * model.vocab_size + d * e))


def _find_problems(model):
  if model.layer_groups > 0 and model.num_layers % model.layer_groups:
    yield (f"model.layer_groups={model.layer_groups} does not divide "
           f"model.num_layers={model.num_layers}")


FAMILY = Family(
    title="an ALBERT",
    kind="encoder",
    objectives=("mlm_sop", "mlm", "diffusion"),
    abilities=frozenset({"fill", "embed", "pseudo_score", "classes", "values", "tokens", "spans"}),
    reads=frozenset({"num_segments", "embedding_width", "layer_groups", "pooling"}),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
    at_least={"layer_groups": 0},
    find_problems=_find_problems,
)
