"""The configs: every field with its default and one comment, what follows from them, every check.

A recipe imports `base` and `phase` from here. Nothing in this folder imports JAX.
"""

from bertgpt.config import unread
from bertgpt.config.checks import find_problems, remote_problem, validate
from bertgpt.config.pretraining import (
    CHOICES,
    MESH_AXES,
    PHASE_CHOICES,
    ConfigDict,
    base,
    leaves,
    max_predictions,
    max_sequences,
    padded_vocab_size,
    phase,
  phase_at,
  predicted_share,
    total_steps,
)

__all__ = [
    "CHOICES", "MESH_AXES", "PHASE_CHOICES", "ConfigDict", "base", "find_problems", "leaves",
    "max_predictions", "max_sequences", "padded_vocab_size", "phase", "phase_at", "predicted_share",
    "remote_problem", "total_steps", "unread", "validate",
]
