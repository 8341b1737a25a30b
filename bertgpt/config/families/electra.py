"""ELECTRA: a small masked LM replaces tokens, and a second encoder finds them."""

from bertgpt.config.families.family import CLASSIC, Family, flops_of_layers, four_times

_COMMON = CLASSIC | {
    "family": "electra", "norm": "post", "layer_norm_epsilon": 1e-12, "activation": "gelu_erf",
    "embedding_sharing": "shared", "max_positions": 512, "num_segments": 2, "dropout": 0.1,
    "attention_dropout": 0.1, "init_std": 0.02, "position_init": "normal",
    "position_init_std": 0.02, "truncated_init": True, "scale_residual_init": False,
    "pooling": "cls",
}


def _generator(width):
  return {"generator_width": width, "generator_num_heads": width // 64,
          "generator_mlp_dim": 4 * width}


# Clark et al. 2020 (arXiv:2003.10555), table 6, and google-research/electra,
# configure_pretraining.py. small_plus is the released "small", whose generator is as large as its
# discriminator.
PRESETS = {
    "small": _COMMON | four_times(12, 256, 4) | {"embedding_width": 128} | _generator(64),
    "small_plus": _COMMON | four_times(12, 256, 4) | {"embedding_width": 128} | _generator(256),
    "base": _COMMON | four_times(12, 768, 12) | {"embedding_width": 768} | _generator(256),
    "large": _COMMON | four_times(24, 1024, 16) | {"embedding_width": 1024} | _generator(256),
}


def _flops_per_token(model, seq_len, predicted):
  """Returns the FLOPs of both models; those of the discriminator if no token is predicted."""
  d, e, g = model.width, model.embedding_width or model.width, model.generator_width
  discriminator = flops_of_layers(model, seq_len) + 2 * d * e * (e != d)
  if not predicted:
    return discriminator
  generator = flops_of_layers(model, seq_len, stack="generator_") + 2 * g * e * (e != g)
  return (discriminator + 2 * (d * d + d) + generator
          + 2 * predicted * (e * model.vocab_size + g * e))


FAMILY = Family(
    title="an ELECTRA",
    kind="encoder",
    objectives=("rtd",),
    abilities=frozenset({"fill", "embed", "pseudo_score", "classes", "values", "tokens", "spans"}),
    reads=frozenset({"num_segments", "embedding_width", "embedding_sharing", "generator_width",
                     "generator_num_heads", "generator_mlp_dim", "pooling"}),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
    stacks=("", "generator_"),
    at_least={"generator_width": 1, "generator_num_heads": 1, "generator_mlp_dim": 1},
)
