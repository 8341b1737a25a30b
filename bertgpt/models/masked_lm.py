"""What BERT and later families compute between the encoder and the token table."""

import jax
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers


class MaskedLmTransform(nn.Module):
  """Dense, activation and norm before the token table, and the output bias."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns features of the width of the token table, and the output bias.

    Args:
      x: features [..., D].
    Returns:
      [..., E] in the compute dtype, E being the width of the table; and float32 [V].
    """
    config = self.config
    dense = layers.make_dense(config, config.embedding_width or config.width, "dense")
    x = layers.ACTIVATIONS[config.activation](dense(x))
    rows = layers.padded_vocab_size(config.vocab_size)
    bias_V = self.param("bias", nn.initializers.zeros, (rows,))
    return layers.make_norm(config, "norm")(x), bias_V
