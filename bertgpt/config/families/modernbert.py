"""ModernBERT and Ettin's encoders: rotary positions, gated MLPs, local and global layers."""

from bertgpt.config.families.family import Family, flops_of_layers

_COMMON = {
    "family": "modernbert", "norm": "pre", "skip_first_norm": True, "norm_kind": "layer",
    "norm_bias": False, "layer_norm_epsilon": 1e-5, "use_bias": False, "mlp": "gated",
    "activation": "gelu_erf", "window": 64, "global_every": 3, "position": "rope",
    "rope_theta": 160_000.0, "rope_theta_local": 10_000.0, "max_positions": 8192,
    "dropout": 0.0, "dropout_at": "attention", "attention_dropout": 0.0, "pooling": "cls",
    "init_std": 0.02, "truncated_init": True, "scale_residual_init": True,
    "position_init": "normal", "position_init_std": 0.02,  # Not read; the defaults.
}


def make_size(num_layers: int, width: int, mlp_dim: int, num_heads: int) -> dict[str, int]:
  """Returns the fields of a size."""
  return {"num_layers": num_layers, "width": width, "mlp_dim": mlp_dim, "num_heads": num_heads}


# Warner et al. 2024 (arXiv:2412.13663); Weller et al. 2025 (arXiv:2507.11412, Ettin), whose 150M
# and 400M have the sizes of ModernBERT.
SIZES = {
    "base": make_size(22, 768, 1152, 12), "large": make_size(28, 1024, 2624, 16),
    "ettin_17m": make_size(7, 256, 384, 4), "ettin_32m": make_size(10, 384, 576, 6),
    "ettin_68m": make_size(19, 512, 768, 8), "ettin_150m": make_size(22, 768, 1152, 12),
    "ettin_400m": make_size(28, 1024, 2624, 16), "ettin_1b": make_size(28, 1792, 3840, 28),
}
PRESETS = {name: _COMMON | size for name, size in SIZES.items()}


def _flops_per_token(model, seq_len, predicted):
  d = model.width
  return flops_of_layers(model, seq_len) + 2 * predicted * (d * model.vocab_size + d * d)


FAMILY = Family(
    title="a ModernBERT",
    kind="encoder",
    objectives=("mlm", "diffusion"),
    abilities=frozenset({"fill", "embed", "pseudo_score", "classes", "values", "tokens", "spans"}),
    reads=frozenset({"pooling"}),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
)
