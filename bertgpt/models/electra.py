"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): a generator and a discriminator.

The generator, a narrow masked LM, guesses masked tokens. The discriminator, the encoder that is
used afterwards, predicts which tokens of a text have been replaced by such guesses.

Axes: B batch, L length, D width, E width of the embeddings, K predicted positions of a row.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from bertgpt.models import layers
from bertgpt.models.attention import Visibility
from bertgpt.models.cross_entropy import Prediction
from bertgpt.models.inputs import Inputs
from bertgpt.models.masked_lm import MaskedLmTransform
from bertgpt.models.parameters import Param


class Electra(nn.Module):
  """Both models. The embeddings depend on `config.embedding_sharing`.

  * shared: both models have the same tables and LayerNorm;
  * gdes: the discriminator adds its own tables, which start at zero, to those of the generator,
    which it does not train, and has its own LayerNorm (He et al. 2021, DeBERTaV3,
    arXiv:2111.09543, 3.2);
  * none: each has its own.

  Attributes:
    config: `config.model` with `vocab_size` set.
  """

  config: FrozenConfigDict

  def setup(self) -> None:
    config, generator = self.config, generator_config(self.config)
    width = config.embedding_width or config.width
    self.embeddings = layers.Embeddings(config, use_norm=True, use_segments=True,
                                        starts_at_zero=config.embedding_sharing == "gdes")
    if config.embedding_sharing != "shared":
      self.generator_embeddings = layers.Embeddings(
          _replace(config, width=width), use_norm=True, use_segments=True)
    self.encoder = layers.Stack(config)
    self.generator = layers.Stack(generator)
    if width != generator.width:
      self.generator_project = layers.make_dense(generator, generator.width, None)
    if config.norm == "pre":
      self.final_norm = layers.make_norm(config, None)
      self.generator_final_norm = layers.make_norm(generator, None)
    self.mlm = MaskedLmTransform(_replace(generator, embedding_width=width))
    self.rtd = ReplacedTokenHead(config)
    self.pooler = layers.make_dense(config, config.width, None)

  def __call__(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Returns the logits of both models; it touches every parameter, for initialization.

    Args:
      inputs: tokens, and the positions to predict.
    Returns:
      The generator's logits of tokens, float32 [B, K, V], and the discriminator's logits of being
      replaced, float32 [B, L].
    """
    return self.predict(inputs).logits(), self.detect(inputs)

  def predict(self, inputs: Inputs) -> Prediction:
    """Returns the generator's prediction without its logits.

    Args:
      inputs: tokens, and the positions to predict.
    """
    embeddings = self._generator_embeddings()
    x_BLE = embeddings.normalize(embeddings.look_up(inputs.tokens_BL, inputs.positions_BL,
                                                    inputs.segment_ids_BL))
    has_project = x_BLE.shape[-1] != self.config.generator_width
    x_BLG = self.generator_project(x_BLE) if has_project else x_BLE
    x_BLG = _encode(self.generator, x_BLG, inputs)
    x_BLG = self.generator_final_norm(x_BLG) if self.config.norm == "pre" else x_BLG
    if inputs.predict_positions_BK is not None:
      x_BLG = layers.gather(x_BLG, inputs.predict_positions_BK)
    return embeddings.predict(*self.mlm(x_BLG))

  def detect(self, inputs: Inputs) -> jax.Array:
    """Returns the discriminator's logits of being replaced, float32 [B, L].

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    return self.rtd(self.features(inputs))

  def features(self, inputs: Inputs) -> jax.Array:
    """Returns the features of the discriminator's last layer, [B, L, D] in the compute dtype.

    Args:
      inputs: tokens; the positions to predict are not read.
    """
    ids = inputs.tokens_BL, inputs.positions_BL, inputs.segment_ids_BL
    x_BLE = self.embeddings.look_up(*ids)
    if self.config.embedding_sharing == "gdes":
      x_BLE = x_BLE + jax.lax.stop_gradient(self.generator_embeddings.look_up(*ids))
    x_BLD = self.embeddings.widen(self.embeddings.normalize(x_BLE))
    x_BLD = _encode(self.encoder, x_BLD, inputs)
    return self.final_norm(x_BLD) if self.config.norm == "pre" else x_BLD

  def pool(self, x: jax.Array) -> jax.Array:
    """Returns the pooled features of [CLS] tokens, [..., D].

    The layer is created in fine-tuning and has the exact GELU (google-research/electra,
    finetune/classification).

    Args:
      x: features of the last layer at [CLS], [..., D].
    """
    return layers.ACTIVATIONS["gelu_erf"](self.pooler(x))

  def token_features(self, x: jax.Array) -> jax.Array:
    """Returns the features that the output layers of tokens read: those of the last layer.

    Args:
      x: features of the last layer, [..., D].
    """
    return x

  def _generator_embeddings(self):
    return (self.embeddings if self.config.embedding_sharing == "shared"
            else self.generator_embeddings)


class ReplacedTokenHead(nn.Module):
  """Dense, activation, and one output per token."""

  config: FrozenConfigDict

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits, float32 [...].

    Args:
      x: features [..., D].
    """
    config = self.config
    x = layers.make_dense(config, config.width, "dense")(x)
    x = layers.ACTIVATIONS[config.activation](x)
    return layers.make_dense(config, 1, "output")(x)[..., 0].astype(jnp.float32)


def generator_config(config: FrozenConfigDict) -> FrozenConfigDict:
  """Returns the config of the generator's layers.

  Args:
    config: `config.model` of the discriminator.
  """
  return _replace(config, width=config.generator_width, num_heads=config.generator_num_heads,
                  mlp_dim=config.generator_mlp_dim)


def _replace(config, **fields):
  changed = ConfigDict(config)
  changed.update(fields)
  return FrozenConfigDict(changed)


def _encode(stack, x_BLD, inputs):
  visibility = Visibility(inputs.sequence_ids_BL, inputs.lengths_B)
  return stack(x_BLD, layers.SharedInputs(visibility, inputs.positions_BL))[0]


MODEL = Electra

# The lines of the embeddings and of the layers match the parameters of both models.
PARAMETERS = (
    Param(r"generator_project/kernel$", (None, "embed"), is_matrix=True),
    Param(r"generator_project/bias$", (None,), decays=False),
    *layers.EMBEDDING_PARAMETERS,
    *layers.STACK_PARAMETERS,
    Param(r"(pooler|mlm/dense|rtd/dense)/kernel$", ("embed", None), is_matrix=True),
    Param(r"(pooler|mlm/dense|rtd/dense)/bias$", (None,), decays=False),
    Param(r"mlm/norm/(scale|bias)$", (None,), decays=False),
    Param(r"mlm/bias$", ("vocab",), decays=False),
    Param(r"rtd/output/kernel$", (None, None)),
    Param(r"rtd/output/bias$", (None,), decays=False),
)
