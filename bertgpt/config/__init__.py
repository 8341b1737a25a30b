"""The configs: every field with its default and a comment, derived values and checks.

A recipe imports `base` and `phase` from here. No module of this folder imports JAX.
"""

from bertgpt.config import unread
from bertgpt.config.checks import find_problems, remote_problem, validate
from bertgpt.config.derived import (
    config_of_phase,
    find_phase,
    max_predictions,
    max_sequences,
    padded_vocab_size,
    predicted_share,
    total_steps,
    with_model_at,
)
from bertgpt.config.pretraining import (
    CHOICES,
    MESH_AXES,
    PHASE_CHOICES,
    ConfigDict,
    base,
    leaves,
    phase,
)

__all__ = [
    "CHOICES", "MESH_AXES", "PHASE_CHOICES", "ConfigDict", "base", "config_of_phase", "find_phase",
    "find_problems", "leaves", "max_predictions", "max_sequences", "padded_vocab_size", "phase",
    "predicted_share", "remote_problem", "total_steps", "unread", "validate", "with_model_at",
]
