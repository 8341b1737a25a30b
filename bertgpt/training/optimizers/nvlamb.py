"""LAMB as in NVIDIA's recipe for BERT."""

import optax

from bertgpt.config import ConfigDict
from bertgpt.models import Table
from bertgpt.training.optimizers.transforms import (
  add_decay,
  normalize_by_global_norm,
  per_layer,
  scale_by_adam_moments,
  weights_mask,
)
from bertgpt.training.schedules import find_rate_curves


def make(config: ConfigDict, table: Table) -> optax.GradientTransformation:
  """Returns NVIDIA's LAMB: a normalized gradient, no trust ratio on biases and LayerNorm.

  The gradient is first divided by its global norm, so `optimizer.clip_norm` has no effect (as in
  NVIDIA's article; NVIDIA's kernel divides only if the norm exceeds 1). Biases and LayerNorm
  have no trust ratio. When a phase restarts the learning rate, the count of the bias
  correction restarts and the moments are kept, as in NVIDIA's phase 2.

  Args:
    config: a whole config; `optimizer` and `phases` are read.
    table: table of the family's parameters.

  References:
    NVIDIA, Pretraining BERT with Layer-wise Adaptive Learning Rates (article), 2019
    NVIDIA, DeepLearningExamples, PyTorch/LanguageModeling/BERT, 2021
  """
  optimizer = config.optimizer
  starts = tuple(curve.first_step for curve in find_rate_curves(config.phases))
  return optax.chain(
      normalize_by_global_norm(),
      scale_by_adam_moments(optimizer.b1, optimizer.b2, optimizer.epsilon,
                            correction_starts=starts),
      add_decay(config, table),
      optax.masked(per_layer(optax.scale_by_trust_ratio(), table), weights_mask(table)))
