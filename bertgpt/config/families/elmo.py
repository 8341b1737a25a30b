"""ELMo: LSTMs in both directions that read words by their characters."""

from bertgpt.config.families.family import WORD_CHARS, Family

_FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
# num_heads is the number of directions. No LSTM limits the length of a text; max_positions does.
_COMMON = {
    "family": "elmo", "num_layers": 2, "num_heads": 2, "character_width": 16, "filters": _FILTERS,
    "state_clip": 3.0, "lstm_residual": True, "target_words": 0, "max_positions": 512,
    "dropout": 0.1, "pooling": "mean",
}


def _make_size(projection, cells, highways):
  return _COMMON | {"width": 2 * projection, "mlp_dim": cells, "num_highways": highways}


# Peters et al. 2018 (arXiv:1802.05365) and the options.json of the published models (allennlp.org,
# 2018). small and medium have one highway layer.
PRESETS = {
    "small": _make_size(128, 1024, 1),
    "medium": _make_size(256, 2048, 1),
    "original": _make_size(512, 4096, 2),
}


def _flops_per_token(model, seq_len, predicted):
  """Returns the FLOPs of both directions; when words are predicted, each encodes its own words."""
  del seq_len
  p, c, w = model.width // 2, model.mlp_dim, model.character_width
  n = sum(count for _, count in model.filters)
  words = (sum(width * w * count * (WORD_CHARS - width + 1) for width, count in model.filters)
           + model.num_highways * 2 * n * n + n * p)
  lstm = 2 * p * 4 * c + c * p
  targets = min(model.target_words or model.vocab_size, model.vocab_size)
  reads = 2 if predicted else 1
  return 2 * (reads * words + 2 * model.num_layers * lstm + 2 * predicted * p * targets)


def _is_filter(pair):
  return (isinstance(pair, tuple) and len(pair) == 2 and all(type(x) is int for x in pair)
          and 1 <= pair[0] <= WORD_CHARS and pair[1] >= 1)


def _find_problems(model):
  if not model.filters or not all(map(_is_filter, model.filters)):
    yield (f"model.filters={model.filters}: give ((width, number), ...), with widths from 1 to "
           f"{WORD_CHARS}, the characters of a word")


FAMILY = Family(
    title="an ELMo",
    kind="encoder",
    objectives=("bilm",),
    abilities=frozenset({"fill", "embed", "classes", "values", "tokens", "spans"}),
    reads=frozenset({"character_width", "filters", "num_highways", "state_clip", "lstm_residual",
                     "target_words", "pooling"}),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
    stacks=(),
    ignores=frozenset({
        "num_heads", "norm", "skip_first_norm", "norm_kind", "norm_bias", "layer_norm_epsilon",
        "use_bias", "mlp", "activation", "window", "global_every", "position", "rope_theta",
        "rope_theta_local", "dropout_at", "attention_dropout", "init_std", "truncated_init",
        "position_init", "position_init_std", "scale_residual_init", "matmul", "attention",
        "remat", "scan_unroll"}),
    reads_words=True,
    axes_together=(("batch", "mlp"),),  # The gates of all tokens, which are computed at once.
    at_least={"character_width": 1, "num_highways": 0, "state_clip": 0, "target_words": 0},
    find_problems=_find_problems,
)
