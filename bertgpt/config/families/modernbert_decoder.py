"""ModernBERT as a decoder, as in Ettin: the same layers, with a causal mask."""

from bertgpt.config.families import modernbert
from bertgpt.config.families.family import Family, flops_of_layers

# A query of a local layer sees itself and 63 keys before it: 64 keys, half of the encoder's window
# (`transformers`, modeling_modernbert_decoder.py, 2025).
_CHANGES = {"family": "modernbert_decoder", "window": 63}

PRESETS = {name: {field: value for field, value in (fields | _CHANGES).items()
                  if field != "pooling"}
           for name, fields in modernbert.PRESETS.items()}


def _flops_per_token(model, seq_len, predicted):
  d = model.width
  return (flops_of_layers(model, seq_len, is_causal=True)
          + 2 * predicted * (d * model.vocab_size + d * d))


FAMILY = Family(
    title="a ModernBERT decoder",
    kind="decoder",
    objectives=("causal",),
    abilities=frozenset({"generate", "score", "classes", "values"}),
    reads=frozenset(),
    flops_per_token=_flops_per_token,
    presets=PRESETS,
)
