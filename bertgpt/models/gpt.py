"""GPT-1 (Radford et al. 2018) and GPT-2 (Radford et al. 2019).

One module: `config.norm='post'` is GPT-1, 'pre' with a final LayerNorm is GPT-2. The
output layer is tied to the token embedding.

Axes: B batch, L length, D width, V rows of the padded token table.
"""

import jax
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.attention import Visibility
from bertgpt.models.cache import Cache
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.inputs import Inputs


class Gpt(nn.Module):
  """The decoder and its tied output layer.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self) -> None:
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=False, use_segments=False)
    self.decoder = layers.Stack(config)
    if config.norm == "pre":
      self.final_norm = layers.make_norm(config, None)

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the logits of `predict`, float32 [B, L, V]; it touches every parameter.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    return self.predict(inputs).logits()

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the prediction of the next token at every position, without its logits.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    return self.predict_next(self.features(inputs))

  def features(self, inputs: Inputs) -> jax.Array:
    """Returns the features of the last layer, [B, L, D] in the compute dtype.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    visibility = Visibility(inputs.sequence_ids_BL, inputs.lengths_B, causal=True)
    x_BLD, _ = self._decode(inputs.tokens_BL, layers.SharedInputs(visibility, inputs.positions_BL))
    return x_BLD

  def extend(self, tokens_BL: jax.Array, positions_BL: jax.Array,
             cache: Cache) -> tuple[jax.Array, Cache]:
    """Returns the features of tokens that continue rows, and the cache with these tokens.

    Args:
      tokens_BL: int32 ids.
      positions_BL: int32; the tokens before the first position of each row are in the cache.
      cache: result of `cache.make_cache` or of the previous call.
    Returns:
      [B, L, D] in the compute dtype, and the new cache.
    """
    return self._decode(tokens_BL, layers.SharedInputs(None, positions_BL), cache)

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns vocabulary logits, float32 [..., V].

    Args:
      x: features [..., D].
    """
    return self.predict_next(x).logits()

  def predict_next(self, x: jax.Array) -> Prediction:
    """Returns the prediction of the token after each one.

    Args:
      x: features [..., D].
    """
    return self.embeddings.predict(x)

  def text_features(self, x: jax.Array) -> jax.Array:
    """Returns the features that the output layer of a task reads: those of the last layer.

    Args:
      x: features of the last layer at the last token of a text, [..., D].
    """
    return x

  def _decode(self, tokens_BL, context, cache=None):
    x_BLD = self.embeddings(tokens_BL, context.positions_BL)
    x_BLD, cache = self.decoder(x_BLD, context, cache)
    return self.final_norm(x_BLD) if self.config.norm == "pre" else x_BLD, cache


MODEL = Gpt

PARAMETERS = (*layers.EMBEDDING_PARAMETERS, *layers.STACK_PARAMETERS)
