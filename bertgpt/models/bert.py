"""BERT (Devlin et al. 2018, arXiv:1810.04805): encoder, masked-LM head, next-sentence head.

Axes: B batch, L length, D width, K predicted positions of a row, P sequences of a row,
V rows of the padded token table.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.cross_entropy import Prediction


class Bert(nn.Module):
  """The encoder with its two pretraining heads.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self):
    config = self.config
    self.embeddings = layers.Embeddings(config, use_norm=True)
    self.encoder = layers.Stack(config, causal=False)
    self.pooler = layers.make_dense(config, config.width, None)
    self.mlm = MaskedLmTransform(config)
    self.nsp = layers.make_dense(config, 2, None)

  def __call__(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, sequence_ids_BL: jax.Array,
               positions_BL: jax.Array, predict_BK: jax.Array,
               nsp_positions_BP: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Both heads on chosen positions, so that no logits are made for the others.

    Args:
      tokens_BL, segment_ids_BL, sequence_ids_BL, positions_BL: int32.
      predict_BK: int32, positions whose token is predicted.
      nsp_positions_BP: int32, positions of the [CLS] of every sequence. None leaves the
        pooler and the next-sentence head out (RoBERTa).

    Returns:
      Masked-LM logits [B, K, V] and next-sentence logits [B, P, 2] or None, float32.
    """
    mlm, nsp_logits_BP2 = self.predict(tokens_BL, segment_ids_BL, sequence_ids_BL, positions_BL,
                                       predict_BK, nsp_positions_BP)
    return mlm.logits(), nsp_logits_BP2

  def predict(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, sequence_ids_BL: jax.Array,
              positions_BL: jax.Array, predict_BK: jax.Array,
              nsp_positions_BP: jax.Array | None) -> tuple[Prediction, jax.Array | None]:
    """The same, with the masked-LM logits yet to be formed: a loss does not need all at once."""
    x_BLD = self.encode(tokens_BL, segment_ids_BL, sequence_ids_BL, positions_BL)
    mlm = self.embeddings.predict(*self.mlm(gather(x_BLD, predict_BK)))
    if nsp_positions_BP is None:
      return mlm, None
    return mlm, self.next_sentence_logits(gather(x_BLD, nsp_positions_BP))

  def encode(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, sequence_ids_BL: jax.Array,
             positions_BL: jax.Array) -> jax.Array:
    """The last layer's features, [B, L, D] in the compute dtype."""
    return self.encoder(self.embeddings(tokens_BL, positions_BL, segment_ids_BL), sequence_ids_BL)

  def masked_lm_logits(self, x: jax.Array) -> jax.Array:
    """Vocabulary logits, float32 [..., V], of features [..., D]."""
    return self.embeddings.predict(*self.mlm(x)).logits()

  def pool(self, x: jax.Array) -> jax.Array:
    """The pooled feature of a [CLS]: [..., D] of features [..., D]."""
    return jnp.tanh(self.pooler(x))

  def next_sentence_logits(self, x: jax.Array) -> jax.Array:
    """(is next, is random), float32 [..., 2], of features [..., D] of a [CLS]."""
    return self.nsp(self.pool(x)).astype(jnp.float32)


class MaskedLmTransform(nn.Module):
  """Dense, activation and norm before the tied table, and the output bias."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    config = self.config
    x = layers.ACTIVATIONS[config.activation](layers.make_dense(config, config.width, "dense")(x))
    rows = layers.padded_vocab_size(config.vocab_size)
    bias_V = self.param("bias", nn.initializers.zeros, (rows,))
    return layers.make_norm(config, "norm")(x), bias_V


def gather(x_BLD: jax.Array, positions_BK: jax.Array) -> jax.Array:
  """Features at chosen positions: [B, K, D]."""
  return jnp.take_along_axis(x_BLD, positions_BK[:, :, None], axis=1)
