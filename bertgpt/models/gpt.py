"""GPT-1 (Radford et al. 2018) and GPT-2 (Radford et al. 2019).

One module: `config.norm='post'` is GPT-1, 'pre' with a final LayerNorm is GPT-2. The
output layer is tied to the token embedding.

Axes: B batch, L length, D width, V rows of the padded token table.
"""

import jax
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.attention import Cache
from bertgpt.models.cross_entropy import Prediction


class Gpt(nn.Module):
  """The decoder and its tied output layer.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self):
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=False)
    self.decoder = layers.Stack(config, causal=True)
    if config.norm == "pre":
      self.final_norm = layers.make_norm(config, None)

  def __call__(self, tokens_BL: jax.Array, sequence_ids_BL: jax.Array,
               positions_BL: jax.Array) -> jax.Array:
    """Logits of the next token at every position, float32 [B, L, V].

    Args:
      tokens_BL, sequence_ids_BL, positions_BL: int32.
    """
    return self.predict(tokens_BL, sequence_ids_BL, positions_BL).logits()

  def predict(self, tokens_BL: jax.Array, sequence_ids_BL: jax.Array,
              positions_BL: jax.Array) -> Prediction:
    """The same, with the logits yet to be formed: a loss does not need all at once."""
    return self.embeddings.predict(self.decode(tokens_BL, sequence_ids_BL, positions_BL))

  def decode(self, tokens_BL: jax.Array, sequence_ids_BL: jax.Array,
             positions_BL: jax.Array) -> jax.Array:
    """The last layer's features, [B, L, D] in the compute dtype."""
    return self.finish(self.decoder(self.embeddings(tokens_BL, positions_BL), sequence_ids_BL))

  def go_on(self, tokens_BL: jax.Array, positions_BL: jax.Array,
            cache: Cache) -> tuple[jax.Array, Cache]:
    """The features of tokens that go on with rows, [B, L, D], and the cache with these tokens.

    Args:
      tokens_BL: int32.
      positions_BL: int32. Of a row, all before its first are in the cache.
      cache: of `layers.make_cache`, or of the call before.
    """
    x_BLD, cache = self.decoder(self.embeddings(tokens_BL, positions_BL), None, positions_BL,
                                cache)
    return self.finish(x_BLD), cache

  def finish(self, x_BLD: jax.Array) -> jax.Array:
    return self.final_norm(x_BLD) if self.config.norm == "pre" else x_BLD

  def logits(self, x: jax.Array) -> jax.Array:
    """Vocabulary logits, float32 [..., V], of features [..., D]."""
    return self.embeddings.predict(x).logits()
