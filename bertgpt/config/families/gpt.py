"""GPT-1 and GPT-2."""

from bertgpt.config.families.family import CLASSIC, Family, flops_of_layers, four_times

_GPT1 = CLASSIC | {
    "family": "gpt", "norm": "post", "layer_norm_epsilon": 1e-5, "activation": "gelu_tanh",
    "max_positions": 512, "num_segments": 0, "dropout": 0.1, "attention_dropout": 0.1,
    "init_std": 0.02, "position_init": "normal", "position_init_std": 0.02,
    "truncated_init": False, "scale_residual_init": False,
}
_GPT2 = _GPT1 | {
    "norm": "pre", "max_positions": 1024, "position_init_std": 0.01, "scale_residual_init": True,
}

# openai/finetune-transformer-lm, 2018; openai/gpt-2, 2019.
PRESETS = {
    "gpt1": _GPT1 | four_times(12, 768, 12),
    "gpt2_small": _GPT2 | four_times(12, 768, 12),
    "gpt2_medium": _GPT2 | four_times(24, 1024, 16),
    "gpt2_large": _GPT2 | four_times(36, 1280, 20),
    "gpt2_xl": _GPT2 | four_times(48, 1600, 25),
}


def _flops_per_token(model, seq_len, predicted):
  return (flops_of_layers(model, seq_len, is_causal=True)
          + 2 * predicted * model.width * model.vocab_size)


FAMILY = Family(
    title="a GPT",
    kind="decoder",
    objectives=("causal",),
    abilities=frozenset({"generate", "score", "classes", "values"}),
    reads=frozenset(),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
)
